/* Memory for long lists comes from mmap(2) and not from malloc, because the caller may be a signal handler. */
#include "extents.h"

#include <string.h>
#include <sys/mman.h>

#define EXTENTS_MOST (1U << 20)

static void free_list(struct pl_extents *extents) {
    if (extents->room > PL_FEW)
        pl_call(SYS_munmap, extents->list, extents->room * sizeof(struct pl_extent));
}

void pl_extents_reset(struct pl_extents *extents, struct pl_extent *few) {
    free_list(extents);
    *extents = (struct pl_extents){.list = few, .room = PL_FEW};
}

/* Make room for `count` extents in all. */
static bool make_room(struct pl_extents *extents, uint32_t count) {
    uint32_t room = 128;
    void *made;

    if (count <= extents->room)
        return true;
    if (count > EXTENTS_MOST)
        return false;
    while (room < count)
        room *= 2;
    made = (void *)pl_call(SYS_mmap, NULL, room * sizeof(struct pl_extent), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (made == MAP_FAILED)
        return false;
    memcpy(made, extents->list, extents->count * sizeof(struct pl_extent));
    free_list(extents);
    extents->list = made;
    extents->room = room;
    return true;
}

static bool put(struct pl_extents *extents, uint32_t at, const struct pl_extent *extent) {
    struct pl_extent *before = at ? &extents->list[at - 1] : NULL;

    if (before && before->end == extent->start && before->kind == extent->kind &&
        (extent->kind != DAXFS_MEMORY || before->pool + (before->end - before->start) == extent->pool)) {
        before->end = extent->end;
        return true;
    }
    if (!make_room(extents, extents->count + 1))
        return false;
    memmove(&extents->list[at + 1], &extents->list[at], (extents->count - at) * sizeof(*extent));
    extents->list[at] = *extent;
    extents->count++;
    return true;
}

/* Remove [start, end) from the list. */
static bool cut(struct pl_extents *extents, uint64_t start, uint64_t end) {
    uint32_t i = pl_first_after(extents, start);

    while (i < extents->count && extents->list[i].start < end) {
        struct pl_extent *extent = &extents->list[i], rest = *extent;

        if (extent->start < start) {
            extent->end = start;
            i++;
            if (rest.end > end) {
                rest.pool += end - rest.start;
                rest.start = end;
                return put(extents, i, &rest);
            }
        } else if (extent->end > end) {
            extent->pool += end - extent->start;
            extent->start = end;
            i++;
        } else {
            extents->count--;
            memmove(extent, extent + 1, (extents->count - i) * sizeof(*extent));
        }
    }
    return true;
}

bool pl_extents_take(struct pl_extents *extents, const struct daxfs_lease *lease, uint64_t mapped) {
    if (!cut(extents, lease->offset, lease->next))
        return false;
    for (uint32_t i = 0; i < lease->count; i++) {
        const struct daxfs_extent *from = &lease->extents[i];
        struct pl_extent extent = {from->offset, from->offset + from->length, from->pool_offset, from->kind, 0};

        if (from->kind == DAXFS_MEMORY &&
            (from->pool_offset > mapped || from->length > mapped - from->pool_offset))
            extent.kind = DAXFS_KERNEL;
        if (!put(extents, pl_first_after(extents, extent.start), &extent))
            return false;
    }
    return true;
}
