/* Two requests for each write: the announcement, which the daemon checks as the kernel would, and the write. The library
 * keeps no descriptor of its own, which the program might close, and other writes of the program stay what they are.
 *
 * Source: generic_atomic_write_valid in fs/read_write.c, ext4_file_write_iter in fs/ext4/file.c.
 */
#include "atomic.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "counts.h"
#include "file.h"
#include "follow.h"
#include "ioctls.h"
#include "limit.h"
#include "process.h"
#include "start.h"
#include "table.h"
#include "trust.h"

/* From linux/stat.h of Linux 6.11. */
#ifndef STATX_WRITE_ATOMIC
#define STATX_WRITE_ATOMIC 0x10000U
#endif
#ifndef STATX_ATTR_WRITE_ATOMIC
#define STATX_ATTR_WRITE_ATOMIC 0x400000
#endif
#define SIZES_AT 0xa8 /* stx_atomic_write_unit_min in struct statx, which older headers lack */

/* Three fields of struct statx: stx_atomic_write_unit_min, _unit_max and _segments_max. */
struct sizes {
    uint32_t least, most, segments;
};

/* Make the request, if the mount is trusted. Return 0 or an errno. */
static int ask(int fd, struct pl_file *file, struct daxfs_atomic *write) {
    int saved = errno, failed = pl_attach(fd, file->mount) ? pl_ioctl_atomic(fd, write) : EOPNOTSUPP;

    errno = saved;
    return failed;
}

/* Make the announced write. Return its length, or -1 with errno. */
static ssize_t write_at(int fd, struct pl_file *file, const struct iovec *vector, struct daxfs_atomic *write,
                        int flags) {
    ssize_t done = REAL(pwritev2)(fd, vector, 1, (off_t)write->offset, flags & ~RWF_ATOMIC);

    PL_COUNT(passed);
    if (done != (ssize_t)write->length) {
        write->flags = DAXFS_WITHDRAW;
        ask(fd, file, write);
    }
    if (done > 0)
        pl_follow(fd);
    return done;
}

/* Whether the limit of file sizes would cut the write. The kernel itself refuses one that begins past the limit. */
static bool cut(const struct daxfs_atomic *write) {
    return !pl_within_limit(write->offset, write->length) && pl_within_limit(write->offset, 1);
}

/* Take the bytes at the file's position, as pl_at_position does, so that threads never get the same ones. */
static off_t reserve(int fd, size_t length) {
    off_t end = length <= SSIZE_MAX ? pl_call(SYS_lseek, fd, length, SEEK_CUR) : -1;

    return end < 0 ? end : end - (off_t)length;
}

/* Announce a write at `offset` and make it. Return its length, or a negative errno. */
static ssize_t announced(int fd, struct pl_file *file, const struct iovec *vector, off_t offset, int flags) {
    struct daxfs_atomic write = {(uint64_t)offset, (uint32_t)vector->iov_len, DAXFS_ANNOUNCE, 0, 0};
    ssize_t done;
    int failed;

    if (offset < 0 || vector->iov_len > UINT32_MAX)
        return -EINVAL;
    if (cut(&write))
        return -EFBIG;
    failed = ask(fd, file, &write);
    if (failed)
        return failed == ENOTTY || failed == EPROTO ? -EOPNOTSUPP : -failed;
    done = write_at(fd, file, vector, &write, flags);
    return done < 0 ? -errno : done;
}

ssize_t pl_write_atomic(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    struct pl_file *file = pl_file_of(fd);
    int saved = errno;
    ssize_t done;

    if (!file || !file->writable || pl_filtered || pl_foreign() || count < 1 || (count == 1 && !vector->iov_len))
        return REAL(pwritev2)(fd, vector, count, offset, flags);
    if (count > 1 || flags & RWF_APPEND || atomic_load(&file->at_end)) {
        done = -EINVAL; /* where an appending write will lie is not known */
    } else if (offset == -1) {
        off_t place = reserve(fd, vector->iov_len);

        done = announced(fd, file, vector, place, flags);
        if (place >= 0 && done < (ssize_t)vector->iov_len)
            pl_call(SYS_lseek, fd, (done > 0 ? done : 0) - (off_t)vector->iov_len, SEEK_CUR);
    } else {
        done = announced(fd, file, vector, offset, flags);
    }
    errno = done < 0 ? (int)-done : saved;
    return done < 0 ? -1 : done;
}

/* Report the sizes. The kernel has filled the other fields. */
static void report(struct statx *status, const struct daxfs_atomic *found) {
    struct sizes sizes = {found->least, found->most, 1};

    memcpy((char *)status + SIZES_AT, &sizes, sizeof(sizes));
    status->stx_mask |= STATX_WRITE_ATOMIC;
    status->stx_attributes |= STATX_ATTR_WRITE_ATOMIC;
    status->stx_attributes_mask |= STATX_ATTR_WRITE_ATOMIC;
}

static bool is_file(const struct pl_file *file, const struct statx *status) {
    return file && file->inode == status->stx_ino &&
           file->mount->device == makedev(status->stx_dev_major, status->stx_dev_minor);
}

/* Open the path to ask the daemon. A file that this process may not read has no sizes. */
static bool ask_by_path(int directory, const char *path, int flags, const struct statx *status,
                        struct daxfs_atomic *sizes) {
    int how = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0);
    struct pl_file *file;
    bool good;
    int fd;

    if (!pl_trusted(makedev(status->stx_dev_major, status->stx_dev_minor)))
        return false;
    fd = (int)pl_call(SYS_openat, directory, path, how);
    if (fd < 0)
        return false;
    pl_adopt(fd, how);
    file = pl_file_of(fd);
    good = is_file(file, status) && !ask(fd, file, sizes);
    pl_forget(fd);
    pl_call(SYS_close, fd);
    return good;
}

int pl_statx(int directory, const char *path, int flags, unsigned mask, struct statx *status) {
    int failed = (int)pl_call(SYS_statx, directory, path, flags, mask, status), saved = errno;
    struct daxfs_atomic sizes = {0};
    struct pl_file *file;
    bool good;

    if (likely(failed || !(mask & STATX_WRITE_ATOMIC) || status->stx_mask & STATX_WRITE_ATOMIC))
        return failed;
    /* The files of a FUSE mount have a device without a major number. */
    if (pl_disabled || pl_filtered || pl_foreign() || !S_ISREG(status->stx_mode) || status->stx_dev_major)
        return 0;
    if (flags & AT_EMPTY_PATH && (!path || !*path)) {
        file = pl_file_of(directory);
        good = is_file(file, status) && !ask(directory, file, &sizes);
    } else {
        good = ask_by_path(directory, path, flags, status, &sizes);
    }
    if (good)
        report(status, &sizes);
    errno = saved;
    return 0;
}
