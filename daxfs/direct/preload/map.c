/* mmap(2) and its kin, in place of the C library's: loads and stores go to the pool's memory itself.
 *
 * What is no file of daxfs costs a look at the table of descriptors, or at the bounds of the book. When anything fails,
 * the file is mapped as without this library. Raw system calls: an allocator may map before the C library's functions
 * can be looked up.
 */
#include "map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef PL_MAPS

#define ALSO(name, of) PUBLIC __typeof__(of) name __attribute__((alias(#of), copy(of)))
#define FIXED_FLAGS (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT)
#define KNOWN_FLAGS (MAP_TYPE | FIXED_FLAGS | MAP_SYNC | MAP_DENYWRITE | MAP_EXECUTABLE | LATER_FLAGS)
#define LATER_FLAGS (MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_LOCKED)

/* ---- mmap */

/* Whether a request is of the kind that is mapped here, and one that the kernel grants. */
static bool eligible(const struct pl_file *file, size_t length, int protection, int flags, off_t offset) {
    bool shared = (flags & MAP_TYPE) != MAP_PRIVATE;

    pl_page_up(0);
    if (flags & ~KNOWN_FLAGS || protection & ~(PROT_READ | PROT_WRITE) || (flags & MAP_TYPE) == 0)
        return false;
    if (!length || offset < 0 || (uintptr_t)offset & (PAGE - 1) || length > (1UL << 46) || offset > 1L << 60)
        return false;
    return file->readable && (!shared || !(protection & PROT_WRITE) || (file->writable && file->mount->writable));
}

static bool set_anchor(struct pl_group *group, int fd) {
    group->anchor = pl_raw_mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE, fd, 0);
    if (group->anchor != MAP_FAILED)
        return true;
    group->anchor = NULL;
    return false;
}

/* Map by the plan; MAP_FAILED: nothing is mapped that wasn't (but over a fixed place, where all is replaced anyway). */
static void *map_plan(void *address, size_t length, int flags, struct pl_group *group, int fd) {
    bool fixed = (flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE);
    char *start;

    if (!pl_book_room(&pl_book, pl_plan.count + 3) || !set_anchor(group, fd))
        return MAP_FAILED;
    start = fixed ? address : pl_plan_reserve(address, length, flags);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    if (fixed)
        pl_settle_range(start, start + length);
    if (!pl_plan_lay(start, fd, group)) {
        if (!fixed)
            pl_call(SYS_munmap, start, length);
        return MAP_FAILED;
    }
    /* An address that is free for the kernel is free: it was unmapped behind our back if the book has it. */
    pl_book_cut(start, start + length);
    pl_book_put(pl_plan.pieces, pl_plan.count);
    for (size_t i = 0; i < pl_plan.count; i++)
        pl_settle(&pl_plan.pieces[i], group->file, pl_plan.pieces[i].start, pl_plan.pieces[i].start);
    return start;
}

/* With the lock: map a file of daxfs, MAP_FAILED: the kernel shall do it. */
static void *map_file(void *address, size_t length, int protection, int flags, int fd, uint64_t offset) {
    struct pl_file *file = pl_hold(fd);
    struct pl_question question = {.fd = fd, .offset = offset, .length = pl_page_up(length), .protection = protection};
    void *made = MAP_FAILED;

    if (!file)
        return MAP_FAILED;
    question.group = pl_group_begin(fd, file, flags);
    if (!question.group) {
        pl_drop(file);
        return MAP_FAILED;
    }
    if (pl_group_fd(question.group) == fd && pl_plan_make(&question, true))
        made = map_plan(address, question.length, flags, question.group, fd);
    if (made == MAP_FAILED)
        pl_group_end(question.group);
    else
        pl_check_groups(fd);
    return made;
}

