/* Serve a read or write from memory if all conditions hold, else leave it to the kernel. */
#include "access.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "append.h"
#include "counts.h"
#include "follow.h"
#include "lease.h"
#include "limit.h"
#include "memory.h"
#include "pins.h"
#include "process.h"
#include "start.h"

#define MOST 0x7ffff000UL /* the most bytes of one read or write: MAX_RW_COUNT of the kernel */
#define VECTORS 1024      /* IOV_MAX */
#define EXTENDING 16      /* writes after an extending write that are expected to extend the file too */

/* Let mappings of the file follow if a request found its epoch changed. */
static void follow(int fd, const struct pl_file *file, bool epoch_changed) {
    if (epoch_changed && atomic_load(&file->mappings))
        pl_follow(fd);
}

static bool learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    struct pl_learned learned = pl_learn(fd, file, offset, length, flags);

    follow(fd, file, learned.epoch_changed);
    return learned.known;
}

static ssize_t append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base) {
    bool epoch_changed = false;
    ssize_t done = pl_append(fd, file, vector, total, base, &epoch_changed);

    follow(fd, file, epoch_changed);
    return done;
}

/* Whether a write may fill holes: only if that takes hardly more space than the program has asked for. */
static bool may_fill(int fd, struct pl_file *file, uint64_t offset, size_t total) {
    bool in_order = offset && atomic_load(&file->hole_end) == offset;
    int saved = errno;
    struct stat status;

    atomic_store(&file->hole_end, offset + total);
    if (in_order)
        return true;
    if (atomic_load(&file->allocated) == PL_UNKNOWN) {
        bool all = !pl_call(SYS_fstat, fd, &status) && status.st_blocks * 512 >= status.st_size;

        atomic_store(&file->allocated, all ? PL_ALLOCATED : PL_SPARSE);
        errno = saved;
    }
    return atomic_load(&file->allocated) == PL_ALLOCATED;
}

static ssize_t direct(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset,
                      bool write) {
    uint32_t flags = write ? DAXFS_WRITE : 0;
    ssize_t done;

    if (write && !pl_within_limit(offset, total))
        return PL_NO;
    done = pl_attempt(fd, file, vector, total, offset, write);
    for (int i = 0; i < 2 && (done == PL_UNKNOWN_PLACE || done == PL_IN_HOLE); i++) {
        if (done == PL_IN_HOLE) {
            if (flags & DAXFS_FILL || !may_fill(fd, file, offset, total))
                return PL_NO;
            flags |= DAXFS_FILL;
        }
        if (!learn(fd, file, offset, total, flags))
            return PL_NO;
        done = pl_attempt(fd, file, vector, total, offset, write);
    }
    if (done == PL_BEYOND) {
        done = append(fd, file, vector, total, offset);
        if (done == PL_NO)
            atomic_store_explicit(&file->extending, EXTENDING, memory_order_relaxed);
    }
    return done < 0 ? PL_NO : done;
}

/* Whether memory can serve the call at all; `total` becomes the sum of its lengths. */
static bool eligible(const struct pl_file *file, const struct iovec *vector, int count, bool write, size_t *total) {
    size_t sum = 0;

    if (atomic_load_explicit(&file->refused, memory_order_relaxed) || count <= 0 || count > VECTORS)
        return false;
    if (!(write ? file->writable : file->readable))
        return false;
    /* Under a seccomp filter the library can't send the write notification. */
    if (write && (pl_filtered || atomic_load_explicit(&file->slow_writes, memory_order_relaxed) ||
                  atomic_load_explicit(&file->unstorable, memory_order_relaxed)))
        return false;
    for (int i = 0; i < count; i++) {
        if (vector[i].iov_len > MOST - sum)
            return false;
        sum += vector[i].iov_len;
    }
    *total = sum;
    return sum > 0;
}

static ssize_t counted(const struct pl_file *file, ssize_t done, bool write) {
    if (done < 0 && atomic_load_explicit(&file->mount->state, memory_order_relaxed) == PL_READY)
        PL_COUNT(passed);
    else if (write && done >= 0)
        PL_COUNT(writes);
    else if (done >= 0)
        PL_COUNT(reads);
    return done;
}

