/* Mapped files: the book of pieces of address space (book.c), how they are laid out (plan.c), the calls (map.c). */
#ifndef DAXFS_MAP_H
#define DAXFS_MAP_H

#include "preload.h"

#include <signal.h>
#include <sys/mman.h>

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

#pragma GCC visibility push(hidden)

/* What one call of mmap(2) gave, as long as a piece of it is mapped. */
struct pl_group {
    struct pl_file *file;           /* held */
    char *anchor;                   /* a page of the file, mapped without rights: so the kernel keeps the file open */
    const struct daxfs_slot *slot;  /* NULL: nothing will change */
    uint64_t epoch;
    uint32_t pieces;                /* in the book; 0: free */
    int fd;                         /* where it was mapped from; perhaps another file by now: pl_group_fd */
    int flags;                      /* of mmap(2) */
};

enum { PL_BEHIND = 16 }; /* a kind of piece: gives SIGBUS, as the file ended before it and could not be mapped anew */

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

/* ---- plan.c: below the lock, all of it */

/* What is to be mapped: [offset, offset + length) of a file. */
struct pl_question {
    int fd;
    struct pl_group *group;
    uint64_t offset, length;
    int protection;
    uint64_t size;  /* answered: of the file */
    uint64_t holes; /* answered: bytes without memory, up to the end of the file */
};

extern struct pl_book pl_plan; /* what is to be laid out, at addresses from 0 on */

/* Whether reads and writes have learned where all of a range lies, before the lock. */
bool pl_known(int fd, struct pl_file *file, uint64_t offset, uint64_t length, bool store);
/* Ask the daemon, if need be, and make the plan; `fill` small holes. False: leave it to the kernel. */
bool pl_plan_make(struct pl_question *question, bool fill);
/* Address space for the plan, such that its first large piece of memory can be mapped with huge pages. */
char *pl_plan_reserve(void *wish, size_t length, int flags);
/* Lay the plan out from `start` on; what is mapped there is replaced. Its pieces have their addresses then. */
bool pl_plan_lay(char *start, int fd, struct pl_group *group);
/* Whether something may have been stored through it. */
bool pl_may_be_dirty(const struct pl_piece *piece);
/* What was stored to [start, end) of a piece is for the next fsync of `file`, or is durable now (cache lines). */
void pl_settle(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end);
void pl_settle_range(char *start, char *end);
/* Map anew what has changed below mappings; `fd` may help if it is the same file. */
void pl_check_groups(int fd);

#define PAGE pl_page_size()
uintptr_t pl_page_size(void);
uintptr_t pl_page_up(uintptr_t value);
void *pl_raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);

static inline bool pl_is_shared(const struct pl_group *group) {
    return (group->flags & MAP_TYPE) != MAP_PRIVATE; /* MAP_SHARED, MAP_SHARED_VALIDATE */
}

/* Whether a mapping with such flags can ever be stored to, mprotect(2) allowing it. */
static inline bool pl_stores(const struct pl_file *file, int flags) {
    return (flags & MAP_TYPE) != MAP_PRIVATE && file->writable && file->mount->writable;
}

#pragma GCC visibility pop

#endif
