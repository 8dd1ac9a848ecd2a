/* The plan of a mapping: which pieces it has, and laying them out.
 *
 * The pool is mapped where the file has memory, and the file itself (through the kernel) where it has none and past its
 * end, so that SIGBUS comes where the kernel would send it. The daemon keeps other clients away from what is mapped
 * through the kernel (DAXFS_MAP). All of it needs the book's lock.
 */
#ifndef DAXFS_PLAN_H
#define DAXFS_PLAN_H

#include "book.h"

#pragma GCC visibility push(hidden)

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

/* Append a piece to the plan. */
bool pl_plan_add(struct pl_question *question, uint64_t offset, uint64_t end, uint64_t pool, uint32_t kind);
/* Ask the daemon, if need be, and make the plan; `fill` small holes. False: leave it to the kernel. */
bool pl_plan_make(struct pl_question *question, bool fill);
/* Address space for the plan, such that its first large piece of memory can be mapped with huge pages. */
char *pl_plan_reserve(void *wish, size_t length, int flags);
/* Lay the plan out from `start` on; what is mapped there is replaced. Its pieces have their addresses then. */
bool pl_plan_lay(char *start, int fd, struct pl_group *group);

#pragma GCC visibility pop

#endif
