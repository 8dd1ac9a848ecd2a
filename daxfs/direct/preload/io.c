/* The functions that programs call: open, close, dup, read, write and their kin, in place of the C library's.
 *
 * A descriptor that is not ours costs one load. One that is ours is served from memory when everything is as it
 * should be, else by the kernel; errno is set only by the kernel. File positions are always the kernel's.
 */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <stdarg.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 0x7ffff000UL /* bytes of one read or write: MAX_RW_COUNT of the kernel */
#define VECTORS 1024     /* IOV_MAX */
#define GROWING 16        /* writes in a row that are taken for growth after one that was */


extern void __chk_fail(void) __attribute__((noreturn));

/* ---- copies, pinned */

/* Where a copy is in a program's buffers. */
struct cursor {
    const struct iovec *vector;
    size_t done; /* of the first one */
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

static void copy_in(const struct pl_mount *mount, struct cursor *cursor, char *to, size_t length) {
    while (length) {
        size_t part = cursor->vector->iov_len - cursor->done;

        if (part > length)
            part = length;
        pl_store(mount, to, (const char *)cursor->vector->iov_base + cursor->done, part);
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

        if (!extent || ++extent == file->extents + file->count || extent->start != offset) {
            extent = pl_find(file, offset);
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

/* Whether all of [offset, end) is memory. */
static ssize_t storable(const struct pl_file *file, uint64_t offset, uint64_t end) {
    while (offset < end) {
        const struct pl_extent *extent = pl_find(file, offset);

        if (!extent)
            return PL_UNKNOWN_PLACE;
        if (extent->kind != DAXFS_MEMORY)
            return extent->kind == DAXFS_HOLE ? PL_IN_HOLE : PL_NO;
        offset = extent->end;
    }
    return 0;
}

ssize_t pl_put(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset) {
    uint64_t end = offset + total;
    struct cursor cursor = {vector, 0};
    ssize_t found = storable(file, offset, end);

    if (found)
        return found;
    while (offset < end) {
        const struct pl_extent *extent = pl_find(file, offset);
        uint64_t length = (extent->end < end ? extent->end : end) - offset;
        uint64_t pool = extent->pool + (offset - extent->start);

        copy_in(file->mount, &cursor, file->mount->base + pool, length);
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

/* ---- access: memory, questions, memory again, else PL_NO */

static void count_use(struct pl_file *file) {
    uint64_t used = atomic_load_explicit(&file->used, memory_order_relaxed);

    if (used < 64) /* roughly: enough to see that the lease paid */
        atomic_store_explicit(&file->used, used + 1, memory_order_relaxed);
}

/* One attempt. What was copied counts only if the lease still holds afterwards. */
static ssize_t attempt(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset,
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

/* Whether holes may be filled for a write: if that takes no space that the program didn't ask for, or hardly any. */
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
    done = attempt(fd, file, vector, total, offset, write);
    for (int i = 0; i < 2 && (done == PL_UNKNOWN_PLACE || done == PL_IN_HOLE); i++) {
        if (done == PL_IN_HOLE) {
            if (flags & DAXFS_FILL || !may_fill(fd, file, offset, total))
                return PL_NO;
            flags |= DAXFS_FILL;
        }
        if (!pl_learn(fd, file, offset, total, flags))
            return PL_NO;
        done = attempt(fd, file, vector, total, offset, write);
    }
    if (done == PL_BEYOND) {
        done = pl_append(fd, file, vector, total, offset);
        if (done == PL_NO)
            atomic_store_explicit(&file->growing, GROWING, memory_order_relaxed);
    }
    return done < 0 ? PL_NO : done;
}

/* Whether the call is one that memory can serve at all; the sum of the lengths. */
static bool eligible(const struct pl_file *file, const struct iovec *vector, int count, bool write, size_t *total) {
    size_t sum = 0;

    if (atomic_load_explicit(&file->refused, memory_order_relaxed) || count <= 0 || count > VECTORS)
        return false;
    if (!(write ? file->writable : file->readable))
        return false;
    /* Under a filter a store could not be told any more. */
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

/* A write to a file opened with O_APPEND: where EOF is now. */
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
            done = pl_append(fd, file, vector, total, base);
            if (done > 0 && position) {
                int saved = errno;

                pl_call(SYS_lseek, fd, base + (uint64_t)done, SEEK_SET);
                errno = saved;
            }
            return done < 0 ? PL_NO : done;
        }
        if (!pl_learn(fd, file, 0, 1, DAXFS_WRITE))
            return PL_NO;
    }
    return done;
}

/* The same; what memory does not serve meets a kernel that knows the size, which it looks at for the limit of sizes. */
static ssize_t at_end(int fd, struct pl_file *file, const struct iovec *vector, int count, bool position) {
    ssize_t done = PL_NO;
    size_t total;

    if (eligible(file, vector, count, true, &total))
        done = at_known_end(fd, file, vector, total, position);
    if (done == PL_NO && pl_file_limit != RLIM_INFINITY) {
        struct statx told;
        int saved = errno;

        pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_SIZE, &told);
        errno = saved;
    }
    return counted(file, done, true);
}

static ssize_t at_offset(int fd, struct pl_file *file, const struct iovec *vector, int count, off_t offset, bool write) {
    size_t total;

    if (write && unlikely(atomic_load_explicit(&file->at_end, memory_order_relaxed)))
        return at_end(fd, file, vector, count, false);
    if (!eligible(file, vector, count, write, &total) || offset < 0 || offset > LLONG_MAX - (off_t)total)
        return counted(file, PL_NO, write);
    return counted(file, direct(fd, file, vector, total, (uint64_t)offset, write), write);
}

/* Whether it makes sense to take bytes at the file's position: a lease is there, or to be had now. */
static bool promising(int fd, struct pl_file *file, size_t total, bool write) {
    bool leased;
    off_t position;
    uint8_t growing = atomic_load_explicit(&file->growing, memory_order_relaxed);

    if (write && growing) {
        atomic_store_explicit(&file->growing, growing - 1, memory_order_relaxed);
        return false;
    }
    if (write && pl_file_limit != RLIM_INFINITY) {
        /* A signal handler may jump out of the kernel's refusal: the position must not be moved by then. */
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
    return position >= 0 && pl_learn(fd, file, (uint64_t)position, total, write ? DAXFS_WRITE : 0);
}

/* Reserve the next bytes by moving the position over them, so that threads which share it never get the same ones;
 * what is not got is given back. */
static ssize_t at_position(int fd, struct pl_file *file, const struct iovec *vector, int count, bool write) {
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

/* ---- reading and writing */

PUBLIC ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_offset(fd, file, &(struct iovec){buffer, length}, 1, offset, false);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pread)(fd, buffer, length, offset);
}

PUBLIC ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_offset(fd, file, &(struct iovec){(void *)buffer, length}, 1, offset, true);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pwrite)(fd, buffer, length, offset);
}

PUBLIC ssize_t read(int fd, void *buffer, size_t length) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_position(fd, file, &(struct iovec){buffer, length}, 1, false);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(read)(fd, buffer, length);
}

