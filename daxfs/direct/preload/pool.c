/* The table of mounts has one entry for each st_dev that a file was opened on. An entry's state moves by compare and
 * swap; PL_BUSY belongs to one thread.
 */
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include "copy.h"
#include "ioctls.h"
#include "process.h"
#include "trust.h"

#define FUSE_MAGIC 0x65735546
#define PAGE 4096UL
#define OFTEN 8 /* times that a pool is mapped before it stays mapped while no file is open */

struct pl_mount pl_mounts[PL_MOUNTS];

/* Map the pool that was opened, if it can be locked. The mapping keeps the open file and so the lock. */
static bool map_pool(struct pl_mount *mount, int fd) {
    const struct daxfs_pool *pool = &mount->pool;
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
    int protection = mount->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *base;

    lock.l_start = (off_t)(DAXFS_LOCKS + pool->lock);
    /* A kind of file that knows no locks says EINVAL. */
    if (pl_call(SYS_fcntl, fd, F_OFD_SETLK, &lock) && errno != EINVAL)
        return false;
    base = (void *)pl_call(SYS_mmap, NULL, pool->size, protection, MAP_SHARED, fd, 0L);
    if (base == MAP_FAILED)
        return false;
    if (!pl_has_superblock(pool, base)) {
        pl_call(SYS_munmap, base, pool->size);
        return false;
    }
    if (mount->anchor)
        pl_call(SYS_munmap, mount->anchor, PAGE);
    mount->anchor = (void *)pl_call(SYS_mmap, NULL, PAGE, PROT_NONE, MAP_PRIVATE, fd, 0);
    if (mount->anchor == MAP_FAILED)
        mount->anchor = NULL; /* a device that can only be shared */
    mount->base = base;
    memset(mount->token, 0, sizeof(mount->token));
    if (pool->token)
        memcpy(mount->token, mount->base + pool->token, sizeof(mount->token));
    return true;
}

/* Ask the daemon for the pool and map it, if the mount is believed. The mount's state from now on. */
static int attach(struct pl_mount *mount, int fd) {
    bool mapped;
    int pool, failed;

    mount->denied = !pl_trusted(mount->device);
    if (mount->denied)
        return PL_NOT_DAXFS;
    failed = pl_ioctl_pool(fd, &mount->pool);
    if (failed)
        return failed == ENOSPC ? PL_KNOWN : PL_NOT_DAXFS; /* ENOSPC: no block for the token, now */
    mount->writable = true;
    pool = pl_open_pool(&mount->pool, O_RDWR);
    if (pool < 0) {
        mount->writable = false;
        pool = pl_open_pool(&mount->pool, O_RDONLY);
    }
    mount->denied = pool < 0;
    if (pool < 0)
        return PL_NOT_DAXFS;
    if (mount->writable && mount->pool.persistence == DAXFS_LINES && !pl_lines_known())
        mount->writable = false;
    atomic_store(&mount->id, pl_mount_id(fd));
    atomic_store(&mount->doubtful, false);
    mapped = map_pool(mount, pool);
    pl_call(SYS_close, pool);
    mount->attached++;
    atomic_store(&mount->stays, mount->attached > OFTEN);
    return mapped ? PL_READY : PL_NOT_DAXFS;
}

struct pl_mount *pl_mount_of(int fd, dev_t device) {
    struct statfs system;

    for (int i = 0; i < PL_MOUNTS; i++) {
        struct pl_mount *mount = &pl_mounts[i];
        int state = atomic_load(&mount->state);

        if (state == PL_FREE && atomic_compare_exchange_strong(&mount->state, &state, PL_NEW)) {
            mount->device = device;
            mount->writable = true;
            state = pl_call(SYS_fstatfs, fd, &system) || system.f_type != FUSE_MAGIC ? PL_NOT_DAXFS : PL_KNOWN;
            atomic_store(&mount->state, state);
        }
        if (state == PL_NEW)
            return NULL; /* another thread fills the entry, perhaps for the same mount: this file goes without */
        if (state == PL_STALE || mount->device != device)
            continue;
        if (state == PL_NOT_DAXFS)
            return NULL;
        atomic_fetch_add(&mount->users, 1);
        return mount;
    }
    return NULL;
}

