/* The book of mapped files: which piece of address space shows which part of which file.
 *
 * All signals are blocked while the book is locked (without a filter), so that a handler that maps does not wait for
 * the thread that it interrupted. With the lock, a thread waits for nothing but answers of the daemon. What no comment
 * excepts needs the lock.
 */
#ifndef DAXFS_BOOK_H
#define DAXFS_BOOK_H
#include "file.h"

#include <signal.h>
#include <sys/mman.h>

#pragma GCC visibility push(hidden)

#if defined(__LP64__) && !defined(__s390x__)
#define PL_MAPS /* elsewhere the system calls have other arguments: mappings stay the kernel's */
#endif

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif
#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

/* What one call of mmap(2) gave, as long as a piece of it is mapped. */
struct pl_group {
    struct pl_file *file;           /* held */
    char *anchor;                   /* a page of the file, mapped without rights: so the kernel keeps the file open */
    const struct daxfs_slot *entry; /* NULL: nothing will change */
    uint64_t epoch;
    uint32_t pieces;                /* in the book; 0: free */
    int fd;                         /* where it was mapped from; perhaps another file by now: pl_group_fd */
    int flags;                      /* of mmap(2) */
};

/* A kind of piece that gives SIGBUS: the file ended before it and could not be mapped anew. */
enum { PL_PAST_EOF = 16 };

/* A part of a group that is mapped from one place: DAXFS_MEMORY, DAXFS_KERNEL (the file itself), PL_PAST_EOF. */
struct pl_piece {
    char *start, *end;
    uint64_t offset; /* of `start` in the file */
    uint64_t pool;   /* DAXFS_MEMORY: where `start` lies in the pool */
    struct pl_group *group;
    uint32_t kind;
    int protection;
};

/* Pieces by address. */
struct pl_book {
    struct pl_piece *pieces;
    size_t count, room;
};

extern struct pl_book pl_book;

void pl_book_lock(sigset_t *saved);
void pl_book_unlock(const sigset_t *saved);
/* Handlers of pthread_atfork. */
void pl_book_before_fork(void);
void pl_book_after_fork_parent(void);
void pl_book_after_fork_child(void);

/* Whether anything in [start, end) may be in the book: without the lock, so that other memory costs nothing. */
bool pl_booked(const char *start, const char *end);
/* The first piece that ends after `address`. */
size_t pl_book_find(const char *address);
/* Room for `more` pieces; false: no memory. */
bool pl_book_room(struct pl_book *book, size_t more);
/* A border at `address`, if a piece goes across it. Needs room for one. */
void pl_book_split(const char *address);
/* Put pieces in, where nothing is booked. Needs room for them. */
void pl_book_put(const struct pl_piece *pieces, size_t count);
/* Take out all of [start, end), and end groups that have no pieces left. Needs room for two. */
void pl_book_cut(const char *start, const char *end);
/* The mappings of a mount's files follow no changes from now on. */
void pl_book_freeze(const struct pl_mount *mount);

/* A group for `file`, whose reference it takes over; NULL: none is free, and the caller keeps the reference. */
struct pl_group *pl_group_begin(int fd, struct pl_file *file, int flags);
/* End a group that has no pieces. */
void pl_group_end(struct pl_group *group);
/* A descriptor of the very file that it was mapped from, -1 if that was closed. */
int pl_group_fd(const struct pl_group *group);

#define PL_PAGE pl_page_size()
uintptr_t pl_page_size(void);
uintptr_t pl_page_up(uintptr_t value);
/* The system call: an allocator may map before the C library's functions can be looked up. */
void *pl_raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);

static inline bool pl_is_shared(const struct pl_group *group) {
    return (group->flags & MAP_TYPE) != MAP_PRIVATE; /* MAP_SHARED, MAP_SHARED_VALIDATE */
}

/* Whether a mapping with such flags can ever be stored to, if mprotect(2) allows it. */
static inline bool pl_stores(const struct pl_file *file, int flags) {
    return (flags & MAP_TYPE) != MAP_PRIVATE && file->writable && file->mount->writable;
}

#pragma GCC visibility pop

#endif
