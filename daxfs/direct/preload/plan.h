/* Plan the pieces of a mapping, and map them.
 *
 * A piece maps the pool where the file has memory. Elsewhere, and past EOF, it maps the file itself through the kernel,
 * so that SIGBUS comes where the kernel would send it. The daemon keeps other clients away from ranges that are mapped
 * through the kernel (DAXFS_MAP). Of a pool that can be mapped in large units only, a piece maps units that belong to
 * the file as a whole, and the rest of the file is mapped through the kernel. All functions need the book's lock.
 */
#ifndef DAXFS_PLAN_H
#define DAXFS_PLAN_H

#include "book.h"

#pragma GCC visibility push(hidden)

/* The range to be mapped: [offset, offset + length) of a file. */
struct pl_question {
    int fd;
    struct pl_group *group;
    uint64_t offset, length;
    int protection;
    const char *address; /* where it will be mapped; NULL: anywhere */
    uint64_t size;  /* result: of the file */
    uint64_t holes; /* result: bytes without memory, up to EOF */
};

extern struct pl_book pl_plan; /* the pieces to be mapped, at addresses from 0 on */

/* Append a piece to the plan. False: its borders are not at pages, or there is no memory. */
bool pl_plan_add(struct pl_question *question, uint64_t offset, uint64_t end, uint64_t pool, uint32_t kind);
/* Make the plan, by requests to the daemon if need be; with `fill` small holes get blocks. False: leave the mapping to
 * the kernel. */
bool pl_plan_make(struct pl_question *question, bool fill);
/* Have the daemon keep all other clients away from [offset, offset + length), which this process maps through the
 * kernel. `lease` becomes the answer. False: it refuses. */
bool pl_announce(int fd, struct pl_file *file, uint64_t offset, uint64_t length, struct daxfs_lease *lease);
/* Reserve address space for the plan, so that its first large piece of memory can be mapped with huge pages. */
char *pl_plan_reserve(void *hint, size_t length, int flags);
/* Map the plan from `start` on, over existing mappings, and set the addresses of its pieces. */
bool pl_plan_lay(char *start, int fd, struct pl_group *group);

#pragma GCC visibility pop

#endif