/* Serve a write to a file opened with O_APPEND, at the EOF of its status entry. */
static ssize_t at_known_end(int fd, struct pl_file *file, const struct iovec *vector, size_t total, bool position) {
    ssize_t done = PL_NO;

    if (total % DAXFS_LEAST_BLOCK)
        return PL_NO;
    for (int i = 0; i < 2; i++) {
        uint64_t base = 0;
        bool known;

        if (!pl_pin(fd, file))
            return PL_NO;
        known = file->leased && file->stores && pl_holds(file);
        if (known)
            base = pl_size(file);
        pl_unpin(file);
        if (known && (base > LLONG_MAX - total || !pl_within_limit(base, total)))
            return PL_NO;
        if (known) {
            done = append(fd, file, vector, total, base);
            if (done > 0 && position) {
                int saved = errno;

                pl_call(SYS_lseek, fd, base + (uint64_t)done, SEEK_SET);
                errno = saved;
            }
            return done < 0 ? PL_NO : done;
        }
        if (!learn(fd, file, 0, 1, DAXFS_WRITE))
            return PL_NO;
    }
    return done;
}

/* Serve a write to a file opened with O_APPEND. If the system call must do it, the library first makes the kernel
 * request the size, which the kernel compares with the limit of file sizes. */
static ssize_t at_end(int fd, struct pl_file *file, const struct iovec *vector, int count, bool position) {
    ssize_t done = PL_NO;
    size_t total;

    if (eligible(file, vector, count, true, &total))
        done = at_known_end(fd, file, vector, total, position);
    if (done == PL_NO && pl_file_limit != RLIM_INFINITY) {
        struct statx status;
        int saved = errno;

        pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_SIZE, &status);
        errno = saved;
    }
    return counted(file, done, true);
}

ssize_t pl_at_offset(int fd, struct pl_file *file, const struct iovec *vector, int count, off_t offset, bool write) {
    size_t total;

    if (write && unlikely(atomic_load_explicit(&file->at_end, memory_order_relaxed)))
        return at_end(fd, file, vector, count, false);
    if (!eligible(file, vector, count, write, &total) || offset < 0 || offset > LLONG_MAX - (off_t)total)
        return counted(file, PL_NO, write);
    return counted(file, direct(fd, file, vector, total, (uint64_t)offset, write), write);
}

/* Whether it is worthwhile to reserve bytes at the file's position: there is a lease, or the daemon grants one now. */
static bool promising(int fd, struct pl_file *file, size_t total, bool write) {
    bool leased;
    off_t position;
    uint8_t extending = atomic_load_explicit(&file->extending, memory_order_relaxed);

    if (write && extending) {
        atomic_store_explicit(&file->extending, extending - 1, memory_order_relaxed);
        return false;
    }
    if (write && pl_file_limit != RLIM_INFINITY) {
        /* A handler of SIGXFSZ may jump out of the kernel's refusal, so the position must not have changed before. */
        position = pl_call(SYS_lseek, fd, 0L, SEEK_CUR);
        if (position < 0 || !pl_within_limit((uint64_t)position, total))
            return false;
    }
    if (!pl_pin(fd, file))
        return false;
    leased = file->leased && (!write || file->stores) && pl_holds(file);
    pl_unpin(file);
    if (leased)
        return true;
    position = pl_call(SYS_lseek, fd, 0L, SEEK_CUR);
    return position >= 0 && learn(fd, file, (uint64_t)position, total, write ? DAXFS_WRITE : 0);
}

/* Moving the position over the next bytes reserves them, so that threads which share the position never get the same
 * bytes. The position goes back over bytes that were not read or written. */
ssize_t pl_at_position(int fd, struct pl_file *file, const struct iovec *vector, int count, bool write) {
    int saved = errno;
    size_t total;
    ssize_t done;
    off_t end;

    if (write && unlikely(atomic_load_explicit(&file->at_end, memory_order_relaxed)) && !pl_foreign() && !pl_filtered)
        return at_end(fd, file, vector, count, true);
    if (!eligible(file, vector, count, write, &total) || pl_foreign() || pl_filtered)
        return counted(file, PL_NO, write);
    if (!promising(fd, file, total, write)) {
        errno = saved;
        return counted(file, PL_NO, write);
    }
    end = pl_call(SYS_lseek, fd, total, SEEK_CUR);
    if (end < 0) {
        errno = saved;
        return PL_NO;
    }
    done = counted(file, direct(fd, file, vector, total, (uint64_t)end - total, write), write);
    if (done == PL_NO) {
        off_t start = end - (off_t)total;

        done = write ? REAL(pwritev)(fd, vector, count, start) : REAL(preadv)(fd, vector, count, start);
    }
    if (done < (ssize_t)total) {
        saved = errno;
        pl_call(SYS_lseek, fd, (done > 0 ? done : 0) - (off_t)total, SEEK_CUR);
        errno = saved;
    }
    return done < 0 ? PL_UNKNOWN_PLACE : done;
}
