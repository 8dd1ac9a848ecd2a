/* Where the pieces of a mapping come from: questions to the daemon, address space, and mapping anew what has changed.
 *
 * A mapping is laid out in pieces: the pool where the file has memory, the file itself (through the kernel) where it
 * has none and behind its end, so that SIGBUS comes where it always came. The daemon keeps others away from what is
 * mapped through the kernel (DAXFS_MAP). Everything here happens below the book's lock.
 */
#include "map.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef PL_MAPS

#define HUGE_PAGE (2UL << 20)
#define MOST_QUESTIONS 64 /* DAXFS_EXTENTS each: a file in more pieces is mapped through the kernel */

struct pl_book pl_plan;

void *pl_raw_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return (void *)pl_call(SYS_mmap, address, length, protection, flags, fd, offset);
}

uintptr_t pl_page_size(void) {
    static _Atomic uintptr_t known;
    uintptr_t size = atomic_load_explicit(&known, memory_order_relaxed);

    if (unlikely(!size)) {
        size = (uintptr_t)sysconf(_SC_PAGESIZE);
        atomic_store_explicit(&known, size, memory_order_relaxed);
    }
    return size;
}

uintptr_t pl_page_up(uintptr_t value) {
    return (value + PAGE - 1) & ~(PAGE - 1);
}

/* ---- questions */

static bool add(struct pl_question *question, uint64_t offset, uint64_t end, uint64_t pool, uint32_t kind) {
    struct pl_piece *last = pl_plan.count ? &pl_plan.pieces[pl_plan.count - 1] : NULL;
    uint64_t length = end - offset;
    char *start = (char *)(offset - question->offset);

    if ((offset | end | pool) & (PAGE - 1))
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

/* One answer into the plan. Memory that this process has not mapped (the pool has grown) can't be mapped here. */
static bool take(struct pl_question *question, const struct daxfs_lease *lease, uint64_t end) {
    const struct pl_mount *mount = question->group->file->mount;

    for (uint32_t i = 0; i < lease->count; i++) {
        const struct daxfs_extent *told = &lease->extents[i];
        uint64_t until = told->offset + told->length < end ? told->offset + told->length : end;
        bool memory = told->kind == DAXFS_MEMORY;

        if (told->offset >= end)
            break;
        if (memory && (told->pool_offset > mount->pool.size || told->length > mount->pool.size - told->pool_offset))
            return false;
        if (!memory && told->offset < lease->size)
            question->holes += (until < lease->size ? until : lease->size) - told->offset;
        if (!add(question, told->offset, until, memory ? told->pool_offset : 0, memory ? DAXFS_MEMORY : DAXFS_KERNEL))
            return false;
    }
    return true;
}

/* Ask for all of the range, with these flags. */
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
        if (i == MOST_QUESTIONS || pl_ask(question->fd, &lease) || !pl_same_pool(mount, &lease))
            return false;
        if (offset != question->offset && question->group->epoch != lease.epoch) {
            /* It changed between two questions: the answers don't fit together. */
            pl_plan.count = 0;
            question->holes = 0;
            offset = question->offset;
            question->group->epoch = 0;
            continue;
        }
        question->size = lease.size;
        question->group->epoch = lease.epoch;
        question->group->slot = lease.slot ? (const struct daxfs_slot *)(mount->base + lease.slot) : NULL;
        if (!take(question, &lease, end))
            return false;
        if (lease.next <= offset)
            break;
        offset = lease.next;
    }
    return offset >= end || add(question, pl_page_up(offset), end, 0, DAXFS_KERNEL);
}

bool pl_known(int fd, struct pl_file *file, uint64_t offset, uint64_t length, bool store) {
    uint64_t end = offset + length;
    bool good;

    if (!pl_pin(fd, file))
        return false;
    good = file->leased && (file->stores || !store) && pl_holds(file);
    if (good && end > pl_size(file))
        end = pl_size(file);
    while (good && offset < end) {
        const struct pl_extent *extent = pl_find(file, offset);

        good = extent != NULL;
        offset = extent ? extent->end : end;
    }
    pl_unpin(file);
    return good;
}

