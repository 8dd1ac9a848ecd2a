/* The book of mapped files: which piece of address space shows which part of which file.
 *
 * All signals but SIGBUS are blocked while the book is locked (except under a seccomp filter), so that a handler that
 * maps does not wait for the thread that it interrupted. A thread with the lock waits only for answers of the daemon. A
 * function needs the lock unless its comment says otherwise.
 */
#ifndef DAXFS_BOOK_H
#define DAXFS_BOOK_H
#include "file.h"

#include <signal.h>
#include <sys/mman.h>

#pragma GCC visibility push(hidden)

#if defined(__LP64__) && !defined(__s390x__)
#define PL_MAPS /* elsewhere the system calls have other arguments, and the kernel serves all mappings */
#endif

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

/* The result of one call of mmap(2), as long as a piece of it is mapped. */
struct pl_group {
    struct pl_file *file;           /* held */
    char *anchor;                   /* a page of the file, mapped with PROT_NONE, that keeps the file open */
    const struct daxfs_slot *entry; /* the status entry; NULL: nothing will change */
    uint64_t epoch;
    uint32_t pieces;                /* in the book; 0: free */
    int fd;                         /* that was mapped; it may be another file by now, see pl_group_fd */
    int flags;                      /* of mmap(2) */
};

/* A kind of piece that raises SIGBUS: it is past EOF, and the file could not be mapped again. */
enum { PL_PAST_EOF = 16 };

/* A part of a group that is mapped from one place: DAXFS_MEMORY, DAXFS_KERNEL (the file itself), PL_PAST_EOF. */
struct pl_piece {
    char *start, *end;
    uint64_t offset; /* of `start` in the file */
    uint64_t pool;   /* DAXFS_MEMORY: pool offset of `start` */
    struct pl_group *group;
    uint32_t kind;
    int protection;
};

/* An array of pieces, sorted by address. */
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

/* Whether anything in [start, end) may be in the book. Needs no lock, so that other memory costs nothing. */
bool pl_booked(const char *start, const char *end);
/* Return the index of the first piece that ends after `address`. */
size_t pl_book_find(const char *address);
/* Make room for `more` pieces. False: no memory. */
bool pl_book_room(struct pl_book *book, size_t more);
/* Split the piece that contains `address`, if any, at that address. Needs room for one piece. */
void pl_book_split(const char *address);
/* Insert pieces in a range where the book has none. Needs room for them. */
void pl_book_put(const struct pl_piece *pieces, size_t count);
/* Remove all of [start, end), and end groups that have no pieces left. Needs room for two pieces. */
void pl_book_cut(const char *start, const char *end);
/* Let the mappings of a mount's files follow no further changes. */
void pl_book_freeze(const struct pl_mount *mount);

/* Begin a group for `file` and take over its reference. NULL: no group is free, and the caller keeps the reference. */
struct pl_group *pl_group_begin(int fd, struct pl_file *file, int flags);
/* End a group that has no pieces. */
void pl_group_end(struct pl_group *group);
/* Return a descriptor of the group's file: the one that it was mapped from, or the one that is kept; -1: none. */
int pl_group_fd(const struct pl_group *group);

uintptr_t pl_page_up(uintptr_t value);
/* mmap(2) as a raw system call: an allocator may map before the C library's functions can be looked up. */
void *pl_raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);

static inline bool pl_is_shared(const struct pl_group *group) {
    return (group->flags & MAP_TYPE) != MAP_PRIVATE; /* MAP_SHARED, MAP_SHARED_VALIDATE */
}

/* Whether a mapping with these flags of mmap(2) can ever store to the file, now or after mprotect(2). */
static inline bool pl_stores(const struct pl_file *file, int flags) {
    return (flags & MAP_TYPE) != MAP_PRIVATE && file->writable && file->mount->writable;
}

#pragma GCC visibility pop

#endif
