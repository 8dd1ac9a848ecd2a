/* The counts that DAXFS_DIRECT_STATS=1 prints: calls on files of mounts whose pool is mapped.
 *
 * Any layer may count. While counting is off, PL_COUNT costs the test of a flag.
 */
#ifndef DAXFS_COUNTS_H
#define DAXFS_COUNTS_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Counts since the start of the program or since the fork. */
struct pl_counts {
    _Atomic uint64_t reads, writes;    /* from and to memory */
    _Atomic uint64_t passed;           /* reads and writes by system calls */
    _Atomic uint64_t leases;           /* requests to the daemon */
    _Atomic uint64_t maps, plain_maps; /* mappings of the pool; mappings left to the kernel */
};

extern struct pl_counts pl_counts;
extern bool pl_counting;

#define PL_COUNT(what)                                                                                                 \
    do {                                                                                                               \
        if (unlikely(pl_counting))                                                                                     \
            atomic_fetch_add_explicit(&pl_counts.what, 1, memory_order_relaxed);                                       \
    } while (0)

/* Begin to count if the environment asks for it. */
void pl_count_start(void);
/* Reset all counts, in a child of fork(2). */
void pl_counts_reset(void);
/* Print the line of counts, unless all are 0. */
void pl_counts_print(void);

#pragma GCC visibility pop

#endif
