/* The cached extents of a file, in order.
 *
 * These functions touch only the list. The caller makes sure that no thread reads a list while it changes.
 */
#ifndef DAXFS_EXTENTS_H
#define DAXFS_EXTENTS_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* A cached extent. */
struct pl_extent {
    uint64_t start, end; /* in the file, bytes */
    uint64_t pool;       /* DAXFS_MEMORY: pool offset of `start` */
    uint32_t kind;       /* enum daxfs_kind */
    uint32_t unused;
};

#define PL_FEW 8 /* extents that a list holds before it takes memory from the kernel */

/* A list of extents, sorted by start, without overlaps. A gap is a range that is not known. */
struct pl_extents {
    struct pl_extent *list;
    uint32_t count, room;
};

/* Return the index of the first extent that ends after `offset`. */
static inline uint32_t pl_first_after(const struct pl_extents *extents, uint64_t offset) {
    uint32_t low = 0, high = extents->count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (extents->list[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Return the extent that contains `offset`, or NULL. */
static inline const struct pl_extent *pl_find(const struct pl_extents *extents, uint64_t offset) {
    uint32_t at = pl_first_after(extents, offset);

    return at < extents->count && extents->list[at].start <= offset ? &extents->list[at] : NULL;
}

/* Empty the list and give its memory back; `few` has room for PL_FEW extents. */
void pl_extents_reset(struct pl_extents *extents, struct pl_extent *few);
/* Replace the range of a lease by its extents. Memory past `mapped` is not mapped in this process (the pool has
 * grown) and becomes DAXFS_KERNEL. False: no memory for the list, whose content is then wrong. */
bool pl_extents_take(struct pl_extents *extents, const struct daxfs_lease *lease, uint64_t mapped);

#pragma GCC visibility pop

#endif
