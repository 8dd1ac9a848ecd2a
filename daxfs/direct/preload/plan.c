/* A range that cached extents cover needs no request. Otherwise the first request changes nothing. Later requests have
 * DAXFS_MAP: ranges without memory become page-cache mapped for all clients.
 */
#include "plan.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "lease.h"
#include "pins.h"
#include "trust.h"

#ifdef PL_MAPS

#define HUGE_PAGE (2UL << 20)
#define MOST_TRIES 8      /* plans for one mapping, if the file changes meanwhile */
#define MOST_QUESTIONS 64 /* requests of DAXFS_EXTENTS each: a file in more pieces is mapped through the kernel */

struct pl_book pl_plan;
static struct pl_book around;

bool pl_plan_add(struct pl_question *question, uint64_t offset, uint64_t end, uint64_t pool, uint32_t kind) {
    struct pl_piece *last = pl_plan.count ? &pl_plan.pieces[pl_plan.count - 1] : NULL;
    uint64_t length = end - offset;
    char *start = (char *)(offset - question->offset);

    if ((offset | end | pool) & (PL_PAGE - 1))
        return false;
    if (last && last->kind == kind &&
        (kind != DAXFS_MEMORY || last->pool + (uint64_t)(last->end - last->start) == pool)) {
        last->end += length;
        return true;
    }
    if (!pl_book_room(&pl_plan, 1))
        return false;
    pl_plan.pieces[pl_plan.count++] = (struct pl_piece){.start = start,
                                                        .end = start + length,
                                                        .offset = offset,
                                                        .pool = pool,
                                                        .group = question->group,
                                                        .kind = kind,
                                                        .protection = question->protection};
    return true;
}

/* Add a lease to the plan. False: it names memory that this process has not mapped (the pool has grown). */
static bool take(struct pl_question *question, const struct daxfs_lease *lease, uint64_t end) {
    const struct pl_mount *mount = question->group->file->mount;

    for (uint32_t i = 0; i < lease->count; i++) {
        const struct daxfs_extent *extent = &lease->extents[i];
        uint64_t until = extent->offset + extent->length < end ? extent->offset + extent->length : end;
        uint64_t pool = extent->pool_offset;
        bool memory = extent->kind == DAXFS_MEMORY;

        if (extent->offset >= end)
            break;
        if (memory && (pool > mount->mapped || extent->length > mount->mapped - pool))
            return false;
        if (!memory && extent->offset < lease->size)
            question->holes += (until < lease->size ? until : lease->size) - extent->offset;
        if (!pl_plan_add(question, extent->offset, until, memory ? pool : 0, memory ? DAXFS_MEMORY : DAXFS_KERNEL))
            return false;
    }
    return true;
}

/* Make the plan by requests for the whole range, with these flags. */
static bool ask(struct pl_question *question, uint32_t flags) {
    struct pl_mount *mount = question->group->file->mount;
    uint64_t offset = question->offset, end = question->offset + question->length;
    struct daxfs_lease lease;

    pl_plan.count = 0;
    question->holes = 0;
    for (int i = 0; offset < end; i++) {
        memset(&lease, 0, offsetof(struct daxfs_lease, extents));
        lease.offset = offset;
        lease.length = end - offset;
        lease.flags = flags;
        if (i == MOST_QUESTIONS || pl_ask(question->fd, question->group->file, &lease) ||
            !pl_same_pool(mount, &lease))
            return false;
        if (offset != question->offset && question->group->epoch != lease.epoch) {
            /* The file changed between two requests, so the answers don't fit together: begin again. */
            pl_plan.count = 0;
            question->holes = 0;
            offset = question->offset;
            question->group->epoch = 0;
            continue;
        }
        question->size = lease.size;
        question->group->epoch = lease.epoch;
        question->group->entry = lease.slot ? (const struct daxfs_slot *)(mount->base + lease.slot) : NULL;
        if (!take(question, &lease, end))
            return false;
        if (lease.next <= offset)
            break;
        offset = lease.next;
    }
    return offset >= end || pl_plan_add(question, pl_page_up(offset), end, 0, DAXFS_KERNEL);
}

