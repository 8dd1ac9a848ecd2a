/* An answer is checked against its request before any of it is used, because its numbers are offsets and lengths of
 * memory. daxfs/direct/answers.py has the same checks in Python. A sound answer may still name memory that this process
 * has not mapped (the pool has grown): the caller compares with the mapped size.
 */
#include "ioctls.h"

#include <errno.h>
#include <string.h>

#include "process.h"

/* Whether an answer can be the description of a pool. */
static bool sound_pool(const struct daxfs_pool *pool) {
    return pool->version == DAXFS_VERSION && pool->persistence <= DAXFS_LINES && pool->size >= DAXFS_LEAST_POOL &&
           pool->size <= DAXFS_FURTHEST && pool->block_size >= DAXFS_LEAST_BLOCK &&
           pool->block_size <= DAXFS_MOST_BLOCK && !(pool->block_size & (pool->block_size - 1)) &&
           !(pool->align & (pool->align - 1)) && pool->align <= pool->size && pool->path[0] == '/' &&
           memchr(pool->path, 0, sizeof(pool->path)) && pool->token <= pool->size - DAXFS_TOKEN;
}

static bool sound_extent(const struct daxfs_extent *extent, uint64_t offset, uint64_t end) {
    if (extent->offset != offset || !extent->length || extent->length > end - offset || extent->kind > DAXFS_KERNEL)
        return false;
    return extent->kind != DAXFS_MEMORY || extent->pool_offset <= DAXFS_FURTHEST;
}

/* Whether an answer fits its request, and its extents follow each other without gaps. */
static bool sound_lease(const struct daxfs_lease *lease, uint64_t offset, uint64_t length, uint32_t flags) {
    uint64_t place = offset;

    if (lease->offset != offset || lease->length != length || lease->flags != flags || lease->size > DAXFS_FURTHEST)
        return false;
    if (lease->count > sizeof(lease->extents) / sizeof(lease->extents[0]) || lease->next < offset ||
        lease->next > offset + length || lease->slot > DAXFS_FURTHEST || lease->slot % sizeof(uint64_t))
        return false;
    for (uint32_t i = 0; i < lease->count; i++) {
        if (!sound_extent(&lease->extents[i], place, lease->next))
            return false;
        place += lease->extents[i].length;
    }
    return place == lease->next;
}

static bool power_of_two(uint32_t number) {
    return number && !(number & (number - 1));
}

int pl_ioctl_pool(int fd, struct daxfs_pool *pool) {
    if (pl_call(SYS_ioctl, fd, DAXFS_IOC_POOL, pool))
        return errno;
    return sound_pool(pool) ? 0 : EPROTO;
}

int pl_ioctl_lease(int fd, const uint8_t *token, struct daxfs_lease *lease) {
    uint64_t offset = lease->offset, length = lease->length;
    uint32_t flags = lease->flags;

    lease->holder = pl_holder();
    memcpy(lease->token, token, sizeof(lease->token));
    if (pl_call(SYS_ioctl, fd, DAXFS_IOC_LEASE, lease))
        return errno;
    return likely(sound_lease(lease, offset, length, flags)) ? 0 : EPROTO;
}

int pl_ioctl_stored(int fd, uint32_t flags) {
    struct daxfs_stored stored = {.flags = flags};

    return pl_call(SYS_ioctl, fd, DAXFS_IOC_STORED, &stored) ? errno : 0;
}

int pl_ioctl_appended(int fd, struct daxfs_appended *appended) {
    appended->holder = pl_holder();
    return pl_call(SYS_ioctl, fd, DAXFS_IOC_APPENDED, appended) ? errno : 0;
}

int pl_ioctl_armed(int fd, struct daxfs_armed *armed) {
    uint32_t wanted = armed->count;

    armed->holder = pl_holder();
    if (pl_call(SYS_ioctl, fd, DAXFS_IOC_ARMED, armed))
        return errno;
    if (wanted > DAXFS_COMMIT_WORDS || armed->count > wanted)
        return EPROTO;
    for (uint32_t i = 0; i < armed->count; i++)
        if (armed->words[i].pool_offset > DAXFS_FURTHEST || armed->words[i].pool_offset % sizeof(uint32_t))
            return EPROTO;
    return 0;
}

int pl_ioctl_atomic(int fd, struct daxfs_atomic *write) {
    if (pl_call(SYS_ioctl, fd, DAXFS_IOC_ATOMIC, write))
        return errno;
    return power_of_two(write->least) && power_of_two(write->most) && write->least <= write->most ? 0 : EPROTO;
}

/* A session without the ioctl knows fsync(2). On the root directory it makes everything durable, on another file
 * everything but the times of other files. */
int pl_ioctl_sync(int fd) {
    if (!pl_call(SYS_ioctl, fd, DAXFS_IOC_SYNC) || (errno == ENOTTY && !pl_call(SYS_fsync, fd)))
        return 0;
    return errno;
}
