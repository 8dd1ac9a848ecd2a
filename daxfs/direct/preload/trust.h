/* Mount verification: decide which mounts the library trusts, and which pools that they name.
 *
 * These functions make raw system calls only, and allocate no memory and take no lock. They may change errno.
 */
#ifndef DAXFS_TRUST_H
#define DAXFS_TRUST_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Whether the mount with this st_dev is a mount of daxfs by root or by this process's own user. */
bool pl_trusted(dev_t device);
/* Return a number of this mount that no later mount will have; 0 if the kernel has none (before 6.8). */
uint64_t pl_mount_id(int fd);
/* Open the pool with O_RDWR or O_RDONLY. Return -1 if it can't be opened, or its device and inode are not as named. */
int pl_open_pool(const struct daxfs_pool *pool, int flags);
/* Whether the mapping at `base` has a superblock with the named UUID. */
bool pl_has_superblock(const struct daxfs_pool *pool, const char *base);

#pragma GCC visibility pop

#endif
