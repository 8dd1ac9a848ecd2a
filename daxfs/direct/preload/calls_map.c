/* mmap(2), munmap(2), mprotect(2), madvise(2) and msync(2): a mapping of a file maps the pool's memory itself.
 *
 * Other mappings cost a look at the table of descriptors, or at the bounds of the book. If anything fails, the file is
 * mapped through the kernel. This file makes raw system calls: an allocator may map before the C library's functions
 * can be looked up.
 */
#include "calls.h"

#include <errno.h>
#include <sys/mman.h>

#include "counts.h"
#include "follow.h"
#include "ioctls.h"
#include "lease.h"
#include "mapping.h"
#include "process.h"

#ifdef PL_MAPS

#define FIXED_FLAGS (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT)
#define KNOWN_FLAGS (MAP_TYPE | FIXED_FLAGS | MAP_SYNC | MAP_DENYWRITE | MAP_EXECUTABLE | LATER_FLAGS)
#define LATER_FLAGS (MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_LOCKED)

/* Whether the library maps this kind of request, and the kernel would grant it. */
static bool eligible(const struct pl_file *file, size_t length, int protection, int flags, off_t offset) {
    bool shared = (flags & MAP_TYPE) != MAP_PRIVATE;

    pl_page_up(0);
    if (flags & ~KNOWN_FLAGS || protection & ~(PROT_READ | PROT_WRITE) || (flags & MAP_TYPE) == 0)
        return false;
    if (!length || offset < 0 || (uintptr_t)offset & (PL_PAGE - 1) || length > (1UL << 46) || offset > 1L << 60)
        return false;
    return file->readable && (!shared || !(protection & PROT_WRITE) || (file->writable && file->mount->writable));
}

PUBLIC void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    struct pl_file *file = flags & MAP_ANONYMOUS ? NULL : pl_file_of(fd);
    bool fixed = flags & MAP_FIXED && pl_booked(address, (char *)address + length);
    bool ours = file && !pl_foreign() && !pl_filtered && pl_attach(fd, file->mount);
    bool direct = ours && eligible(file, length, protection, flags, offset);
    void *made = MAP_FAILED;
    int error = errno;
    sigset_t saved;

    if (unlikely(file && pl_filtered) && !pl_foreign())
        atomic_store(&file->refused, true); /* pages of the kernel and the pool's memory would differ */
    ours = direct || (ours && length && (flags & MAP_TYPE) != MAP_PRIVATE);
    if (likely(!ours && !fixed))
        return pl_raw_mmap(address, length, protection, flags, fd, offset);
    /* Before the mapping is counted, since earlier grants can be renewed only while there are no mappings. */
    if (direct && !pl_known(fd, file, (uint64_t)offset, length, pl_stores(file, flags)) &&
        pl_learn(fd, file, (uint64_t)offset, length, pl_stores(file, flags) ? DAXFS_WRITE : 0).epoch_changed)
        pl_follow(fd);
    pl_book_lock(&saved);
    if (direct)
        made = pl_map_file(address, length, protection, flags, fd, (uint64_t)offset);
    if (made != MAP_FAILED) {
        errno = error;
        PL_COUNT(maps);
    } else if (ours) {
        PL_COUNT(plain_maps);
        made = pl_map_plain(address, length, protection, flags, fd, (uint64_t)offset);
    } else {
        PL_COUNT(plain_maps);
        pl_prepare(address, (char *)address + pl_page_up(length));
        made = pl_raw_mmap(address, length, protection, flags, fd, offset);
        if (made != MAP_FAILED && pl_book_room(&pl_book, 2))
            pl_book_cut(address, (char *)address + pl_page_up(length));
    }
    pl_book_unlock(&saved);
    return made;
}

ALSO(mmap64, mmap);

PUBLIC int munmap(void *address, size_t length) {
    sigset_t saved;
    int failed;

    if (likely(!pl_booked(address, (char *)address + length)))
        return (int)pl_call(SYS_munmap, address, length);
    pl_book_lock(&saved);
    failed = pl_unmap(address, length);
    pl_book_unlock(&saved);
    return failed;
}

/* Whether the file's own open mode allows the protection: the pool may be open for writing when the file is not. */
static bool allowed(const char *start, const char *end, int protection) {
    for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_group *group = pl_book.pieces[i].group;

        if (protection & PROT_WRITE && pl_is_shared(group) && !group->file->writable)
            return false;
    }
    return true;
}