PUBLIC void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    struct pl_file *file = flags & MAP_ANONYMOUS ? NULL : pl_file_of(fd);
    bool fixed = flags & MAP_FIXED && pl_booked(address, (char *)address + length);
    bool ours = file && !pl_foreign() && !pl_filtered && pl_attach(fd, file->mount) &&
                eligible(file, length, protection, flags, offset);
    void *made = MAP_FAILED;
    int error = errno;
    sigset_t saved;

    if (unlikely(file && pl_filtered) && !pl_foreign())
        atomic_store(&file->refused, true); /* its pages and the memory would not agree */
    if (likely(!ours && !fixed))
        return pl_raw_mmap(address, length, protection, flags, fd, offset);
    /* Before the mapping counts, while what was told before can still be given back. */
    if (ours && !pl_known(fd, file, (uint64_t)offset, length, pl_stores(file, flags)))
        pl_learn(fd, file, (uint64_t)offset, length, pl_stores(file, flags) ? DAXFS_WRITE : 0);
    pl_book_lock(&saved);
    if (ours)
        made = map_file(address, length, protection, flags, fd, (uint64_t)offset);
    if (made != MAP_FAILED) {
        errno = error;
        PL_COUNT(maps);
    } else {
        PL_COUNT(plain_maps);
        if (ours)
            atomic_store(&file->refused, true); /* its pages and the memory would not agree */
        if (fixed)
            pl_settle_range(address, (char *)address + pl_page_up(length));
        made = pl_raw_mmap(address, length, protection, flags, fd, offset);
        if (made != MAP_FAILED && fixed && pl_book_room(&pl_book, 2))
            pl_book_cut(address, (char *)address + pl_page_up(length));
    }
    pl_book_unlock(&saved);
    return made;
}

ALSO(mmap64, mmap);

/* ---- munmap, mprotect, madvise, msync */

static int unmap(char *start, size_t length) {
    int failed;

    if (!pl_book_room(&pl_book, 2)) {
        errno = ENOMEM;
        return -1;
    }
    pl_settle_range(start, start + pl_page_up(length));
    failed = (int)pl_call(SYS_munmap, start, length);
    if (!failed)
        pl_book_cut(start, start + pl_page_up(length));
    return failed;
}

PUBLIC int munmap(void *address, size_t length) {
    sigset_t saved;
    int failed;

    if (likely(!pl_booked(address, (char *)address + length)))
        return (int)pl_call(SYS_munmap, address, length);
    pl_book_lock(&saved);
    failed = unmap(address, length);
    pl_book_unlock(&saved);
    return failed;
}

/* The pool may be open for more than the file is. */
static bool allowed(const char *start, const char *end, int protection) {
    for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_group *group = pl_book.pieces[i].group;

        if (protection & PROT_WRITE && pl_is_shared(group) && !group->file->writable)
            return false;
    }
    return true;
}

PUBLIC int mprotect(void *address, size_t length, int protection) {
    char *start = address, *end = start + pl_page_up(length);
    sigset_t saved;
    int failed;

    if (likely(!pl_booked(start, end)))
        return (int)pl_call(SYS_mprotect, address, length, protection);
    pl_book_lock(&saved);
    if (!allowed(start, end, protection)) {
        failed = -1;
        errno = EACCES;
    } else if (!pl_book_room(&pl_book, 2)) {
        failed = -1;
        errno = ENOMEM;
    } else {
        pl_settle_range(start, end);
        failed = (int)pl_call(SYS_mprotect, address, length, protection);
    }
    if (!failed) {
        pl_book_split(start);
        pl_book_split(end);
        for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
            struct pl_piece *piece = &pl_book.pieces[i];

            piece->protection = protection;
            pl_settle(piece, piece->group->file, piece->start, piece->start);
        }
    }
    pl_book_unlock(&saved);
    return failed;
}

/* MADV_REMOVE would make a hole in the pool: it is one in the file. */
static int remove_range(char *start, char *end) {
    sigset_t saved;
    int failed = 0;

    pl_book_lock(&saved);
    for (size_t i = pl_book_find(start); !failed && i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];
        char *first = piece->start > start ? piece->start : start, *last = piece->end < end ? piece->end : end;
        int fd = pl_group_fd(piece->group);

        if (fd < 0 || !pl_is_shared(piece->group)) {
            errno = EINVAL;
            failed = -1;
        } else {
            failed = (int)pl_call(SYS_fallocate, fd, 3 /* PUNCH_HOLE, KEEP_SIZE */,
                                  (off_t)(piece->offset + (uint64_t)(first - piece->start)), (off_t)(last - first));
        }
    }
    pl_check_groups(-1);
    pl_book_unlock(&saved);
    return failed;
}

