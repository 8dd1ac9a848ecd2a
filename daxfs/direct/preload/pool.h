/* The pools of mounts: found, opened, locked and mapped while files of the mount are open.
 *
 * A pool is mapped within the first read or write that wants memory, perhaps in a signal handler: raw system calls
 * only. A thread that finds another thread at work on the same mount goes without the pool.
 */
#ifndef DAXFS_POOL_H
#define DAXFS_POOL_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* A FUSE mount that files were opened on. Its pool is mapped from the first need to the last close, because the daemon
 * takes the holder of the lock that the mapping keeps for a user of its memory, even after an unmount. */
struct pl_mount {
    dev_t device;               /* st_dev of its files */
    _Atomic int state;          /* PL_FREE, ... */
    _Atomic int users;          /* file objects */
    _Atomic bool stays;         /* mapped even while no file is open: files come and go */
    _Atomic bool doubtful;      /* no file was open: another mount may have this st_dev now */
    _Atomic uint64_t id;        /* pl_mount_id of the mount that was believed last */
    unsigned attached;          /* times that it was mapped */
    bool writable;              /* the pool could be opened for writing; true until it is opened */
    bool denied;                /* PL_NOT_DAXFS: not believed, or not to be opened, with the rights of that time */
    unsigned mappings;          /* of files, by the program; changed with the book locked */
    char *anchor;               /* NULL, or a page that keeps the lock while only mappings of files are left */
    char *base;                 /* PL_READY: the whole pool, mapped shared; no descriptor of it stays open */
    uint8_t token[DAXFS_TOKEN]; /* PL_READY: what lease requests quote */
    struct daxfs_pool pool;     /* PL_READY: pool.persistence, pool.size, pool.block_size */
};

enum { PL_FREE, PL_NEW, PL_NOT_DAXFS, PL_STALE, PL_KNOWN, PL_BUSY, PL_READY };

#define PL_MOUNTS 64
extern struct pl_mount pl_mounts[PL_MOUNTS];

/* The mount of an open file, with one user more; NULL: certainly no mount of daxfs. */
struct pl_mount *pl_mount_of(int fd, dev_t device);
/* One user less; the last one unmaps the pool. */
void pl_leave(struct pl_mount *mount);
/* Map the pool if it is not mapped. False: not possible, or not now. The caller has a file of the mount open. */
bool pl_attach(int fd, struct pl_mount *mount);
/* Unmap the pool. The caller has set PL_BUSY and nobody is inside the memory. */
void pl_unmap_pool(struct pl_mount *mount);
/* Whether an answer is about the pool that is mapped, and can be used. */
bool pl_same_pool(struct pl_mount *mount, const struct daxfs_lease *lease);
/* Count a mapping of a file more or less (with the book locked). */
void pl_count_mapping(struct pl_mount *mount, int change);
/* Keep the pools mapped from now on. */
void pl_keep_pools(void);
/* Map a part of the pool a second time, at `address`, over what is there. MAP_FAILED with errno. */
void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address);
/* Make stores durable that pl_store did not: lines, msync(2), or nothing. 0 or an errno. */
int pl_flush(const struct pl_mount *mount, const char *address, size_t length);

#pragma GCC visibility pop

#endif
