/* A group of pieces has the epoch of the lease that it was mapped by. When the file's status entry has another epoch, a
 * new plan is made, and the pieces that differ from it are mapped again.
 */
#include "follow.h"

#include <errno.h>

#include "pins.h"
#include "plan.h"
#include "process.h"
#include "stores.h"

#ifdef PL_MAPS

/* ---- stores through mappings */

bool pl_may_be_dirty(const struct pl_piece *piece) {
    return piece->protection & PROT_WRITE && pl_is_shared(piece->group);
}

/* Mark what the program stored to [start, end) of a piece; `memory` is where these bytes are mapped now. With MAP_SYNC
 * the program itself makes its stores durable. */
static void mark(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end,
                 const char *memory) {
    const struct pl_mount *mount = piece->group->file->mount;

    if (piece->kind != DAXFS_MEMORY || !pl_may_be_dirty(piece))
        return;
    /* Without a mapping of the whole pool pl_sync can't flush later. */
    if (mount->pool.persistence == DAXFS_LINES ? !(piece->group->flags & MAP_SYNC) : !mount->base)
        pl_flush(mount, memory, (size_t)(end - start));
    pl_stored(file, piece->pool + (uint64_t)(start - piece->start), (uint64_t)(end - start));
}

void pl_mark_piece(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end) {
    mark(piece, file, start, end, start);
}

void pl_mark_range(char *start, char *end) {
    for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];

        pl_mark_piece(piece, piece->group->file, piece->start > start ? piece->start : start,
                      piece->end < end ? piece->end : end);
    }
}

bool pl_mark_file(struct pl_file *file) {
    bool kernel = false;
    sigset_t saved;

    if (!pl_booked(NULL, (char *)UINTPTR_MAX))
        return false;
    pl_book_lock(&saved);
    for (size_t i = 0; i < pl_book.count; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];

        if (piece->group->file->mount != file->mount || piece->group->file->inode != file->inode)
            continue;
        pl_mark_piece(piece, file, piece->start, piece->end);
        kernel = kernel || (piece->kind == DAXFS_KERNEL && pl_may_be_dirty(piece));
    }
    pl_book_unlock(&saved);
    return kernel;
}

/* ---- changes of mapped files */

/* Whether the book has a planned piece already, if the plan is mapped at `start`. */
static bool laid_out(const struct pl_piece *planned, char *start) {
    char *from = start + (uintptr_t)planned->start, *to = start + (uintptr_t)planned->end;
    const struct pl_piece *piece = &pl_book.pieces[pl_book_find(from)];

    return piece->start <= from && to <= piece->end && piece->kind == planned->kind &&
           (piece->kind != DAXFS_MEMORY || piece->pool + (uint64_t)(from - piece->start) == planned->pool);
}

/* Make a plan without a request: pages past EOF raise SIGBUS, the others stay. */
static bool plan_end(struct pl_question *question, const struct daxfs_slot *entry, bool through_file) {
    uint64_t end = question->offset + question->length;
    uint64_t border = pl_page_up(__atomic_load_n(&entry->size, __ATOMIC_ACQUIRE));

    pl_plan.count = 0;
    if (atomic_load(&question->group->file->mount->missing))
        return false; /* the size is not known */
    if (border < question->offset)
        border = question->offset;
    return border >= end || pl_plan_add(question, border, end, 0, through_file ? DAXFS_KERNEL : PL_PAST_EOF);
}

/* Mark what the program stored through pieces of the book in the place of which others are mapped by now. */
static void mark_replaced(const char *start, const char *end) {
    for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];
        const struct pl_mount *mount = piece->group->file->mount;
        const char *from = piece->start > start ? piece->start : start, *to = piece->end < end ? piece->end : end;

        if (mount->base)
            mark(piece, piece->group->file, from, to, mount->base + piece->pool + (from - piece->start));
    }
}

void pl_replace(char *start, int fd, struct pl_group *group) {
    if (!pl_plan.count || !pl_book_room(&pl_book, 2 * pl_plan.count + 2) || !pl_plan_lay(start, fd, group))
        return;
    group->pieces++; /* keeps the group from ending meanwhile */
    for (size_t i = 0; i < pl_plan.count; i++) {
        mark_replaced(pl_plan.pieces[i].start, pl_plan.pieces[i].end);
        pl_book_cut(pl_plan.pieces[i].start, pl_plan.pieces[i].end);
        pl_book_put(&pl_plan.pieces[i], 1);
    }
    group->pieces--;
}

/* Map pieces [first, last) of the book, which are adjacent and of one group, again where the file has changed. */
static void renew(size_t first, size_t last, int fd, struct pl_group *group) {
    char *start = pl_book.pieces[first].start;
    struct pl_question question = {.fd = fd,
                                   .group = group,
                                   .offset = pl_book.pieces[first].offset,
                                   .length = (uint64_t)(pl_book.pieces[last - 1].end - start),
                                   .protection = pl_book.pieces[first].protection,
                                   .address = start};
    size_t kept = 0;

    /* No hole is filled: a program that has just punched a hole wants no blocks in it. Modified pages of a private
     * mapping belong to the program: only pages past EOF are replaced. */
    if (pl_is_shared(group) && fd >= 0 ? !pl_plan_make(&question, false) : !plan_end(&question, group->entry, fd >= 0))
        return;
    for (size_t i = 0; i < pl_plan.count; i++)
        if (!laid_out(&pl_plan.pieces[i], start))
            pl_plan.pieces[kept++] = pl_plan.pieces[i];
    pl_plan.count = kept;
    pl_replace(start, fd, group);
}

/* Return a descriptor to map a group's file again: its own, or `fd` if that is the same file in the same open mode. */
static int suited(const struct pl_group *group, int fd) {
    const struct pl_file *other = fd >= 0 ? pl_file_of(fd) : NULL;
    int own = pl_group_fd(group);

    if (own >= 0 || !other || other->mount != group->file->mount || other->inode != group->file->inode)
        return own;
    return other->readable && other->writable == group->file->writable ? fd : -1;
}

static void renew_group(struct pl_group *group, int fd) {
    uint64_t epoch = __atomic_load_n(&group->entry->epoch, __ATOMIC_ACQUIRE);

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

void pl_follow_groups(int fd) {
    for (size_t i = 0; i < pl_book.count; i++) {
        struct pl_group *group = pl_book.pieces[i].group;

        if (group->entry && !atomic_load(&group->file->mount->missing) &&
            __atomic_load_n(&group->entry->epoch, __ATOMIC_ACQUIRE) != group->epoch)
            renew_group(group, fd);
    }
}

void pl_follow(int fd) {
    int error = errno;
    sigset_t saved;

    if (pl_filtered || !pl_booked(NULL, (char *)UINTPTR_MAX))
        return;
    pl_book_lock(&saved);
    pl_follow_groups(fd);
    pl_book_unlock(&saved);
    errno = error;
}

#else

bool pl_mark_file(struct pl_file *file) {
    (void)file;
    return false;
}

void pl_follow(int fd) {
    (void)fd;
}

#endif
