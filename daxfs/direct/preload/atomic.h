/* Atomic writes: pwritev2(2) with RWF_ATOMIC, and the sizes of such writes in statx(2).
 *
 * The kernel refuses RWF_ATOMIC on every FUSE mount. So the library announces the write to the daemon (DAXFS_IOC_ATOMIC)
 * and makes it without the flag. Files of other file systems are left to the kernel.
 */
#ifndef DAXFS_ATOMIC_H
#define DAXFS_ATOMIC_H

#include "base.h"

#include <sys/stat.h>
#include <sys/uio.h>

#pragma GCC visibility push(hidden)

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x40
#endif

/* pwritev2(2); `flags` has RWF_ATOMIC. */
ssize_t pl_write_atomic(int fd, const struct iovec *vector, int count, off_t offset, int flags);
/* statx(2). */
int pl_statx(int directory, const char *path, int flags, unsigned mask, struct statx *status);

#pragma GCC visibility pop

#endif