PUBLIC ssize_t write(int fd, const void *buffer, size_t length) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_position(fd, file, &(struct iovec){(void *)buffer, length}, 1, true);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(write)(fd, buffer, length);
}

PUBLIC ssize_t readv(int fd, const struct iovec *vector, int count) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_position(fd, file, vector, count, false);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(readv)(fd, vector, count);
}

PUBLIC ssize_t writev(int fd, const struct iovec *vector, int count) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_position(fd, file, vector, count, true);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(writev)(fd, vector, count);
}

PUBLIC ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_offset(fd, file, vector, count, offset, false);

        if (likely(done >= 0))
            return done;
    }
    return REAL(preadv)(fd, vector, count, offset);
}

PUBLIC ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = at_offset(fd, file, vector, count, offset, true);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pwritev)(fd, vector, count, offset);
}

/* Flags ask for something special (RWF_APPEND, RWF_DSYNC, ...): that is the kernel's. */
PUBLIC ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    if (!flags && pl_file_of(fd))
        return offset == -1 ? readv(fd, vector, count) : preadv(fd, vector, count, offset);
    return REAL(preadv2)(fd, vector, count, offset, flags);
}

PUBLIC ssize_t pwritev2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    if (!flags && pl_file_of(fd))
        return offset == -1 ? writev(fd, vector, count) : pwritev(fd, vector, count, offset);
    return REAL(pwritev2)(fd, vector, count, offset, flags);
}

