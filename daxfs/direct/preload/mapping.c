/* Addresses that the kernel returns are free. If the book still has them, a raw system call has unmapped them. */
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>

#include "follow.h"
#include "pins.h"
#include "plan.h"

#ifdef PL_MAPS

bool pl_known(int fd, struct pl_file *file, uint64_t offset, uint64_t length, bool store) {
    uint64_t end = offset + length;
    bool good;

    if (!pl_pin(fd, file))
        return false;
    good = file->leased && (file->stores || !store) && pl_holds(file);
    if (good && end > pl_size(file))
        end = pl_size(file);
    while (good && offset < end) {
        const struct pl_extent *extent = pl_find(&file->extents, offset);

        good = extent != NULL;
        offset = extent ? extent->end : end;
    }
    pl_unpin(file);
    return good;
}

/* Keep a descriptor of a file whose mappings may have to be split (pl_prepare) after the program has closed its own. */
static void keep_open(int fd, struct pl_file *file) {
    if (pl_is_coarse(file->mount) && atomic_load(&file->kept) < 0)
        atomic_store(&file->kept, (int)pl_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 256));
}

static bool set_anchor(struct pl_group *group, int fd) {
    keep_open(fd, group->file);
    group->anchor = pl_raw_mmap(NULL, PL_PAGE, PROT_NONE, MAP_PRIVATE, fd, 0);
    if (group->anchor != MAP_FAILED)
        return true;
    group->anchor = NULL;
    return false;
}

/* Map a file by its plan. If it returns MAP_FAILED, nothing new is mapped, except at a fixed address, where the
 * kernel's own mapping then replaces the whole range. */
static void *map_plan(void *address, size_t length, int flags, struct pl_group *group, int fd) {
    bool fixed = (flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE);
    char *start;

    if (!pl_book_room(&pl_book, pl_plan.count + 3) || !set_anchor(group, fd))
        return MAP_FAILED;
    start = fixed ? address : pl_plan_reserve(address, length, flags);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    if (!pl_plan_lay(start, fd, group)) {
        if (!fixed)
            pl_call(SYS_munmap, start, length);
        return MAP_FAILED;
    }
    pl_book_cut(start, start + length);
    pl_book_put(pl_plan.pieces, pl_plan.count);
    for (size_t i = 0; i < pl_plan.count; i++)
        pl_mark_piece(&pl_plan.pieces[i], group->file, pl_plan.pieces[i].start, pl_plan.pieces[i].start);
    return start;
}

void *pl_map_file(void *address, size_t length, int protection, int flags, int fd, uint64_t offset) {
    struct pl_file *file = pl_hold(fd);
    struct pl_question question = {.fd = fd, .offset = offset, .length = pl_page_up(length), .protection = protection};
    void *made = MAP_FAILED;

    if (!file)
        return MAP_FAILED;
    if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
        question.address = address;
    if (flags & MAP_FIXED && !(flags & MAP_FIXED_NOREPLACE))
        pl_prepare(address, (char *)address + question.length);
    question.group = pl_group_begin(fd, file, flags);
    if (!question.group) {
        pl_drop(file);
        return MAP_FAILED;
    }
    if (pl_group_fd(question.group) == fd && pl_plan_make(&question, true))
        made = map_plan(address, question.length, flags, question.group, fd);
    if (made == MAP_FAILED)
        pl_group_end(question.group);
    else
        pl_follow_groups(fd);
    return made;
}

/* Whether the kernel grants a mapping like this. */
static bool granted(int protection, int flags, int fd, uint64_t offset) {
    void *page = pl_raw_mmap(NULL, PL_PAGE, protection, flags & (MAP_TYPE | MAP_SYNC), fd, (off_t)offset);

    return page != MAP_FAILED && !pl_call(SYS_munmap, page, PL_PAGE);
}

void *pl_map_plain(void *address, size_t length, int protection, int flags, int fd, uint64_t offset) {
    struct pl_file *file = pl_hold(fd);
    struct pl_group *group = file ? pl_group_begin(fd, file, flags) : NULL;
    struct pl_piece piece = {.offset = offset, .group = group, .kind = DAXFS_KERNEL, .protection = protection};
    struct daxfs_lease lease;
    bool announced = group && offset <= DAXFS_FURTHEST && length <= DAXFS_FURTHEST - offset &&
                     granted(protection, flags, fd, offset) &&
                     pl_announce(fd, file, offset, pl_page_up(length), &lease);

    if (flags & MAP_FIXED)
        pl_prepare(address, (char *)address + pl_page_up(length));
    piece.start = pl_raw_mmap(address, length, protection, flags, fd, (off_t)offset);
    piece.end = piece.start + pl_page_up(length);
    if (piece.start != MAP_FAILED && pl_book_room(&pl_book, 3)) {
        pl_book_cut(piece.start, piece.end); /* what a raw system call has unmapped, or this one replaced */
        if (announced) {
            group->entry = lease.slot ? (const struct daxfs_slot *)(file->mount->base + lease.slot) : NULL;
            group->epoch = lease.epoch;
            pl_book_put(&piece, 1);
            pl_follow_groups(fd);
            return piece.start;
        }
    }
    if (file && piece.start != MAP_FAILED)
        atomic_store(&file->refused, true); /* pages of the kernel and the pool's memory would differ */
    if (group)
        pl_group_end(group);
    else if (file)
        pl_drop(file);
    return piece.start;
}

/* Have the kernel map the unit that contains the address, in all mappings of its file, so that it can be cut there. */
static void split_unit(char *address) {
    size_t at = pl_book_find(address);
    const struct pl_piece *piece = &pl_book.pieces[at];
    struct pl_question question = {.fd = -1};
    struct pl_group *group;
    struct daxfs_lease lease;

    if (at == pl_book.count || piece->start >= address || piece->kind != DAXFS_MEMORY)
        return;
    question.group = group = piece->group;
    question.length = group->file->mount->unit;
    question.protection = piece->protection;
    if ((uintptr_t)address % question.length)
        question.fd = pl_group_fd(group);
    address -= (uintptr_t)address % question.length;
    question.offset = piece->offset + (uint64_t)(address - piece->start);
    if (question.fd < 0 || !pl_announce(question.fd, group->file, question.offset, question.length, &lease))
        return;
    pl_plan.count = 0;
    if (pl_plan_add(&question, question.offset, question.offset + question.length, 0, DAXFS_KERNEL))
        pl_replace(address, question.fd, group);
    pl_follow_groups(question.fd);
}

/* The kernel can't cut a mapping of the pool inside a unit: it returns EINVAL. */
void pl_prepare(char *start, char *end) {
    split_unit(start);
    split_unit(end);
    pl_mark_range(start, end);
}

int pl_unmap(char *start, size_t length) {
    int failed;

    pl_prepare(start, start + pl_page_up(length));
    if (!pl_book_room(&pl_book, 2)) {
        errno = ENOMEM;
        return -1;
    }
    failed = (int)pl_call(SYS_munmap, start, length);
    if (!failed)
        pl_book_cut(start, start + pl_page_up(length));
    return failed;
}

#endif
