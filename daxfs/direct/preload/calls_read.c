/* read(2), write(2) and their variants. */
#include "calls.h"

#include "access.h"
#include "atomic.h"
#include "memory.h"

PUBLIC ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_offset(fd, file, &(struct iovec){buffer, length}, 1, offset, false);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pread)(fd, buffer, length, offset);
}

PUBLIC ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_offset(fd, file, &(struct iovec){(void *)buffer, length}, 1, offset, true);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pwrite)(fd, buffer, length, offset);
}

PUBLIC ssize_t read(int fd, void *buffer, size_t length) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_position(fd, file, &(struct iovec){buffer, length}, 1, false);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(read)(fd, buffer, length);
}

PUBLIC ssize_t write(int fd, const void *buffer, size_t length) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_position(fd, file, &(struct iovec){(void *)buffer, length}, 1, true);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(write)(fd, buffer, length);
}

PUBLIC ssize_t readv(int fd, const struct iovec *vector, int count) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_position(fd, file, vector, count, false);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(readv)(fd, vector, count);
}

PUBLIC ssize_t writev(int fd, const struct iovec *vector, int count) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_position(fd, file, vector, count, true);

        if (done != PL_NO)
            return done >= 0 ? done : -1;
    }
    return REAL(writev)(fd, vector, count);
}

PUBLIC ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_offset(fd, file, vector, count, offset, false);

        if (likely(done >= 0))
            return done;
    }
    return REAL(preadv)(fd, vector, count, offset);
}

PUBLIC ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset) {
    struct pl_file *file = pl_file_of(fd);

    if (file) {
        ssize_t done = pl_at_offset(fd, file, vector, count, offset, true);

        if (likely(done >= 0))
            return done;
    }
    return REAL(pwritev)(fd, vector, count, offset);
}

/* A call with other flags (RWF_APPEND, RWF_DSYNC, ...) goes to the kernel. */
PUBLIC ssize_t preadv2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    if (!flags && pl_file_of(fd))
        return offset == -1 ? readv(fd, vector, count) : preadv(fd, vector, count, offset);
    return REAL(preadv2)(fd, vector, count, offset, flags);
}

PUBLIC ssize_t pwritev2(int fd, const struct iovec *vector, int count, off_t offset, int flags) {
    if (!flags && pl_file_of(fd))
        return offset == -1 ? writev(fd, vector, count) : pwritev(fd, vector, count, offset);
    if (unlikely(flags & RWF_ATOMIC))
        return pl_write_atomic(fd, vector, count, offset, flags);
    return REAL(pwritev2)(fd, vector, count, offset, flags);
}

/* Programs built with _FORTIFY_SOURCE call these. */
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
