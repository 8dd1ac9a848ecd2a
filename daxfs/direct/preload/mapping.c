/* Addresses that the kernel returns are free. If the book still has them, a raw system call has unmapped them. */
#include "mapping.h"

#include <errno.h>

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

static bool set_anchor(struct pl_group *group, int fd) {
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
    if (fixed)
        pl_mark_range(start, start + length);
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

int pl_unmap(char *start, size_t length) {
    int failed;

    if (!pl_book_room(&pl_book, 2)) {
        errno = ENOMEM;
        return -1;
    }
    pl_mark_range(start, start + pl_page_up(length));
    failed = (int)pl_call(SYS_munmap, start, length);
    if (!failed)
        pl_book_cut(start, start + pl_page_up(length));
    return failed;
}

#endif
