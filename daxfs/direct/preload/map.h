/* What book.c keeps of mapped files, and map.c changes: pieces of address space, and the mmap calls they come from. */
#ifndef DAXFS_MAP_H
#define DAXFS_MAP_H

#include <signal.h>

#include "preload.h"

#pragma GCC visibility push(hidden)

/* What one call of mmap(2) gave, as long as a piece of it is mapped. */
struct pl_group {
    struct pl_file *file;           /* held */
    char *anchor;                   /* a page of the file itself, mapped without rights: the kernel keeps the file open */
    const struct daxfs_slot *slot;  /* NULL: nothing will change */
    uint64_t epoch;
    uint32_t pieces;                /* in the book; 0: free */
    int fd;                         /* where it was mapped from; perhaps another file by now: pl_group_fd */
    int flags;                      /* of mmap(2) */
};

enum { PL_BEHIND = 16 }; /* a kind of piece: gives SIGBUS, since the file ended before it and could not be mapped anew */

/* A part of it that is mapped from one place: DAXFS_MEMORY, DAXFS_KERNEL (the file itself), PL_BEHIND. */
struct pl_piece {
    char *start, *end;
    uint64_t offset; /* of `start` in the file */
    uint64_t pool;   /* DAXFS_MEMORY: where `start` lies in the pool */
    struct pl_group *group;
    uint32_t kind;
    int protection;
};

/* The pieces by address; room for some at its end. Everything below needs the lock. */
struct pl_book {
    struct pl_piece *pieces;
    size_t count, room;
};

extern struct pl_book pl_book;

/* Whether anything in [start, end) may be in the book: without the lock, for everybody else's memory. */
bool pl_booked(const char *start, const char *end);
/* The lock, with all signals blocked: a handler that maps must not wait for the thread it interrupted. */
void pl_book_lock(sigset_t *saved);
void pl_book_unlock(const sigset_t *saved);
/* Forked: `change` is -1 before it, 0 after it in the parent, 1 in the child. */
void pl_book_fork(int change);

/* The first piece that ends behind `address`. */
size_t pl_book_find(const char *address);
/* Room for `more` pieces; false: no memory. */
bool pl_book_room(struct pl_book *book, size_t more);
/* A border at `address`, if a piece goes across it. Needs room for one. */
void pl_book_split(const char *address);
/* Put pieces in, where nothing is booked. Needs room for them. */
void pl_book_put(const struct pl_piece *pieces, size_t count);
/* Take out all of [start, end), and end groups that are not mapped any more. Needs room for two. */
void pl_book_cut(const char *start, const char *end);

/* A group for `file` (which it holds: NULL gives nothing back), or NULL. */
struct pl_group *pl_group_begin(int fd, struct pl_file *file, int flags);
/* It has no pieces: back with it. */
void pl_group_end(struct pl_group *group);
/* A descriptor of the very file that it was mapped from, -1 if it was closed. */
int pl_group_fd(const struct pl_group *group);

static inline bool pl_is_shared(const struct pl_group *group) {
    return (group->flags & 0x03) != 2 /* MAP_PRIVATE; shared are MAP_SHARED (1) and MAP_SHARED_VALIDATE (3) */;
}

#pragma GCC visibility pop

#endif