/* Make the plan from cached extents, if they cover the whole range and all of it is memory. */
static bool recall(struct pl_question *question, bool store) {
    struct pl_group *group = question->group;
    struct pl_file *file = group->file;
    uint64_t offset = question->offset, end = question->offset + question->length;
    bool good;

    if (!pl_pin(question->fd, file))
        return false;
    pl_plan.count = 0;
    good = file->leased && file->entry && (file->stores || !store) && pl_holds(file);
    while (good && offset < end) {
        const struct pl_extent *extent = pl_find(&file->extents, offset);

        good = extent && extent->kind == DAXFS_MEMORY && extent->end > offset &&
               pl_plan_add(question, offset, extent->end < end ? extent->end : end,
                           extent->pool + (offset - extent->start), DAXFS_MEMORY);
        offset = extent ? extent->end : end;
    }
    group->entry = file->entry;
    group->epoch = file->epoch;
    pl_unpin(file);
    return good;
}

/* Whether to give blocks to the holes of the range. Filling DAXFS_MOST_FILLED bytes costs as much as stores to one or
 * two thousand pages through the kernel. A file with more holes may be sparse on purpose, and gets no blocks. */
static bool worth_filling(const struct pl_question *question) {
    return question->holes &&
           (question->holes <= DAXFS_MOST_FILLED || question->group->flags & (MAP_POPULATE | MAP_LOCKED));
}

/* ---- pools with units larger than pages */

bool pl_announce(int fd, struct pl_file *file, uint64_t offset, uint64_t length, struct daxfs_lease *lease) {
    memset(lease, 0, offsetof(struct daxfs_lease, extents));
    lease->offset = offset;
    lease->length = length;
    lease->flags = DAXFS_MAP | DAXFS_PAGES;
    atomic_store(&file->announced, true);
    return !pl_ask(fd, file, lease) && lease->next == offset + length && pl_same_pool(file->mount, lease);
}

/* Ask about the question's range and a unit before and after it: `around` becomes its pieces. A unit at the border is
 * judged as a whole, so that all mappings of a page are alike. */
static bool ask_around(struct pl_question *question, uint32_t flags) {
    uint64_t unit = question->group->file->mount->unit, end = question->offset + question->length;
    struct pl_question wide = *question;
    struct pl_book made;
    bool good;

    wide.offset -= wide.offset < unit ? wide.offset : unit;
    wide.length = end + unit - wide.offset;
    good = ask(&wide, flags);
    question->size = wide.size;
    made = pl_plan, pl_plan = around, around = made;
    question->holes = 0;
    for (size_t i = 0; good && i < around.count; i++) {
        const struct pl_piece *piece = &around.pieces[i];
        uint64_t from = piece->offset, to = from + (uint64_t)(piece->end - piece->start);

        from = from < question->offset ? question->offset : from;
        to = to < end ? to : end;
        to = to < wide.size ? to : wide.size;
        if (piece->kind != DAXFS_MEMORY && from < to)
            question->holes += to - from;
    }
    return good;
}

/* Find the whole units of a piece of memory that lie in the question's range. */
static bool whole_units(const struct pl_question *question, const struct pl_piece *piece, uint64_t *from,
                        uint64_t *to) {
    uint64_t unit = question->group->file->mount->unit, end = question->offset + question->length;
    uint64_t low = piece->offset + (-piece->pool & (unit - 1)), high = piece->offset;

    high += (uint64_t)(piece->end - piece->start);
    high = high < end ? high : end;
    if (low < question->offset)
        low += (question->offset - low + unit - 1) / unit * unit;
    *from = low;
    *to = low < high ? low + (high - low) / unit * unit : low;
    return piece->kind == DAXFS_MEMORY && pl_is_shared(question->group) && *from < *to;
}

/* Where in a unit the memory of file offset 0 would lie, were the file one piece with this memory. */
static uint64_t residue(uint64_t pool, uint64_t offset, uint64_t unit) {
    return (pool - offset) & (unit - 1);
}

/* Return the residue that the most bytes of the range have, or the one that the address requires. */
static uint64_t best_residue(const struct pl_question *question) {
    uint64_t unit = question->group->file->mount->unit, best = 0, most = 0, from, to;

    if (question->address)
        return residue((uintptr_t)question->address, question->offset, unit);
    for (size_t i = 0; i < around.count; i++) {
        if (!whole_units(question, &around.pieces[i], &from, &to) || to - from <= most)
            continue;
        most = to - from;
        best = residue(around.pieces[i].pool, around.pieces[i].offset, unit);
    }
    return best;
}