/* Make the plan of what reads and writes have learned of the file, if all of it is memory. */
static bool recall(struct pl_question *question, bool store) {
    struct pl_group *group = question->group;
    struct pl_file *file = group->file;
    uint64_t offset = question->offset, end = question->offset + question->length;
    bool good;

    if (!pl_pin(question->fd, file))
        return false;
    pl_plan.count = 0;
    good = file->leased && file->slot && (file->stores || !store) && pl_holds(file);
    while (good && offset < end) {
        const struct pl_extent *extent = pl_find(file, offset);

        good = extent && extent->kind == DAXFS_MEMORY && extent->end > offset &&
               add(question, offset, extent->end < end ? extent->end : end, extent->pool + (offset - extent->start),
                   DAXFS_MEMORY);
        offset = extent ? extent->end : end;
    }
    group->slot = file->slot;
    group->epoch = file->epoch;
    pl_unpin(file);
    return good;
}

/* Make the plan. First as if nothing were to be changed: holes that become DAXFS_KERNEL stay so for everybody. */
bool pl_plan_make(struct pl_question *question, bool fill) {
    struct pl_group *group = question->group;
    bool store = pl_stores(group->file, group->flags);
    uint32_t flags = DAXFS_MAP | (store ? DAXFS_WRITE : 0U);

    if (recall(question, store))
        return true;
    if (fill && store && question->protection & PROT_WRITE && ask(question, DAXFS_WRITE)) {
        if (!question->holes && pl_page_up(question->size) >= question->offset + question->length)
            return true;
        /* Filling DAXFS_MOST_FILLED costs what one or two thousand pages do that are stored to through the kernel. More
         * holes may be a sparse file's, whose owner wants no such room taken. */
        if (question->holes && (question->holes <= DAXFS_MOST_FILLED || group->flags & (MAP_POPULATE | MAP_LOCKED)) &&
            ask(question, flags | DAXFS_FILL))
            return true;
    }
    return ask(question, flags);
}

/* ---- layout */

/* Map one piece where it says. */
static bool lay_piece(const struct pl_piece *piece, int fd, int pool) {
    const struct pl_group *group = piece->group;
    const struct pl_mount *mount = group->file->mount;
    size_t length = (size_t)(piece->end - piece->start);
    int flags = (group->flags & ~(MAP_FIXED_NOREPLACE | MAP_32BIT)) | MAP_FIXED;
    void *made;

    if (piece->kind == DAXFS_KERNEL)
        made = pl_raw_mmap(piece->start, length, piece->protection, flags, fd, (off_t)piece->offset);
    else if (piece->kind == PL_BEHIND)
        made = pl_raw_mmap(piece->start, length, piece->protection, MAP_FIXED | MAP_PRIVATE, pool,
                        (off_t)pl_page_up(mount->pool.size));
    else if (pool >= 0)
        made = pl_raw_mmap(piece->start, length, piece->protection, flags, pool, (off_t)piece->pool);
    else
        made = pl_map(mount, piece->pool, length, piece->protection, piece->start);
    if (made == MAP_FAILED)
        return false;
    if (piece->kind == DAXFS_MEMORY && mount->pool.persistence == DAXFS_VOLATILE && length >= HUGE_PAGE)
        pl_call(SYS_madvise, made, length, MADV_HUGEPAGE);
    return true;
}

/* Whether memory must be mapped by a descriptor: a copy of a mapping is always shared, and has no such flags. */
static bool needs_pool(const struct pl_group *group) {
    return !pl_is_shared(group) || group->flags & (MAP_SYNC | MAP_POPULATE | MAP_LOCKED);
}

