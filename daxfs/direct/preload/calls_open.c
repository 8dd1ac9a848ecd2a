/* open(2), close(2), dup(2) and their variants. */
#include "calls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <stdarg.h>

#include "follow.h"
#include "table.h"

static int adopted(int fd, int flags) {
    if (fd >= 0)
        pl_adopt(fd, flags);
    if (unlikely(flags & O_TRUNC) && fd >= 0)
        pl_follow(fd);
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
