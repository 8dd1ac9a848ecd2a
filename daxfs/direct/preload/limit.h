/* A copy of the limit of file sizes (RLIMIT_FSIZE).
 *
 * Any layer may compare with it. A write that goes past the limit is left to the kernel.
 */
#ifndef DAXFS_LIMIT_H
#define DAXFS_LIMIT_H

#include "base.h"

#pragma GCC visibility push(hidden)

extern _Atomic uint64_t pl_file_limit;

/* Read the limit from the kernel: at the start, and after each change that the library sees. */
void pl_read_limit(void);

static inline bool pl_within_limit(uint64_t offset, size_t total) {
    return likely(offset + total <= atomic_load_explicit(&pl_file_limit, memory_order_relaxed));
}

#pragma GCC visibility pop

#endif