/* Lay the plan out from `start` on; what is mapped there is replaced. Its pieces have their addresses then. */
bool pl_plan_lay(char *start, int fd, struct pl_group *group) {
    bool good = true, store = pl_is_shared(group) && group->file->writable;
    int pool = -1;

    for (size_t i = 0; i < pl_plan.count; i++)
        if (pl_plan.pieces[i].kind == PL_BEHIND || (pl_plan.pieces[i].kind == DAXFS_MEMORY && needs_pool(group)))
            pool = pool >= 0 ? pool : pl_open_pool(&group->file->mount->pool, store ? O_RDWR : O_RDONLY);
    for (size_t i = 0; good && i < pl_plan.count; i++) {
        struct pl_piece *piece = &pl_plan.pieces[i];

        piece->start = start + (uintptr_t)piece->start;
        piece->end = start + (uintptr_t)piece->end;
        if (pool < 0 && (piece->kind == PL_BEHIND || (piece->kind == DAXFS_MEMORY && needs_pool(group))))
            good = false;
        else
            good = lay_piece(piece, fd, pool);
    }
    if (pool >= 0)
        pl_call(SYS_close, pool);
    return good;
}

/* Address space for the plan, such that its first large piece of memory can be mapped with huge pages. */
char *pl_plan_reserve(void *wish, size_t length, int flags) {
    int wanted = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (flags & (MAP_FIXED_NOREPLACE | MAP_32BIT));
    uintptr_t residue = 0, start, ahead;
    size_t slack = 0;
    char *made;

    for (size_t i = 0; !wish && i < pl_plan.count && !slack; i++) {
        const struct pl_piece *piece = &pl_plan.pieces[i];

        if (piece->kind == DAXFS_MEMORY && piece->end - piece->start >= (ptrdiff_t)HUGE_PAGE) {
            residue = (piece->pool - (uintptr_t)piece->start) % HUGE_PAGE;
            slack = HUGE_PAGE;
        }
    }
    made = pl_raw_mmap(wish, length + slack, PROT_NONE, wanted, -1, 0);
    if (made == MAP_FAILED || !slack)
        return made;
    start = (uintptr_t)made;
    ahead = (residue - start) % HUGE_PAGE;
    if (ahead)
        pl_call(SYS_munmap, made, ahead);
    if (slack - ahead)
        pl_call(SYS_munmap, made + ahead + length, slack - ahead);
    return made + ahead;
}

/* ---- what is stored through a mapping */

bool pl_may_be_dirty(const struct pl_piece *piece) {
    return piece->protection & PROT_WRITE && pl_is_shared(piece->group);
}

/* Stores to [start, end) of it are to be made durable by the next fsync of `file`, or are so now (cache lines). With
 * MAP_SYNC that is the program's own business. */
void pl_settle(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end) {
    const struct pl_mount *mount = piece->group->file->mount;

    if (piece->kind != DAXFS_MEMORY || !pl_may_be_dirty(piece))
        return;
    /* Without the pool's own mapping, pl_sync would find nothing to flush. */
    if (mount->pool.persistence == DAXFS_LINES ? !(piece->group->flags & MAP_SYNC) : !mount->base)
        pl_flush(mount, start, (size_t)(end - start));
    pl_stored(file, piece->pool + (uint64_t)(start - piece->start), (uint64_t)(end - start));
}

void pl_settle_range(char *start, char *end) {
    for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];

        pl_settle(piece, piece->group->file, piece->start > start ? piece->start : start,
               piece->end < end ? piece->end : end);
    }
}

bool pl_map_settle(struct pl_file *file) {
    bool kernel = false;
    sigset_t saved;

    if (!pl_booked(NULL, (char *)UINTPTR_MAX))
        return false;
    pl_book_lock(&saved);
    for (size_t i = 0; i < pl_book.count; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];

        if (piece->group->file->mount != file->mount || piece->group->file->inode != file->inode)
            continue;
        pl_settle(piece, file, piece->start, piece->end);
        kernel = kernel || (piece->kind == DAXFS_KERNEL && pl_may_be_dirty(piece));
    }
    pl_book_unlock(&saved);
    return kernel;
}

/* ---- changes below mappings */

/* Whether the book has a planned piece already, laid out at `start` on. */
static bool laid_out(const struct pl_piece *planned, char *start) {
    char *from = start + (uintptr_t)planned->start, *to = start + (uintptr_t)planned->end;
    const struct pl_piece *piece = &pl_book.pieces[pl_book_find(from)];

    return piece->start <= from && to <= piece->end && piece->kind == planned->kind &&
           (piece->kind != DAXFS_MEMORY || piece->pool + (uint64_t)(from - piece->start) == planned->pool);
}

