/* The daemon may change the file during a load or store: the copy counts only if the epoch is the same afterwards. */
#include "memory.h"

#include <string.h>

#include "copy.h"
#include "pins.h"
#include "stores.h"

/* The position of a copy in a program's buffers. */
struct cursor {
    const struct iovec *vector;
    size_t done; /* bytes of the first buffer */
};

static void copy_out(struct cursor *cursor, const char *from, size_t length) {
    while (length) {
        size_t part = cursor->vector->iov_len - cursor->done;
        char *to = (char *)cursor->vector->iov_base + cursor->done;

        if (part > length)
            part = length;
        if (from) {
            pl_load(to, from, part);
            from += part;
        } else {
            memset(to, 0, part);
        }
        length -= part;
        cursor->done += part;
        if (cursor->done == cursor->vector->iov_len)
            *cursor = (struct cursor){cursor->vector + 1, 0};
    }
}

static void copy_in(struct cursor *cursor, char *to, size_t length, bool lines) {
    while (length) {
        size_t part = cursor->vector->iov_len - cursor->done;

        if (part > length)
            part = length;
        pl_store(to, (const char *)cursor->vector->iov_base + cursor->done, part, lines);
        to += part;
        length -= part;
        cursor->done += part;
        if (cursor->done == cursor->vector->iov_len)
            *cursor = (struct cursor){cursor->vector + 1, 0};
    }
}

static ssize_t load(const struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset) {
    uint64_t size = pl_size(file), end;
    struct cursor cursor = {vector, 0};

    if (offset >= size)
        return 0;
    end = total > size - offset ? size : offset + total;
    total = end - offset;
    for (const struct pl_extent *extent = NULL; offset < end; offset = extent->end) {
        const char *from = NULL;

        if (!extent || ++extent == file->extents.list + file->extents.count || extent->start != offset) {
            extent = pl_find(&file->extents, offset);
            if (!extent)
                return PL_UNKNOWN_PLACE;
        }
        if (extent->kind == DAXFS_KERNEL)
            return PL_NO;
        if (extent->kind == DAXFS_MEMORY)
            from = file->mount->base + extent->pool + (offset - extent->start);
        copy_out(&cursor, from, (extent->end < end ? extent->end : end) - offset);
    }
    return (ssize_t)total;
}

/* Return 0 if all of [offset, end) is memory, else a reason. */
static ssize_t storable(const struct pl_file *file, uint64_t offset, uint64_t end) {
    while (offset < end) {
        const struct pl_extent *extent = pl_find(&file->extents, offset);

        if (!extent)
            return PL_UNKNOWN_PLACE;
        if (extent->kind != DAXFS_MEMORY)
            return extent->kind == DAXFS_HOLE ? PL_IN_HOLE : PL_NO;
        offset = extent->end;
    }
    return 0;
}

ssize_t pl_put(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset) {
    bool lines = file->mount->pool.persistence == DAXFS_LINES;
    uint64_t end = offset + total;
    struct cursor cursor = {vector, 0};
    ssize_t found = storable(file, offset, end);

    if (found)
        return found;
    while (offset < end) {
        const struct pl_extent *extent = pl_find(&file->extents, offset);
        uint64_t length = (extent->end < end ? extent->end : end) - offset;
        uint64_t pool = extent->pool + (offset - extent->start);

        copy_in(&cursor, file->mount->base + pool, length, lines);
        pl_dirtied(file, pool, length);
        offset += length;
    }
    return 0;
}

static ssize_t store(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset) {
    ssize_t found;

    if (!file->stores)
        return PL_UNKNOWN_PLACE;
    if (offset + total > pl_size(file))
        return PL_BEYOND;
    found = pl_put(file, vector, total, offset);
    if (found)
        return found;
    if (!atomic_load_explicit(&file->stored, memory_order_relaxed))
        atomic_store(&file->stored, true);
    return (ssize_t)total;
}

static void count_use(struct pl_file *file) {
    uint64_t used = atomic_load_explicit(&file->used, memory_order_relaxed);

    if (used < 64) /* a rough count: enough to see that the lease paid */
        atomic_store_explicit(&file->used, used + 1, memory_order_relaxed);
}

ssize_t pl_attempt(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset,
                   bool write) {
    ssize_t done = PL_UNKNOWN_PLACE;

    if (!pl_pin(fd, file))
        return PL_NO;
    if (file->leased && pl_holds(file)) {
        done = write ? store(file, vector, total, offset) : load(file, vector, total, offset);
        if (done >= 0 && !pl_holds(file))
            done = PL_NO;
    }
    pl_unpin(file);
    if (likely(done >= 0))
        count_use(file);
    return done;
}
