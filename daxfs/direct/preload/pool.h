/* The pools of mounts: find, open, lock and map them while files of the mount are open.
 *
 * A pool is mapped during the first read or write that wants memory, perhaps in a signal handler, so this layer makes
 * raw system calls only. A thread that finds another thread at work on the same mount does without the pool.
 */
#ifndef DAXFS_POOL_H
#define DAXFS_POOL_H

#include "base.h"

#include <sys/mman.h>

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 3
#endif
#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

#pragma GCC visibility push(hidden)

#define PL_PAGE pl_page_size()
uintptr_t pl_page_size(void);

/* A FUSE mount on which files were opened. Its pool is mapped from the first access to the last close and no longer:
 * the mapping keeps a lock, and to the daemon a process with the lock uses the memory, even after an unmount. */
struct pl_mount {
    dev_t device;               /* st_dev of its files */
    _Atomic int state;          /* PL_FREE, ... */
    _Atomic int users;          /* file objects */
    _Atomic bool stays;         /* the pool stays mapped while no file is open, because files come and go */
    _Atomic bool doubtful;      /* no file was open for a while: another mount may have this st_dev now */
    _Atomic uint64_t id;        /* pl_mount_id of the mount that was trusted last */
    unsigned attached;          /* times that the pool was mapped */
    bool writable;              /* the pool could be opened for writing; true until it is opened */
    bool denied;                /* PL_NOT_DAXFS: with the rights of that time not trusted, or not opened */
    unsigned mappings;          /* of files, by the program; changed with the book locked */
    char *anchor;               /* NULL, or a unit that keeps the lock while only mappings of files are left */
    size_t mapped;              /* PL_READY: bytes at `base`, more than a pool in a file has now, since it may grow */
    char *base;                 /* PL_READY: the whole pool, mapped shared; no descriptor of it stays open */
    _Atomic bool missing;       /* memory of the pool was missing: `base` has zeros, and files go through the kernel */
    int map_flags;              /* PL_READY: of mmap(2) for a shared mapping of the pool */
    size_t unit;                /* PL_READY: bytes; the pool can be mapped only in whole units of this size */
    uint8_t token[DAXFS_TOKEN]; /* PL_READY: for lease requests */
    struct daxfs_pool pool;     /* PL_READY: pool.persistence, pool.size, pool.block_size */
};

enum { PL_FREE, PL_NEW, PL_NOT_DAXFS, PL_STALE, PL_KNOWN, PL_BUSY, PL_READY };

#define PL_MOUNTS 64
extern struct pl_mount pl_mounts[PL_MOUNTS];

/* Return the mount of an open file, and count a user. NULL: no mount of daxfs, or no entry can be had now. */
struct pl_mount *pl_mount_of(int fd, dev_t device);
/* Drop a user; the last one unmaps the pool. */
void pl_leave(struct pl_mount *mount);
/* Map the pool if it is not mapped. False: not possible, or not now. The caller has a file of the mount open. */
bool pl_attach(int fd, struct pl_mount *mount);
/* Unmap the pool. The caller has set PL_BUSY, and no thread is inside the memory. */
void pl_unmap_pool(struct pl_mount *mount);
/* Whether a lease is of the pool that is mapped, and can be used. */
bool pl_same_pool(struct pl_mount *mount, const struct daxfs_lease *lease);
/* Whether the pool's units are larger than pages, so that parts of files can be mapped through the kernel only. */
static inline bool pl_is_coarse(const struct pl_mount *mount) {
    return mount->unit > PL_PAGE;
}
/* Add `change` to the number of mappings of files. The book is locked. */
void pl_count_mapping(struct pl_mount *mount, int change);
/* Keep all mapped pools mapped while no file is open. */
void pl_keep_pools(void);
/* Map a part of the pool a second time, at `address`, over existing mappings. MAP_FAILED with errno on failure. */
void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address);
/* Make stores durable as the pool's persistence requires: by cache lines, by msync(2), or not at all. Return 0 or an
 * errno. */
int pl_flush(const struct pl_mount *mount, const char *address, size_t length);

#pragma GCC visibility pop

#endif
