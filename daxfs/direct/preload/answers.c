/* What the daemon answers, looked at before anything of it is used: every number in it is a place or a length.
 *
 * daxfs/direct/answers.py is the same in Python. A sound answer may still name memory that this process has not mapped
 * (the pool has grown): whoever takes it over compares with the mapped size.
 */
#include "preload.h"

#include <string.h>

bool pl_sound_pool(const struct daxfs_pool *pool) {
    return pool->version == DAXFS_VERSION && pool->persistence <= DAXFS_LINES && pool->size >= DAXFS_LEAST_POOL &&
           pool->size <= DAXFS_FURTHEST && pool->block_size >= DAXFS_LEAST_BLOCK && pool->block_size <= DAXFS_MOST_BLOCK &&
           !(pool->block_size & (pool->block_size - 1)) && pool->path[0] == '/' &&
           memchr(pool->path, 0, sizeof(pool->path)) && pool->token <= pool->size - DAXFS_TOKEN;
}

static bool sound_extent(const struct daxfs_extent *extent, uint64_t offset, uint64_t end) {
    if (extent->offset != offset || !extent->length || extent->length > end - offset || extent->kind > DAXFS_KERNEL)
        return false;
    return extent->kind != DAXFS_MEMORY || extent->pool_offset <= DAXFS_FURTHEST;
}

bool pl_sound_lease(const struct daxfs_lease *lease, uint64_t offset, uint64_t length, uint32_t flags) {
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