/* Without a new answer: what lies behind the end of the file gives SIGBUS. */
static bool plan_end(struct pl_question *question, const struct daxfs_slot *slot, bool through_file) {
    uint64_t end = question->offset + question->length;
    uint64_t border = pl_page_up(__atomic_load_n(&slot->size, __ATOMIC_ACQUIRE));

    pl_plan.count = 0;
    if (border < question->offset)
        border = question->offset;
    return border >= end || add(question, border, end, 0, through_file ? DAXFS_KERNEL : PL_BEHIND);
}

/* Pieces [first, last) of the book lie together in one group: map them anew where the file has changed. */
static void renew(size_t first, size_t last, int fd, struct pl_group *group) {
    char *start = pl_book.pieces[first].start;
    struct pl_question question = {.fd = fd,
                                .group = group,
                                .offset = pl_book.pieces[first].offset,
                                .length = (uint64_t)(pl_book.pieces[last - 1].end - start),
                                .protection = pl_book.pieces[first].protection};
    size_t kept = 0;

    /* Who has just punched a hole wants no blocks in it. Pages of a private mapping that were stored to are the
     * program's own: there only what is cut off goes. */
    if (pl_is_shared(group) && fd >= 0 ? !pl_plan_make(&question, false) : !plan_end(&question, group->slot, fd >= 0))
        return;
    for (size_t i = 0; i < pl_plan.count; i++)
        if (!laid_out(&pl_plan.pieces[i], start))
            pl_plan.pieces[kept++] = pl_plan.pieces[i];
    pl_plan.count = kept;
    if (!kept || !pl_book_room(&pl_book, 2 * kept + 2) || !pl_plan_lay(start, fd, group))
        return;
    group->pieces++; /* it doesn't end meanwhile */
    for (size_t i = 0; i < kept; i++) {
        pl_book_cut(pl_plan.pieces[i].start, pl_plan.pieces[i].end);
        pl_book_put(&pl_plan.pieces[i], 1);
    }
    group->pieces--;
}

/* A descriptor to map a group's file anew from: its own, or `fd` if that is the same file opened with such rights. */
static int suited(const struct pl_group *group, int fd) {
    const struct pl_file *other = fd >= 0 ? pl_file_of(fd) : NULL;
    int own = pl_group_fd(group);

    if (own >= 0 || !other || other->mount != group->file->mount || other->inode != group->file->inode)
        return own;
    return other->readable && other->writable == group->file->writable ? fd : -1;
}

static void renew_group(struct pl_group *group, int fd) {
    uint64_t epoch = __atomic_load_n(&group->slot->epoch, __ATOMIC_ACQUIRE);

    fd = suited(group, fd);
    for (size_t i = 0, next; i < pl_book.count; i = next) {
        const struct pl_piece *piece = &pl_book.pieces[i];
        char *end;

        for (next = i + 1; next < pl_book.count; next++) {
            const struct pl_piece *other = &pl_book.pieces[next], *before = other - 1;

            if (other->group != piece->group || other->start != before->end || other->protection != piece->protection ||
                other->offset != before->offset + (uint64_t)(before->end - before->start))
                break;
        }
        if (piece->group != group)
            continue;
        end = pl_book.pieces[next - 1].end;
        renew(i, next, fd, group);
        next = pl_book_find(end);
    }
    group->epoch = epoch;
}

void pl_check_groups(int fd) {
    for (size_t i = 0; i < pl_book.count; i++) {
        struct pl_group *group = pl_book.pieces[i].group;

        if (group->slot && __atomic_load_n(&group->slot->epoch, __ATOMIC_ACQUIRE) != group->epoch)
            renew_group(group, fd);
    }
}

void pl_map_check(int fd) {
    int error = errno;
    sigset_t saved;

    if (pl_filtered || !pl_booked(NULL, (char *)UINTPTR_MAX))
        return;
    pl_book_lock(&saved);
    pl_check_groups(fd);
    pl_book_unlock(&saved);
    errno = error;
}

#else

bool pl_map_settle(struct pl_file *file) {
    (void)file;
    return false;
}

void pl_map_check(int fd) {
    (void)fd;
}

#endif
