/* Which mounts, and which pools that they name, the library believes.
 *
 * Raw system calls only: nothing here takes memory or a lock. A function may change errno.
 */
#ifndef DAXFS_TRUST_H
#define DAXFS_TRUST_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Whether the mount with this st_dev is a mount of daxfs by root or by this process's own user. */
bool pl_trusted(dev_t device);
/* A number that this mount has and no later mount will have; 0 where the kernel has none (before 6.8). */
uint64_t pl_mount_id(int fd);
/* Open the pool with O_RDWR or O_RDONLY; -1: it is not the file that was named, or can't be opened. */
int pl_open_pool(const struct daxfs_pool *pool, int flags);
/* Whether the file system that was named lies in the mapping at `base`. */
bool pl_has_superblock(const struct daxfs_pool *pool, const char *base);

#pragma GCC visibility pop

#endif
