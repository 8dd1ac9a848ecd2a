/* For a pool that needs msync(2) a file has one dirty range, from the lowest to the highest byte that was stored. */
#include "stores.h"

#include <errno.h>
#include <time.h>

#include "ioctls.h"
#include "process.h"

#define LAG 1000 /* ms by which a file's times may lag behind stores that are only made durable by fdatasync(2) */

uint64_t pl_now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

bool pl_times_lag(struct pl_file *file) {
    return atomic_load(&file->stored) && pl_now() - atomic_load(&file->reported) >= LAG;
}

void pl_stored(struct pl_file *file, uint64_t pool_offset, uint64_t length) {
    if (!atomic_load_explicit(&file->stored, memory_order_relaxed))
        atomic_store(&file->stored, true);
    pl_dirtied(file, pool_offset, length);
}

void pl_dirtied(struct pl_file *file, uint64_t pool_offset, uint64_t length) {
    if (file->mount->pool.persistence != DAXFS_MSYNC)
        return;
    for (uint64_t low = atomic_load(&file->dirty_low); pool_offset < low;)
        if (atomic_compare_exchange_weak(&file->dirty_low, &low, pool_offset))
            break;
    for (uint64_t high = atomic_load(&file->dirty_high); pool_offset + length > high;)
        if (atomic_compare_exchange_weak(&file->dirty_high, &high, pool_offset + length))
            break;
}

int pl_flush_stores(struct pl_file *file) {
    uint64_t low = atomic_exchange(&file->dirty_low, UINT64_MAX), high = atomic_exchange(&file->dirty_high, 0);

    return low < high ? pl_flush(file->mount, file->mount->base + low, high - low) : 0;
}

bool pl_notify_with(int fd, struct pl_file *file, uint32_t flags) {
    bool before = atomic_exchange(&file->stored, false), unsynced = false;

    if (pl_filtered)
        return false;
    if (flags & DAXFS_DURABLE)
        unsynced = atomic_exchange(&file->appends.unsynced, false);
    if (!pl_ioctl_stored(fd, flags)) {
        atomic_store(&file->reported, pl_now());
        return true;
    }
    if (before)
        atomic_store(&file->stored, true);
    if (unsynced)
        atomic_store(&file->appends.unsynced, true);
    return false;
}

void pl_notify(int fd, struct pl_file *file) {
    int saved = errno;

    if (atomic_load(&file->stored))
        pl_notify_with(fd, file, 0);
    errno = saved;
}