PUBLIC int mprotect(void *address, size_t length, int protection) {
    char *start = address, *end = start + pl_page_up(length);
    sigset_t saved;
    int failed;

    if (likely(!pl_booked(start, end)))
        return (int)pl_call(SYS_mprotect, address, length, protection);
    pl_book_lock(&saved);
    if (!allowed(start, end, protection)) {
        failed = -1;
        errno = EACCES;
    } else if (pl_prepare(start, end), !pl_book_room(&pl_book, 2)) {
        failed = -1;
        errno = ENOMEM;
    } else {
        failed = (int)pl_call(SYS_mprotect, address, length, protection);
    }
    if (!failed) {
        pl_book_split(start);
        pl_book_split(end);
        for (size_t i = pl_book_find(start); i < pl_book.count && pl_book.pieces[i].start < end; i++) {
            struct pl_piece *piece = &pl_book.pieces[i];

            piece->protection = protection;
            pl_mark_piece(piece, piece->group->file, piece->start, piece->start);
        }
    }
    pl_book_unlock(&saved);
    return failed;
}

/* MADV_REMOVE: punch a hole in the file. The system call would punch it in the pool. */
static int remove_range(char *start, char *end) {
    sigset_t saved;
    int failed = 0;

    pl_book_lock(&saved);
    for (size_t i = pl_book_find(start); !failed && i < pl_book.count && pl_book.pieces[i].start < end; i++) {
        const struct pl_piece *piece = &pl_book.pieces[i];
        char *first = piece->start > start ? piece->start : start, *last = piece->end < end ? piece->end : end;
        int fd = pl_group_fd(piece->group);

        if (fd < 0 || !pl_is_shared(piece->group)) {
            errno = EINVAL;
            failed = -1;
        } else {
            failed = (int)pl_call(SYS_fallocate, fd, 3 /* PUNCH_HOLE, KEEP_SIZE */,
                                  (off_t)(piece->offset + (uint64_t)(first - piece->start)), (off_t)(last - first));
        }
    }
    pl_follow_groups(-1);
    pl_book_unlock(&saved);
    return failed;
}

PUBLIC int madvise(void *address, size_t length, int advice) {
    char *start = address, *end = start + pl_page_up(length);

    if (unlikely(advice == MADV_REMOVE) && pl_booked(start, end))
        return remove_range(start, end);
    /* Ignored: a child without the mapping would still have it in its book. */
    if (unlikely(advice == MADV_DONTFORK) && pl_booked(start, end))
        return 0;
    return (int)pl_call(SYS_madvise, address, length, advice);
}

/* Write back [start, end) of a piece: as the pool's persistence requires, or by msync(2) for pages of the file. */
static int write_back(const struct pl_piece *piece, char *start, char *end, int flags) {
    int failed = 0;

    if (piece->kind != DAXFS_MEMORY)
        return (int)pl_call(SYS_msync, start, (size_t)(end - start), flags);
    if (flags & MS_SYNC && pl_may_be_dirty(piece))
        failed = pl_flush(piece->group->file->mount, start, (size_t)(end - start));
    if (!failed)
        return 0;
    errno = failed;
    return -1;
}

/* Send the write notification, so that times change (and are durable with MS_SYNC), if the file is still open. */
static void notify(const struct pl_piece *piece, int flags) {
    int fd = pl_may_be_dirty(piece) ? pl_group_fd(piece->group) : -1;

    if (fd >= 0)
        pl_ioctl_stored(fd, flags & MS_SYNC ? DAXFS_DURABLE : 0);
}

static int sync_range(char *start, char *end, int flags) {
    const struct pl_group *notified = NULL;
    int failed = 0;

    for (size_t i = pl_book_find(start); start < end; i++) {
        const struct pl_piece *piece = i < pl_book.count ? &pl_book.pieces[i] : NULL;
        char *to;

        if (!piece || piece->start >= end)
            return (int)pl_call(SYS_msync, start, (size_t)(end - start), flags) | failed;
        if (piece->start > start)
            failed |= (int)pl_call(SYS_msync, start, (size_t)(piece->start - start), flags);
        start = piece->start > start ? piece->start : start;
        to = piece->end < end ? piece->end : end;
        failed |= write_back(piece, start, to, flags);
        if (piece->group != notified && !failed)
            notify(piece, flags);
        notified = piece->group;
        start = to;
    }
    return failed;
}

PUBLIC int msync(void *address, size_t length, int flags) {
    char *start = address, *end = start + pl_page_up(length);
    bool valid = !(flags & ~(MS_ASYNC | MS_SYNC | MS_INVALIDATE)) && !(flags & MS_ASYNC && flags & MS_SYNC);
    int failed, error = errno;
    sigset_t saved;

    if (!pl_booked(start, end) || !valid || (uintptr_t)start & (PL_PAGE - 1))
        return (int)pl_call(SYS_msync, address, length, flags);
    pl_book_lock(&saved);
    pl_follow_groups(-1);
    failed = sync_range(start, end, flags);
    pl_book_unlock(&saved);
    if (!failed)
        errno = error;
    return failed;
}

#endif