/* What programs built with _FORTIFY_SOURCE call. */
PUBLIC ssize_t __read_chk(int fd, void *buffer, size_t length, size_t room) {
    if (length > room)
        __chk_fail();
    return read(fd, buffer, length);
}

PUBLIC ssize_t __pread_chk(int fd, void *buffer, size_t length, off_t offset, size_t room) {
    if (length > room)
        __chk_fail();
    return pread(fd, buffer, length, offset);
}

/* ---- what the kernel carries from file to file by way of its page cache, which knows nothing of stores to memory */

static void drop_pages(int fd, const off_t *offset, size_t length) {
    int saved = errno;
    off_t start;

    if (pl_filtered)
        return;
    start = offset ? *offset : pl_call(SYS_lseek, fd, 0L, SEEK_CUR);
    /* Pages that are only partly in the range stay: so it begins and ends on pages. */
    if (start >= 0 && length < MOST)
        pl_call(SYS_fadvise64, fd, start & -4096L, (start & 4095) + (off_t)length + 4095, POSIX_FADV_DONTNEED);
    else
        pl_call(SYS_fadvise64, fd, 0L, 0L, POSIX_FADV_DONTNEED);
    errno = saved;
}

PUBLIC ssize_t sendfile(int to, int from, off_t *offset, size_t length) {
    if (pl_file_of(from))
        drop_pages(from, offset, length);
    return REAL(sendfile)(to, from, offset, length);
}

PUBLIC ssize_t splice(int from, off_t *offset, int to, off_t *to_offset, size_t length, unsigned flags) {
    if (pl_file_of(from))
        drop_pages(from, offset, length);
    return REAL(splice)(from, offset, to, to_offset, length, flags);
}

/* ---- durability */

static int synchronise(int fd, bool data_only, int (*real)(int)) {
    struct pl_file *file = pl_file_of(fd);
    bool done = false, kernel = file && pl_map_settle(file);

    if (file && !kernel && pl_append_settled(fd, file, data_only))
        return 0;
    if (file && pl_sync(fd, data_only, &done))
        return -1;
    return done && !kernel ? 0 : real(fd);
}

PUBLIC int fsync(int fd) {
    return synchronise(fd, false, REAL(fsync));
}

PUBLIC int fdatasync(int fd) {
    return synchronise(fd, true, REAL(fdatasync));
}

PUBLIC int sync_file_range(int fd, off_t offset, off_t length, unsigned flags) {
    bool done;

    if (flags && pl_file_of(fd) && pl_sync(fd, false, &done))
        return -1;
    return REAL(sync_file_range)(fd, offset, length, flags);
}

/* ---- descriptors */

static int adopted(int fd, int flags) {
    if (fd >= 0)
        pl_adopt(fd, flags);
    if (unlikely(flags & O_TRUNC) && fd >= 0)
        pl_map_check(fd);
    return fd;
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                                                     \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

PUBLIC int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return adopted(REAL(open)(path, flags, mode), flags);
}

PUBLIC int openat(int directory, const char *path, int flags, ...) {
    MODE_OF(flags)
    return adopted(REAL(openat)(directory, path, flags, mode), flags);
}

PUBLIC int creat(const char *path, mode_t mode) {
    return open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

PUBLIC int __open_2(const char *path, int flags) {
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE)
        __chk_fail();
    return open(path, flags);
}

PUBLIC int __openat_2(int directory, const char *path, int flags) {
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE)
        __chk_fail();
    return openat(directory, path, flags);
}

PUBLIC int close(int fd) {
    if (unlikely(pl_file_of(fd) != NULL))
        pl_forget(fd);
    return REAL(close)(fd);
}

PUBLIC int close_range(unsigned first, unsigned last, int flags) {
    if (first <= last && !(flags & ~(int)CLOSE_RANGE_UNSHARE))
        pl_forget_from(first, last);
    if (!REAL(close_range)) {
        errno = ENOSYS;
        return -1;
    }
    return REAL(close_range)(first, last, flags);
}