/* Whether the mapped pool is this file's, though no file of its mount was open for a while. What a mount says of itself
 * does not count, because it may lie. From here on the file keeps the mount. */
static bool still_trusted(int fd, struct pl_mount *mount) {
    uint64_t id = pl_mount_id(fd);
    int state = PL_READY;

    if (!id || id != atomic_load(&mount->id)) {
        if (!pl_trusted(mount->device)) {
            atomic_compare_exchange_strong(&mount->state, &state, PL_STALE);
            return false;
        }
        atomic_store(&mount->id, id);
    }
    atomic_store(&mount->doubtful, false);
    return true;
}

bool pl_attach(int fd, struct pl_mount *mount) {
    int state = atomic_load(&mount->state), saved = errno;
    bool good = true;

    if (likely(state == PL_READY)) {
        if (unlikely(atomic_load(&mount->doubtful)))
            good = !pl_filtered && still_trusted(fd, mount);
        errno = saved;
        return good;
    }
    if (state != PL_KNOWN || pl_filtered || !atomic_compare_exchange_strong(&mount->state, &state, PL_BUSY))
        return false;
    state = attach(mount, fd);
    atomic_store(&mount->state, state);
    errno = saved;
    return state == PL_READY;
}

/* The anchor keeps the lock while mappings of files are left. */
static void release(struct pl_mount *mount) {
    if (mount->anchor && !mount->mappings)
        pl_call(SYS_munmap, mount->anchor, PAGE), mount->anchor = NULL;
}

void pl_unmap_pool(struct pl_mount *mount) {
    pl_call(SYS_munmap, mount->base, mount->pool.size);
    mount->base = NULL;
    release(mount);
}

void pl_leave(struct pl_mount *mount) {
    int state = PL_READY, saved = errno;

    if (atomic_load(&mount->stays))
        atomic_store(&mount->doubtful, true); /* before another thread can become the first user */
    if (atomic_fetch_sub(&mount->users, 1) != 1 || atomic_load(&mount->stays) || pl_filtered ||
        !atomic_compare_exchange_strong(&mount->state, &state, PL_BUSY))
        return;
    /* A thread that came meanwhile was counted before it looked whether the pool is mapped. */
    if (atomic_load(&mount->users)) {
        atomic_store(&mount->state, PL_READY);
        return;
    }
    pl_unmap_pool(mount);
    atomic_store(&mount->state, PL_KNOWN);
    errno = saved;
}

void pl_keep_pools(void) {
    for (int i = 0; i < PL_MOUNTS; i++)
        if (atomic_load(&pl_mounts[i].state) == PL_READY)
            atomic_store(&pl_mounts[i].stays, true);
}

void pl_count_mapping(struct pl_mount *mount, int change) {
    mount->mappings += (unsigned)change;
    if (!mount->mappings && !mount->base)
        release(mount);
}

bool pl_same_pool(struct pl_mount *mount, const struct daxfs_lease *lease) {
    if (lease->device != mount->pool.device || lease->inode != mount->pool.inode) {
        atomic_store(&mount->state, PL_STALE); /* another mount has got this st_dev */
        return false;
    }
    if (lease->lock != mount->pool.lock) {
        atomic_store(&mount->stays, false); /* mounted anew: the pool is asked for again when no file is open */
        return false;
    }
    return !lease->slot || lease->slot <= mount->pool.size - sizeof(struct daxfs_slot);
}

void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address) {
    void *made;

    /* A length of 0 copies a shared mapping: there is no descriptor of the pool that a program could have closed. */
    made = (void *)pl_call(SYS_mremap, mount->base + pool_offset, 0UL, length, MREMAP_MAYMOVE | MREMAP_FIXED, address);
    if (made != MAP_FAILED && protection != (PROT_READ | PROT_WRITE))
        pl_call(SYS_mprotect, made, length, protection);
    return made;
}

int pl_flush(const struct pl_mount *mount, const char *address, size_t length) {
    uintptr_t first = (uintptr_t)address & ~(PAGE - 1);

    if (mount->pool.persistence == DAXFS_LINES)
        pl_write_back(address, length);
    if (mount->pool.persistence == DAXFS_MSYNC &&
        pl_call(SYS_msync, first, (uintptr_t)address + length - first, MS_SYNC))
        return errno;
    return 0;
}