/* Make the plan of whole units, and of the kernel's pages for the rest. */
static bool choose_units(struct pl_question *question) {
    uint64_t unit = question->group->file->mount->unit, end = question->offset + question->length;
    uint64_t best = best_residue(question), place = question->offset, from, to;

    pl_plan.count = 0;
    for (size_t i = 0; i < around.count; i++) {
        const struct pl_piece *piece = &around.pieces[i];

        if (!whole_units(question, piece, &from, &to) || residue(piece->pool, piece->offset, unit) != best)
            continue;
        if (place < from && !pl_plan_add(question, place, from, 0, DAXFS_KERNEL))
            return false;
        if (!pl_plan_add(question, from, to, piece->pool + (from - piece->offset), DAXFS_MEMORY))
            return false;
        place = to;
    }
    return place >= end || pl_plan_add(question, place, end, 0, DAXFS_KERNEL);
}

/* Tell the daemon which pages the plan maps through the kernel. */
static bool announce_plan(struct pl_question *question) {
    struct daxfs_lease lease;

    for (size_t i = 0; i < pl_plan.count; i++) {
        const struct pl_piece *piece = &pl_plan.pieces[i];

        if (piece->kind == DAXFS_MEMORY)
            continue;
        if (!pl_announce(question->fd, question->group->file, piece->offset, (uint64_t)(piece->end - piece->start),
                         &lease))
            return false;
        question->group->epoch = lease.epoch;
    }
    return true;
}

/* An announcement that is new ends the epoch, so the plan is made again. */
static bool plan_units(struct pl_question *question, bool fill) {
    struct pl_group *group = question->group;
    bool store = pl_stores(group->file, group->flags);

    for (int i = 0; i < MOST_TRIES; i++) {
        uint64_t epoch;

        if (!ask_around(question, store ? DAXFS_WRITE : 0))
            return false;
        epoch = group->epoch;
        if (fill && store && question->protection & PROT_WRITE && worth_filling(question)) {
            fill = false; /* once: what was announced stays a hole */
            ask(question, DAXFS_WRITE | DAXFS_FILL);
            continue;
        }
        if (!choose_units(question) || !announce_plan(question))
            return false;
        if (group->epoch == epoch)
            return true;
    }
    return false;
}

/* The first request has no DAXFS_MAP, because a hole that becomes page-cache mapped stays so for all clients. */
bool pl_plan_make(struct pl_question *question, bool fill) {
    struct pl_group *group = question->group;
    bool store = pl_stores(group->file, group->flags);
    uint32_t flags = DAXFS_MAP | (store ? DAXFS_WRITE : 0U);

    if (pl_is_coarse(group->file->mount))
        return plan_units(question, fill);
    if (recall(question, store))
        return true;
    if (fill && store && question->protection & PROT_WRITE && ask(question, DAXFS_WRITE)) {
        if (!question->holes && pl_page_up(question->size) >= question->offset + question->length)
            return true;
        if (worth_filling(question) && ask(question, flags | DAXFS_FILL))
            return true;
    }
    return ask(question, flags);
}

/* ---- mapping */

enum { FAR_BITS = 40 }; /* 1 TiB */

/* Map a piece that ends each access with SIGBUS: from beyond the pool's end, and so far that growth does not reach it where
 * the pool's file system knows such offsets. */
static void *lay_past_eof(const struct pl_piece *piece, size_t length, int pool) {
    const struct pl_mount *mount = piece->group->file->mount;
    uint64_t end = pl_page_up(mount->mapped), far = mount->pool.rdevice ? end : end + ((uint64_t)1 << FAR_BITS);
    void *made = pl_raw_mmap(piece->start, length, piece->protection, MAP_FIXED | MAP_PRIVATE, pool, (off_t)far);

    if (made == MAP_FAILED)
        made = pl_raw_mmap(piece->start, length, piece->protection, MAP_FIXED | MAP_PRIVATE, pool, (off_t)end);
    return made;
}

