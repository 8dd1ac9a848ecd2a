/* The pools of mounts: found, opened, locked and mapped while files of the mount are open; mapped again in parts.
 *
 * Attaching happens within the first read or write that wants memory, perhaps in a signal handler: raw system calls
 * only, and who finds another thread at it goes without.
 */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MOUNTS 64
#define FUSE_MAGIC 0x65735546
#define PAGE 4096UL
#define OFTEN 8 /* times that a pool was mapped before it stays so while no file is open */

static struct pl_mount mounts[MOUNTS];

/* Map the pool that was opened, if it can be locked. The mapping keeps the open file, and so the lock. */
static bool map_pool(struct pl_mount *mount, int fd) {
    const struct daxfs_pool *pool = &mount->pool;
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
    int protection = mount->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *base;

    lock.l_start = (off_t)(DAXFS_LOCKS + pool->lock);
    /* A kind of file that knows no locks says EINVAL. */
    if (syscall(SYS_fcntl, fd, F_OFD_SETLK, &lock) && errno != EINVAL)
        return false;
    base = (void *)syscall(SYS_mmap, NULL, pool->size, protection, MAP_SHARED, fd, 0L);
    if (base == MAP_FAILED)
        return false;
    if (!pl_has_superblock(pool, base)) {
        syscall(SYS_munmap, base, pool->size);
        return false;
    }
    mount->base = base;
    memset(mount->token, 0, sizeof(mount->token));
    if (pool->token)
        memcpy(mount->token, mount->base + pool->token, sizeof(mount->token));
    return true;
}

/* Ask the daemon for the pool and map it, if it is one to be trusted. The mount's state from now on. */
static int attach(struct pl_mount *mount, int fd) {
    bool mapped;
    int pool;

    if (!pl_trusted(mount->device))
        return PL_NOT_DAXFS;
    if (syscall(SYS_ioctl, fd, DAXFS_IOC_POOL, &mount->pool))
        return errno == ENOSPC ? PL_KNOWN : PL_NOT_DAXFS; /* no block for the token, now */
    if (!pl_sound_pool(&mount->pool))
        return PL_NOT_DAXFS;
    mount->writable = true;
    pool = pl_open_pool(&mount->pool, O_RDWR);
    if (pool < 0) {
        mount->writable = false;
        pool = pl_open_pool(&mount->pool, O_RDONLY);
    }
    if (pool < 0)
        return PL_NOT_DAXFS;
    if (mount->writable && mount->pool.persistence == DAXFS_LINES && !pl_lines_known())
        mount->writable = false;
    atomic_store(&mount->id, pl_mount_id(fd));
    atomic_store(&mount->doubtful, false);
    mapped = map_pool(mount, pool);
    syscall(SYS_close, pool);
    mount->attached++;
    atomic_store(&mount->stays, mount->attached > OFTEN);
    return mapped ? PL_READY : PL_NOT_DAXFS;
}

struct pl_mount *pl_mount_of(int fd, dev_t device) {
    struct statfs system;

    for (int i = 0; i < MOUNTS; i++) {
        struct pl_mount *mount = &mounts[i];
        int state = atomic_load(&mount->state);

        if (state == PL_FREE && atomic_compare_exchange_strong(&mount->state, &state, PL_NEW)) {
            mount->device = device;
            mount->writable = true;
            state = syscall(SYS_fstatfs, fd, &system) || system.f_type != FUSE_MAGIC ? PL_NOT_DAXFS : PL_KNOWN;
            atomic_store(&mount->state, state);
        }
        if (state == PL_NEW)
            return NULL; /* another thread is at it, perhaps with the same one: this file goes without */
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
 * does not count, since it may lie; from here on the file keeps the mount. */
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
            good = still_trusted(fd, mount);
        errno = saved;
        return good;
    }
    if (state != PL_KNOWN || !atomic_compare_exchange_strong(&mount->state, &state, PL_BUSY))
        return false;
    state = attach(mount, fd);
    atomic_store(&mount->state, state);
    errno = saved;
    return state == PL_READY;
}

void pl_leave(struct pl_mount *mount) {
    int state = PL_READY, saved = errno;

    if (atomic_load(&mount->stays))
        atomic_store(&mount->doubtful, true); /* before anybody could count himself as the first */
    if (atomic_fetch_sub(&mount->users, 1) != 1 || atomic_load(&mount->stays) ||
        !atomic_compare_exchange_strong(&mount->state, &state, PL_BUSY))
        return;
    /* Somebody who came meanwhile counted itself before it looked whether the pool is mapped. */
    if (atomic_load(&mount->users)) {
        atomic_store(&mount->state, PL_READY);
        return;
    }
    syscall(SYS_munmap, mount->base, mount->pool.size);
    mount->base = NULL;
    atomic_store(&mount->state, PL_KNOWN);
    errno = saved;
}

bool pl_same_pool(struct pl_mount *mount, const struct daxfs_lease *lease) {
    if (lease->device != mount->pool.device || lease->inode != mount->pool.inode) {
        atomic_store(&mount->state, PL_STALE); /* another mount has got this st_dev */
        return false;
    }
    if (lease->lock != mount->pool.lock) {
        atomic_store(&mount->stays, false); /* it was mounted anew: asked again when no file is open */
        return false;
    }
    return !lease->slot || lease->slot <= mount->pool.size - sizeof(struct daxfs_slot);
}

void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address) {
    void *made;

    /* A length of 0 copies a shared mapping: there is no descriptor of the pool that a program could have closed. */
    made = (void *)syscall(SYS_mremap, mount->base + pool_offset, 0UL, length, MREMAP_MAYMOVE | MREMAP_FIXED, address);
    if (made != MAP_FAILED && protection != (PROT_READ | PROT_WRITE))
        syscall(SYS_mprotect, made, length, protection);
    return made;
}

int pl_flush(const struct pl_mount *mount, const char *address, size_t length) {
    uintptr_t first = (uintptr_t)address & ~(PAGE - 1);

    if (mount->pool.persistence == DAXFS_LINES)
        pl_write_back(address, length);
    if (mount->pool.persistence == DAXFS_MSYNC &&
        syscall(SYS_msync, first, (uintptr_t)address + length - first, MS_SYNC))
        return errno;
    return 0;
}
