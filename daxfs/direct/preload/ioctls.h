/* The requests of the protocol (daxfs.h), one function each; no other file makes them.
 *
 * Each makes one system call and may change errno. An answer that a function returns 0 for is sound: its numbers fit
 * the question and each other.
 */
#ifndef DAXFS_IOCTLS_H
#define DAXFS_IOCTLS_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* All return 0 or an errno; EPROTO: the answer makes no sense. */

/* DAXFS_IOC_POOL: the pool of the file's mount. */
int pl_ioctl_pool(int fd, struct daxfs_pool *pool);
/* DAXFS_IOC_LEASE by this process's holder, which quotes `token`. */
int pl_ioctl_lease(int fd, const uint8_t *token, struct daxfs_lease *lease);
/* DAXFS_IOC_STORED; `flags` is of enum daxfs_durability. */
int pl_ioctl_stored(int fd, uint32_t flags);
/* DAXFS_IOC_APPENDED by this process's holder. */
int pl_ioctl_appended(int fd, struct daxfs_appended *appended);
/* DAXFS_IOC_SYNC; fsync(2) where the session has no ioctls. */
int pl_ioctl_sync(int fd);

#pragma GCC visibility pop

#endif