PUBLIC int madvise(void *address, size_t length, int advice) {
    char *start = address, *end = start + pl_page_up(length);

    if (unlikely(advice == MADV_REMOVE) && pl_booked(start, end))
        return remove_range(start, end);
    /* A child without the mapping would still find it in its book. */
    if (unlikely(advice == MADV_DONTFORK) && pl_booked(start, end))
        return 0;
    return (int)pl_call(SYS_madvise, address, length, advice);
}

/* Write back [start, end) of a piece: what the pool's kind asks for, or what the kernel does for pages of the file. */
static int write_back(const struct pl_piece *piece, char *start, char *end, int flags) {
    int failed = 0;

    if (piece->kind != DAXFS_MEMORY)
        return (int)pl_call(SYS_msync, start, (size_t)(end - start), flags);
    if (flags & MS_SYNC && pl_may_be_dirty(piece))
        failed = pl_flush(piece->group->file->mount, start, (size_t)(end - start));
    if (!failed)
        return 0;
    errno = failed;
    return -1;
}

/* Times move, and are durable, if the file is still open. */
static void tell(const struct pl_piece *piece, int flags) {
    struct daxfs_stored stored = {.flags = flags & MS_SYNC ? DAXFS_DURABLE : 0};
    int fd = pl_may_be_dirty(piece) ? pl_group_fd(piece->group) : -1;

    if (fd >= 0)
        pl_call(SYS_ioctl, fd, DAXFS_IOC_STORED, &stored);
}

static int sync_range(char *start, char *end, int flags) {
    const struct pl_group *told = NULL;
    int failed = 0;

    for (size_t i = pl_book_find(start); start < end; i++) {
        const struct pl_piece *piece = i < pl_book.count ? &pl_book.pieces[i] : NULL;
        char *to;

        if (!piece || piece->start >= end)
            return (int)pl_call(SYS_msync, start, (size_t)(end - start), flags) | failed;
        if (piece->start > start)
            failed |= (int)pl_call(SYS_msync, start, (size_t)(piece->start - start), flags);
        start = piece->start > start ? piece->start : start;
        to = piece->end < end ? piece->end : end;
        failed |= write_back(piece, start, to, flags);
        if (piece->group != told && !failed)
            tell(piece, flags);
        told = piece->group;
        start = to;
    }
    return failed;
}

PUBLIC int msync(void *address, size_t length, int flags) {
    char *start = address, *end = start + pl_page_up(length);
    bool valid = !(flags & ~(MS_ASYNC | MS_SYNC | MS_INVALIDATE)) && !(flags & MS_ASYNC && flags & MS_SYNC);
    int failed, error = errno;
    sigset_t saved;

    if (!pl_booked(start, end) || !valid || (uintptr_t)start & (PAGE - 1))
        return (int)pl_call(SYS_msync, address, length, flags);
    pl_book_lock(&saved);
    pl_check_groups(-1);
    failed = sync_range(start, end, flags);
    pl_book_unlock(&saved);
    if (!failed)
        errno = error;
    return failed;
}

/* ---- mremap */

/* Pages of the kernel's own mremap would go on in the pool, where other files lie: what is moved or grown is mapped
 * anew. `piece` is where the mapping begins. MAP_FAILED with errno. */
