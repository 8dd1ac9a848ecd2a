/* mremap(2) of mapped files. */
#include "calls.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>

#include "follow.h"
#include "mapping.h"
#include "plan.h"

#ifdef PL_MAPS

/* Move or extend a mapping by mapping the file again: the kernel's mremap would extend it into pool memory of other
 * files. `piece` contains its beginning. Return MAP_FAILED with errno on failure. */
static void *remap(const struct pl_piece *piece, char *old, size_t old_length, size_t length, int flags, void *to) {
    int fd = pl_group_fd(piece->group), protection = piece->protection;
    int wanted = piece->group->flags & ~(MAP_FIXED | MAP_FIXED_NOREPLACE);
    uint64_t offset = piece->offset + (uint64_t)(old - piece->start);
    void *made;

    if (!pl_is_shared(piece->group) || fd < 0 || !(flags & MREMAP_MAYMOVE)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (flags & MREMAP_FIXED)
        wanted |= MAP_FIXED;
    made = pl_map_file(flags & MREMAP_FIXED ? to : NULL, length, protection, wanted, fd, offset);
    if (made == MAP_FAILED)
        errno = ENOMEM;
    else if (old_length)
        pl_unmap(old, old_length);
    return made;
}

/* Extend a mapping without moving it, if the addresses after it are free. */
static bool extend_in_place(const struct pl_piece *piece, char *old, size_t old_length, size_t length) {
    struct pl_group *group = piece->group;
    char *more = old + old_length;
    struct pl_question question = {.fd = pl_group_fd(group),
                                   .group = group,
                                   .offset = piece->offset + (uint64_t)(more - piece->start),
                                   .length = length - old_length,
                                   .protection = piece->protection,
                                   .address = more};
    uint64_t epoch = group->epoch;
    void *made;

    if (question.fd < 0)
        return false;
    made = pl_raw_mmap(more, question.length, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (made == more && pl_plan_make(&question, true) && pl_book_room(&pl_book, pl_plan.count + 3) &&
        pl_plan_lay(more, question.fd, group)) {
        group->epoch = epoch; /* of the old pieces, which may be out of date */
        pl_book_cut(more, more + question.length);
        pl_book_put(pl_plan.pieces, pl_plan.count);
        return true;
    }
    if (made != MAP_FAILED)
        pl_call(SYS_munmap, made, question.length);
    return false;
}

/* Whether pieces of a single mmap(2) cover [start, end) without a gap. */
static bool one_mapping(const char *start, const char *end) {
    size_t i = pl_book_find(start);

    if (i == pl_book.count || pl_book.pieces[i].start > start)
        return false;
    for (; pl_book.pieces[i].end < end; i++)
        if (i + 1 == pl_book.count || pl_book.pieces[i + 1].start != pl_book.pieces[i].end ||
            pl_book.pieces[i + 1].group != pl_book.pieces[i].group)
            return false;
    return true;
}

static void *remap_ours(char *old, size_t old_length, size_t length, int flags, void *to) {
    struct pl_piece piece;
    bool moves = flags & MREMAP_FIXED;

    if (!length || (uintptr_t)old & (PL_PAGE - 1) || flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED) ||
        (moves && (!(flags & MREMAP_MAYMOVE) || (uintptr_t)to & (PL_PAGE - 1)))) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (!one_mapping(old, old + (old_length ? old_length : PL_PAGE))) {
        errno = EFAULT;
        return MAP_FAILED;
    }
    if (moves && (char *)to < old + old_length && old < (char *)to + length) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    piece = pl_book.pieces[pl_book_find(old)];
    if (!moves && old_length >= length) {
        if (old_length > length && pl_unmap(old + length, old_length - length))
            return MAP_FAILED;
        return old;
    }
    if (!moves && old_length && extend_in_place(&piece, old, old_length, length)) {
        pl_follow_groups(-1);
        return old;
    }
    return remap(&piece, old, old_length, length, flags, to);
}

PUBLIC void *mremap(void *old, size_t old_length, size_t length, int flags, ...) {
    void *to = NULL, *made;
    sigset_t saved;
    bool over;

    if (flags & MREMAP_FIXED) {
        va_list arguments;

        va_start(arguments, flags);
        to = va_arg(arguments, void *);
        va_end(arguments);
    }
    over = flags & MREMAP_FIXED && pl_booked(to, (char *)to + length);
    if (likely(!pl_booked(old, (char *)old + old_length + 1) && !over))
        return (void *)pl_call(SYS_mremap, old, old_length, length, flags, to);
    old_length = pl_page_up(old_length);
    length = pl_page_up(length);
    pl_book_lock(&saved);
    if (pl_book_find(old) < pl_book.count && pl_book.pieces[pl_book_find(old)].start < (char *)old + old_length + 1) {
        made = remap_ours(old, old_length, length, flags, to);
    } else {
        if (over)
            pl_prepare(to, (char *)to + length);
        made = (void *)pl_call(SYS_mremap, old, old_length, length, flags, to);
        if (over && made != MAP_FAILED && pl_book_room(&pl_book, 2))
            pl_book_cut(made, (char *)made + length);
    }
    pl_book_unlock(&saved);
    return made;
}

#endif
