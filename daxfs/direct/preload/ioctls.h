/* The requests of the protocol (daxfs.h), one function each; no other file makes requests.
 *
 * Each function makes one system call and may change errno. If it returns 0, the answer is sound: its numbers fit the
 * request and each other.
 */
#ifndef DAXFS_IOCTLS_H
#define DAXFS_IOCTLS_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* All functions return 0 or an errno; EPROTO: the answer is not sound. */

/* DAXFS_IOC_POOL: the pool of the file's mount. */
int pl_ioctl_pool(int fd, struct daxfs_pool *pool);
/* DAXFS_IOC_LEASE of this process's holder, with `token`. */
int pl_ioctl_lease(int fd, const uint8_t *token, struct daxfs_lease *lease);
/* DAXFS_IOC_STORED; `flags` is of enum daxfs_durability. */
int pl_ioctl_stored(int fd, uint32_t flags);
/* DAXFS_IOC_APPENDED of this process's holder. */
int pl_ioctl_appended(int fd, struct daxfs_appended *appended);
/* DAXFS_IOC_ARMED of this process's holder. */
int pl_ioctl_armed(int fd, struct daxfs_armed *armed);
/* DAXFS_IOC_ATOMIC. */
int pl_ioctl_atomic(int fd, struct daxfs_atomic *write);
/* DAXFS_IOC_SYNC, or fsync(2) if the session has no ioctls. */
int pl_ioctl_sync(int fd);

#pragma GCC visibility pop

#endif