static void *remap(const struct pl_piece *piece, char *old, size_t old_length, size_t length, int flags, void *to) {
    int fd = pl_group_fd(piece->group), protection = piece->protection;
    int wanted = piece->group->flags & ~(MAP_FIXED | MAP_FIXED_NOREPLACE);
    uint64_t offset = piece->offset + (uint64_t)(old - piece->start);
    void *made;

    if (!pl_is_shared(piece->group) || fd < 0 || !(flags & MREMAP_MAYMOVE)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (flags & MREMAP_FIXED) {
        wanted |= MAP_FIXED;
        pl_settle_range(to, (char *)to + length);
    }
    made = map_file(flags & MREMAP_FIXED ? to : NULL, length, protection, wanted, fd, offset);
    if (made == MAP_FAILED)
        errno = ENOMEM;
    else if (old_length)
        unmap(old, old_length);
    return made;
}

/* Grow without moving, if the room behind is free. */
static bool grow(const struct pl_piece *piece, char *old, size_t old_length, size_t length) {
    struct pl_group *group = piece->group;
    char *more = old + old_length;
    struct pl_question question = {.fd = pl_group_fd(group),
                                .group = group,
                                .offset = piece->offset + (uint64_t)(more - piece->start),
                                .length = length - old_length,
                                .protection = piece->protection};
    uint64_t epoch = group->epoch;
    void *made;

    if (question.fd < 0)
        return false;
    made = pl_raw_mmap(more, question.length, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (made == more && pl_plan_make(&question, true) && pl_book_room(&pl_book, pl_plan.count + 3) &&
        pl_plan_lay(more, question.fd, group)) {
        group->epoch = epoch; /* of what was there before: it may have changed */
        pl_book_cut(more, more + question.length);
        pl_book_put(pl_plan.pieces, pl_plan.count);
        return true;
    }
    if (made != MAP_FAILED)
        pl_call(SYS_munmap, made, question.length);
    return false;
}

/* Whether one mmap's pieces, without a gap, are all of [start, end). */
static bool one_mapping(const char *start, const char *end) {
    size_t i = pl_book_find(start);

    if (i == pl_book.count || pl_book.pieces[i].start > start)
        return false;
    for (; pl_book.pieces[i].end < end; i++)
        if (i + 1 == pl_book.count || pl_book.pieces[i + 1].start != pl_book.pieces[i].end ||
            pl_book.pieces[i + 1].group != pl_book.pieces[i].group)
            return false;
    return true;
}

static void *remap_ours(char *old, size_t old_length, size_t length, int flags, void *to) {
    struct pl_piece piece;
    bool moves = flags & MREMAP_FIXED;

    if (!length || (uintptr_t)old & (PAGE - 1) || flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED) ||
        (moves && (!(flags & MREMAP_MAYMOVE) || (uintptr_t)to & (PAGE - 1)))) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (!one_mapping(old, old + (old_length ? old_length : PAGE))) {
        errno = EFAULT;
        return MAP_FAILED;
    }
    if (moves && (char *)to < old + old_length && old < (char *)to + length) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    piece = pl_book.pieces[pl_book_find(old)];
    if (!moves && old_length >= length) {
        if (old_length > length && unmap(old + length, old_length - length))
            return MAP_FAILED;
        return old;
    }
    if (!moves && old_length && grow(&piece, old, old_length, length)) {
        pl_check_groups(-1);
        return old;
    }
    return remap(&piece, old, old_length, length, flags, to);
}

PUBLIC void *mremap(void *old, size_t old_length, size_t length, int flags, ...) {
    void *to = NULL, *made;
    sigset_t saved;
    bool over;

    if (flags & MREMAP_FIXED) {
        va_list arguments;

        va_start(arguments, flags);
        to = va_arg(arguments, void *);
        va_end(arguments);
    }
    over = flags & MREMAP_FIXED && pl_booked(to, (char *)to + length);
    if (likely(!pl_booked(old, (char *)old + old_length + 1) && !over))
        return (void *)pl_call(SYS_mremap, old, old_length, length, flags, to);
    old_length = pl_page_up(old_length);
    length = pl_page_up(length);
    pl_book_lock(&saved);
    if (pl_book_find(old) < pl_book.count && pl_book.pieces[pl_book_find(old)].start < (char *)old + old_length + 1) {
        made = remap_ours(old, old_length, length, flags, to);
    } else {
        if (over)
            pl_settle_range(to, (char *)to + length);
        made = (void *)pl_call(SYS_mremap, old, old_length, length, flags, to);
        if (over && made != MAP_FAILED && pl_book_room(&pl_book, 2))
            pl_book_cut(made, (char *)made + length);
    }
    pl_book_unlock(&saved);
    return made;
}

/* ---- files that change their blocks */

PUBLIC int ftruncate(int fd, off_t length) {
    int failed = (int)pl_call(SYS_ftruncate, fd, length);

    if (!failed)
        pl_map_check(fd);
    return failed;
}

ALSO(ftruncate64, ftruncate);

PUBLIC int truncate(const char *path, off_t length) {
    int failed = (int)pl_call(SYS_truncate, path, length);

    if (!failed)
        pl_map_check(-1);
    return failed;
}

ALSO(truncate64, truncate);

PUBLIC int fallocate(int fd, int mode, off_t offset, off_t length) {
    int failed = (int)pl_call(SYS_fallocate, fd, mode, offset, length);

    if (!failed)
        pl_map_check(fd);
    return failed;
}

ALSO(fallocate64, fallocate);

#endif