PUBLIC void closefrom(int first) {
    pl_forget_from(first < 0 ? 0 : (unsigned)first, UINT_MAX);
    if (REAL(closefrom))
        REAL(closefrom)(first);
}

PUBLIC int dup(int fd) {
    int copy = REAL(dup)(fd);

    if (copy >= 0)
        pl_duplicated(fd, copy);
    return copy;
}

PUBLIC int dup2(int fd, int copy) {
    if (fd == copy)
        return REAL(dup2)(fd, copy);
    if (unlikely(pl_file_of(copy) != NULL))
        pl_forget(copy);
    if (REAL(dup2)(fd, copy) < 0)
        return -1;
    pl_duplicated(fd, copy);
    return copy;
}

PUBLIC int dup3(int fd, int copy, int flags) {
    if (fd != copy && unlikely(pl_file_of(copy) != NULL))
        pl_forget(copy);
    if (REAL(dup3)(fd, copy, flags) < 0)
        return -1;
    pl_duplicated(fd, copy);
    return copy;
}

PUBLIC int fcntl(int fd, int command, ...) {
    va_list rest;
    void *argument;
    int result;

    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    result = REAL(fcntl)(fd, command, argument);
    if (result < 0 || likely(pl_file_of(fd) == NULL && command != F_DUPFD && command != F_DUPFD_CLOEXEC))
        return result;
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        pl_duplicated(fd, result);
    else if (command == F_SETFL)
        pl_set_flags(fd);
    return result;
}

/* ---- vfork: child and parent share memory and this very stack, one after the other, so the return address is kept in a
 * register meanwhile. Where the parent goes on, this thread's memory is its own again. */

#ifdef __x86_64__
__attribute__((used)) static void before_vfork(void) {
    pl_vforked = true;
}

__attribute__((used)) static long failed_vfork(long number) {
    errno = (int)-number;
    return -1;
}

__asm__(".text\n"
        ".globl vfork\n"
        ".globl __vfork\n"
        ".type vfork, @function\n"
        ".type __vfork, @function\n"
        "vfork:\n"
        "__vfork:\n"
        "    sub $8, %rsp\n"
        "    call before_vfork\n"
        "    add $8, %rsp\n"
        "    pop %rdi\n"
        "    mov $58, %eax\n" /* SYS_vfork */
        "    syscall\n"
        "    push %rdi\n"
        "    test %rax, %rax\n"
        "    jz 1f\n"
        "    mov pl_vforked@gottpoff(%rip), %rcx\n"
        "    movb $0, %fs:(%rcx)\n"
        "    js 2f\n"
        "1:  ret\n"
        "2:  mov %rax, %rdi\n"
        "    sub $8, %rsp\n"
        "    call failed_vfork\n"
        "    add $8, %rsp\n"
        "    ret\n"
        ".size vfork, . - vfork\n"
        ".size __vfork, . - __vfork\n");
#else
PUBLIC pid_t vfork(void) {
    return fork();
}
#endif

/* ---- the other names of the same functions (off_t has 64 bits) */

#define ALSO(name, of) PUBLIC __typeof__(of) name __attribute__((alias(#of), copy(of)))

ALSO(open64, open);
ALSO(__open, open);
ALSO(__open64, open);
ALSO(openat64, openat);
ALSO(creat64, creat);
ALSO(__open64_2, __open_2);
ALSO(__openat64_2, __openat_2);
ALSO(__close, close);
ALSO(__dup2, dup2);
ALSO(fcntl64, fcntl);
ALSO(__fcntl, fcntl);
ALSO(__read, read);
ALSO(__write, write);
ALSO(pread64, pread);
ALSO(__pread64, pread);
ALSO(__pread64_chk, __pread_chk);
ALSO(pwrite64, pwrite);
ALSO(__pwrite64, pwrite);
ALSO(preadv64, preadv);
ALSO(pwritev64, pwritev);
ALSO(preadv64v2, preadv2);
ALSO(pwritev64v2, pwritev2);
ALSO(sendfile64, sendfile);