/* Map one piece at its address. */
static bool lay_piece(const struct pl_piece *piece, int fd, int pool) {
    const struct pl_group *group = piece->group;
    const struct pl_mount *mount = group->file->mount;
    size_t length = (size_t)(piece->end - piece->start);
    int flags = (group->flags & ~(MAP_FIXED_NOREPLACE | MAP_32BIT)) | MAP_FIXED;
    int pool_flags = pl_is_shared(group) ? (flags & ~MAP_TYPE) | mount->map_flags : flags;
    void *made;

    if (piece->kind == DAXFS_KERNEL)
        made = pl_raw_mmap(piece->start, length, piece->protection, flags, fd, (off_t)piece->offset);
    else if (piece->kind == PL_PAST_EOF)
        made = lay_past_eof(piece, length, pool);
    else if (pool >= 0)
        made = pl_raw_mmap(piece->start, length, piece->protection, pool_flags, pool, (off_t)piece->pool);
    else
        made = pl_map(mount, piece->pool, length, piece->protection, piece->start);
    if (made == MAP_FAILED)
        return false;
    if (piece->kind == DAXFS_MEMORY && mount->pool.persistence == DAXFS_VOLATILE && length >= HUGE_PAGE)
        pl_call(SYS_madvise, made, length, MADV_HUGEPAGE);
    return true;
}

/* Whether memory must be mapped from a descriptor: a copy of the pool's mapping is shared, and has none of these flags.
 * Mappings with large pages can't be copied at all. */
static bool needs_pool(const struct pl_group *group) {
    return !pl_is_shared(group) || group->flags & (MAP_SYNC | MAP_POPULATE | MAP_LOCKED) ||
           pl_is_coarse(group->file->mount);
}

bool pl_plan_lay(char *start, int fd, struct pl_group *group) {
    bool good = true, store = pl_is_shared(group) && group->file->writable;
    int pool = -1;

    for (size_t i = 0; i < pl_plan.count; i++)
        if (pl_plan.pieces[i].kind == PL_PAST_EOF || (pl_plan.pieces[i].kind == DAXFS_MEMORY && needs_pool(group)))
            pool = pool >= 0 ? pool : pl_open_pool(&group->file->mount->pool, store ? O_RDWR : O_RDONLY);
    for (size_t i = 0; good && i < pl_plan.count; i++) {
        struct pl_piece *piece = &pl_plan.pieces[i];

        piece->start = start + (uintptr_t)piece->start;
        piece->end = start + (uintptr_t)piece->end;
        if (pool < 0 && (piece->kind == PL_PAST_EOF || (piece->kind == DAXFS_MEMORY && needs_pool(group))))
            good = false;
        else
            good = lay_piece(piece, fd, pool);
    }
    if (pool >= 0)
        pl_call(SYS_close, pool);
    return good;
}

char *pl_plan_reserve(void *hint, size_t length, int flags) {
    const struct pl_mount *mount = pl_plan.pieces[0].group->file->mount;
    size_t least = pl_is_coarse(mount) ? mount->unit : HUGE_PAGE, align = least > HUGE_PAGE ? least : HUGE_PAGE;
    int wanted = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (flags & (MAP_FIXED_NOREPLACE | MAP_32BIT));
    uintptr_t distance = 0, start, ahead;
    size_t slack = 0;
    char *made;

    if (pl_is_coarse(mount) && !(flags & MAP_FIXED_NOREPLACE))
        hint = NULL; /* a wish, which would hardly fit */
    for (size_t i = 0; !hint && i < pl_plan.count && !slack; i++) {
        const struct pl_piece *piece = &pl_plan.pieces[i];

        if (piece->kind == DAXFS_MEMORY && (size_t)(piece->end - piece->start) >= least) {
            distance = (piece->pool - (uintptr_t)piece->start) % align;
            slack = align;
        }
    }
    made = pl_raw_mmap(hint, length + slack, PROT_NONE, wanted, -1, 0);
    if (made == MAP_FAILED || !slack)
        return made;
    start = (uintptr_t)made;
    ahead = (distance - start) % align;
    if (ahead)
        pl_call(SYS_munmap, made, ahead);
    if (slack - ahead)
        pl_call(SYS_munmap, made + ahead + length, slack - ahead);
    return made + ahead;
}

#endif
