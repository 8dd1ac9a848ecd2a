/* The table of mounts has one entry for each st_dev on which a file was opened. An entry's state changes by compare and
 * swap; the thread that has set PL_BUSY owns the entry.
 */
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include "copy.h"
#include "guard.h"
#include "ioctls.h"
#include "process.h"
#include "trust.h"

#define FUSE_MAGIC 0x65735546
#define PAGE 4096UL
#define OFTEN 8 /* a pool that was mapped more often stays mapped while no file is open */

struct pl_mount pl_mounts[PL_MOUNTS];

uintptr_t pl_page_size(void) {
    static _Atomic uintptr_t known;
    uintptr_t size = atomic_load_explicit(&known, memory_order_relaxed);

    if (unlikely(!size)) {
        size = (uintptr_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&known, size, memory_order_relaxed);
    }
    return size;
}

enum { ROOM_BITS = 36 }; /* 64 GiB */

/* How many bytes to map: of a file more than it has, so that what is granted after it has grown is mapped already. A page
 * past the end is SIGBUS until the file has it. With large pages (hugetlbfs) mmap(2) would make the file longer itself. */
static size_t with_room(const struct daxfs_pool *pool) {
    if (pool->rdevice || pool->align > PL_PAGE || pool->size > DAXFS_FURTHEST / 4)
        return pool->size;
    return 2 * pool->size + ((size_t)1 << ROOM_BITS);
}

/* Map the whole pool. Without MAP_SYNC a line that was written back may lie in a block of the pool's file that its file
 * system has not committed yet. */
static char *map_whole(struct pl_mount *mount, int fd) {
    const struct daxfs_pool *pool = &mount->pool;
    int protection = mount->writable ? PROT_READ | PROT_WRITE : PROT_READ;
    bool file = !pool->rdevice;

    char *base = MAP_FAILED;

    mount->map_flags = pool->persistence == DAXFS_LINES && file ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
    mount->mapped = with_room(pool);
    if (mount->mapped > pool->size)
        base = (void *)pl_call(SYS_mmap, NULL, mount->mapped, protection, mount->map_flags, fd, 0L);
    if (base != MAP_FAILED)
        return base;
    mount->mapped = pool->size; /* the process may have few addresses (RLIMIT_AS) */
    return (void *)pl_call(SYS_mmap, NULL, mount->mapped, protection, mount->map_flags, fd, 0L);
}

/* Lock the opened pool and map it. The mapping keeps the file open, and so the lock. */
static bool map_pool(struct pl_mount *mount, int fd) {
    const struct daxfs_pool *pool = &mount->pool;
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
    char *base;
    bool sound;

    lock.l_start = (off_t)(DAXFS_LOCKS + pool->lock);
    /* A kind of file without locks returns EINVAL. */
    if (pl_call(SYS_fcntl, fd, F_OFD_SETLK, &lock) && errno != EINVAL)
        return false;
    base = map_whole(mount, fd);
    if (base == MAP_FAILED)
        return false;
    atomic_store(&mount->missing, false);
    pl_guard(base, mount->mapped, &mount->missing);
    memset(mount->token, 0, sizeof(mount->token));
    sound = pl_has_superblock(pool, base);
    if (sound && pool->token)
        memcpy(mount->token, base + pool->token, sizeof(mount->token));
    if (!sound || atomic_load(&mount->missing)) {
        pl_unguard(base);
        pl_call(SYS_munmap, base, mount->mapped);
        return false;
    }
    if (mount->anchor)
        pl_call(SYS_munmap, mount->anchor, mount->unit);
    mount->unit = pool->align > PL_PAGE ? pool->align : PL_PAGE;
    mount->anchor = (void *)pl_call(SYS_mmap, NULL, mount->unit, PROT_NONE, MAP_SHARED, fd, 0);
    if (mount->anchor == MAP_FAILED)
        mount->anchor = NULL;
    mount->base = base;
    return true;
}

/* Ask the daemon for the pool and map it, if the mount is trusted. Return the mount's new state. */
static int attach(struct pl_mount *mount, int fd) {
    bool mapped;
    int pool, failed;

    mount->denied = !pl_trusted(mount->device);
    if (mount->denied)
        return PL_NOT_DAXFS;
    failed = pl_ioctl_pool(fd, &mount->pool);
    if (failed)
        return failed == ENOSPC ? PL_KNOWN : PL_NOT_DAXFS; /* ENOSPC: no free block for the token at present */
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
            return NULL; /* another thread sets up the entry, perhaps for this mount: this file does without the pool */
        if (state == PL_STALE || mount->device != device)
            continue;
        if (state == PL_NOT_DAXFS)
            return NULL;
        atomic_fetch_add(&mount->users, 1);
        return mount;
    }
    return NULL;
}

/* Whether the mapped pool still belongs to this file's mount after a while without open files. The mount's own answers
 * do not count, because they may be forged. From here on the open file keeps the mount. */
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
        if (unlikely(atomic_load(&mount->missing))) {
            atomic_store(&mount->stays, false); /* the last close unmaps it, and a later open asks again */
            good = false;
        }
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

/* Unmap the anchor, unless mappings of files are left, for which it keeps the lock. */
static void release(struct pl_mount *mount) {
    if (mount->anchor && !mount->mappings)
        pl_call(SYS_munmap, mount->anchor, mount->unit), mount->anchor = NULL;
}

void pl_unmap_pool(struct pl_mount *mount) {
    pl_unguard(mount->base);
    pl_call(SYS_munmap, mount->base, mount->mapped);
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
    /* A thread that came meanwhile counted itself before it checked whether the pool is mapped. */
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
        atomic_store(&mount->state, PL_STALE); /* another mount has this st_dev now */
        return false;
    }
    if (lease->lock != mount->pool.lock) {
        atomic_store(&mount->stays, false); /* a new mount: the pool is requested again after the last close */
        return false;
    }
    return !lease->slot || lease->slot <= mount->mapped - sizeof(struct daxfs_slot);
}

void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address) {
    void *made;

    /* An old length of 0 copies a shared mapping. So the library needs no descriptor, which a program could close. */
    made = (void *)pl_call(SYS_mremap, mount->base + pool_offset, 0UL, length, MREMAP_MAYMOVE | MREMAP_FIXED, address);
    if (made != MAP_FAILED && protection != (PROT_READ | PROT_WRITE))
        pl_call(SYS_mprotect, made, length, protection);
    return made;
}

int pl_flush(const struct pl_mount *mount, const char *address, size_t length) {
    uintptr_t first = (uintptr_t)address & ~(PAGE - 1);

    if (mount->pool.persistence == DAXFS_LINES && !pl_guarded_write_back(address, length))
        return EIO;
    if (mount->pool.persistence != DAXFS_VOLATILE && unlikely(atomic_load(&mount->missing)))
        return EIO;
    if (mount->pool.persistence == DAXFS_MSYNC &&
        pl_call(SYS_msync, first, (uintptr_t)address + length - first, MS_SYNC))
        return errno;
    return 0;
}
