/* What DAXFS_DIRECT_STATS=1 shows: counts of calls on files of mounts whose pool is mapped.
 *
 * Any layer may count. While counting is off, a count costs one look at a flag.
 */
#ifndef DAXFS_COUNTS_H
#define DAXFS_COUNTS_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Since the start or the fork. */
struct pl_counts {
    _Atomic uint64_t reads, writes;    /* from and to memory */
    _Atomic uint64_t passed;           /* reads and writes by system calls */
    _Atomic uint64_t leases;           /* requests to the daemon */
    _Atomic uint64_t maps, plain_maps; /* of the pool; left to the kernel */
};

extern struct pl_counts pl_counts;
extern bool pl_counting;

#define PL_COUNT(what)                                                                                                 \
    do {                                                                                                               \
        if (unlikely(pl_counting))                                                                                     \
            atomic_fetch_add_explicit(&pl_counts.what, 1, memory_order_relaxed);                                       \
    } while (0)

/* Read the environment. */
void pl_count_start(void);
/* Start from zero: in a child. */
void pl_count_again(void);
/* Print the line of counts, if there is anything to count. */
void pl_count_say(void);

#pragma GCC visibility pop

#endif
