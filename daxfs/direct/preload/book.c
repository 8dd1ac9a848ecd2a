/* The book is a sorted array in memory mapped for it. Reads and writes don't use it; calls that map, unmap or change
 * the size of mapped files do.
 */
#include "book.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "lease.h"
#include "pins.h"
#include "process.h"

#define GROUPS 16384
#define FIRST_ROOM 1024

struct pl_book pl_book;

static struct pl_group groups[GROUPS];
static size_t next_group;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sigset_t saved_by_fork;
static bool blocked; /* the thread with the lock has blocked its signals */
static _Atomic uintptr_t lowest = UINTPTR_MAX, highest; /* addresses in the book since it was last empty */

void *pl_raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return (void *)pl_call(SYS_mmap, address, length, protection, flags, fd, offset);
}

uintptr_t pl_page_up(uintptr_t value) {
    return (value + PL_PAGE - 1) & ~(PL_PAGE - 1);
}

bool pl_booked(const char *start, const char *end) {
    if (likely((uintptr_t)start >= atomic_load_explicit(&highest, memory_order_acquire) ||
               (uintptr_t)end <= atomic_load_explicit(&lowest, memory_order_acquire)))
        return false;
    return !pl_foreign();
}

void pl_book_lock(sigset_t *saved) {
    sigset_t all;

    sigemptyset(saved);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* while it is blocked, memory of a pool that is missing ends the program */
    if (!pl_filtered)
        pthread_sigmask(SIG_SETMASK, &all, saved);
    pthread_mutex_lock(&lock);
    blocked = !pl_filtered;
}

void pl_book_unlock(const sigset_t *saved) {
    bool restore = blocked;

    pthread_mutex_unlock(&lock);
    if (restore)
        pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* Keep the lock during the fork, so that the child gets a book that no thread is changing. */
void pl_book_before_fork(void) {
    sigset_t saved;

    pl_book_lock(&saved);
    saved_by_fork = saved;
}

void pl_book_after_fork_parent(void) {
    sigset_t saved = saved_by_fork;

    pl_book_unlock(&saved);
}

void pl_book_after_fork_child(void) {
    lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    if (blocked)
        pthread_sigmask(SIG_SETMASK, &saved_by_fork, NULL);
}

size_t pl_book_find(const char *address) {
    size_t low = 0, high = pl_book.count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (pl_book.pieces[middle].end <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool pl_book_room(struct pl_book *book, size_t more) {
    size_t room = book->room ? book->room : FIRST_ROOM;
    void *made;

    if (book->count + more <= book->room)
        return true;
    while (room < book->count + more)
        room *= 2;
    made = (void *)pl_call(SYS_mmap, NULL, room * sizeof(struct pl_piece), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (made == MAP_FAILED)
        return false;
    if (book->pieces) {
        memcpy(made, book->pieces, book->count * sizeof(struct pl_piece));
        pl_call(SYS_munmap, book->pieces, book->room * sizeof(struct pl_piece));
    }
    book->pieces = made;
    book->room = room;
    return true;
}

static void open_gap(size_t at, size_t count) {
    memmove(&pl_book.pieces[at + count], &pl_book.pieces[at], (pl_book.count - at) * sizeof(struct pl_piece));
    pl_book.count += count;
}

void pl_book_split(const char *address) {
    size_t at = pl_book_find(address);
    struct pl_piece *piece = &pl_book.pieces[at];
    size_t before;

    if (at == pl_book.count || piece->start >= address)
        return;
    open_gap(at, 1);
    before = (size_t)(address - piece->start);
    piece[1].start = piece[0].end = piece[0].start + before;
    piece[1].offset += before;
    piece[1].pool += before;
    piece->group->pieces++;
}

void pl_book_put(const struct pl_piece *pieces, size_t count) {
    uintptr_t start = (uintptr_t)pieces[0].start, end = (uintptr_t)pieces[count - 1].end;
    size_t at = pl_book_find(pieces[0].start);

    open_gap(at, count);
    memcpy(&pl_book.pieces[at], pieces, count * sizeof(*pieces));
    for (size_t i = 0; i < count; i++)
        pieces[i].group->pieces++;
    if (start < atomic_load(&lowest))
        atomic_store(&lowest, start);
    if (end > atomic_load(&highest))
        atomic_store(&highest, end);
}

void pl_book_cut(const char *start, const char *end) {
    size_t first, last;

    pl_book_split(start);
    pl_book_split(end);
    first = last = pl_book_find(start);
    for (; last < pl_book.count && pl_book.pieces[last].start < end; last++)
        pl_book.pieces[last].group->pieces--;
    for (size_t i = first; i < last; i++)
        if (!pl_book.pieces[i].group->pieces)
            pl_group_end(pl_book.pieces[i].group);
    memmove(&pl_book.pieces[first], &pl_book.pieces[last], (pl_book.count - last) * sizeof(struct pl_piece));
    pl_book.count -= last - first;
    if (!pl_book.count) {
        atomic_store(&lowest, UINTPTR_MAX);
        atomic_store(&highest, 0);
    }
}

struct pl_group *pl_group_begin(int fd, struct pl_file *file, int flags) {
    for (size_t i = 0; i < GROUPS; i++) {
        struct pl_group *group = &groups[(next_group + i) % GROUPS];

        if (group->file)
            continue;
        if (!pl_mapping(file, 1))
            return NULL;
        next_group += i + 1;
        pl_count_mapping(file->mount, 1);
        *group = (struct pl_group){.file = file, .fd = fd, .flags = flags};
        return group;
    }
    return NULL;
}

/* After the last mapping: what was announced may be memory again, and the next access asks. */
static void take_back(int fd, struct pl_file *file) {
    int saved = errno;

    if (fd < 0 || atomic_load(&file->shared) || !pl_is_holder() ||
        !pl_shut_gate(file))
        return;
    if (pl_drained(file)) {
        pl_give_back(fd, file);
        pl_forget_extents(file);
        atomic_store(&file->announced, false);
    }
    pl_open_gate(file);
    errno = saved;
}

static void close_kept(struct pl_file *file) {
    int kept = atomic_exchange(&file->kept, -1);

    if (!pl_filtered && kept >= 0 && !pl_file_of(kept) && pl_is_open_as(kept, file))
        pl_call(SYS_close, kept);
}

void pl_group_end(struct pl_group *group) {
    struct pl_file *file = group->file;
    int fd;

    if (!file)
        return;
    fd = atomic_load(&file->announced) ? pl_group_fd(group) : -1;
    if (group->anchor)
        pl_call(SYS_munmap, group->anchor, PL_PAGE);
    group->file = NULL;
    if (pl_mapping(file, -1) && !atomic_load(&file->mappings)) {
        take_back(fd, file);
        close_kept(file);
    }
    pl_count_mapping(file->mount, -1);
    pl_drop(file);
}

void pl_book_freeze(const struct pl_mount *mount) {
    for (size_t i = 0; i < GROUPS; i++)
        if (groups[i].file && groups[i].file->mount == mount)
            groups[i].entry = NULL;
}

int pl_group_fd(const struct pl_group *group) {
    const struct pl_file *file = group->file;
    int kept = atomic_load(&file->kept);

    if (pl_filtered)
        return -1;
    if (pl_file_of(group->fd) == file && pl_is_open_as(group->fd, file))
        return group->fd;
    /* A program that closes descriptors which are not its own may have another file there. */
    return kept >= 0 && !pl_file_of(kept) && pl_is_open_as(kept, file) ? kept : -1;
}
