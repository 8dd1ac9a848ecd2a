/* Descriptors that the C library opens for itself: streams and temporary files. streams.c has how they are closed.
 *
 * Streams read and write by calls within the C library, through the kernel: the same memory, and the position is the
 * kernel's, so they mix with everything else. But programs map such a descriptor (mmap of fileno), or read and write
 * it themselves, as C++ streams do.
 */
#include "preload.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALSO(name, of) PUBLIC __typeof__(of) name __attribute__((alias(#of), copy(of)))
/* The C library's function: looked up when it is first used, since nothing here is for signal handlers. */
#define FOUND(name) ((__typeof__(&name))pl_next(#name, &found_##name))
#define KNOWN(name) static void *_Atomic found_##name

KNOWN(fopen);
KNOWN(tmpfile);
KNOWN(mkostemps);

static int adopted(int fd) {
    if (fd >= 0 && !pl_filtered) {
        int flags = (int)pl_call(SYS_fcntl, fd, F_GETFL);

        pl_adopt(fd, flags);
        if (flags & O_ACCMODE)
            pl_map_check(fd); /* it may have been opened with O_TRUNC */
    }
    return fd;
}

PUBLIC FILE *fopen(const char *path, const char *mode) {
    FILE *stream = FOUND(fopen)(path, mode);

    if (stream)
        adopted(fileno(stream));
    return stream;
}

ALSO(fopen64, fopen);

PUBLIC FILE *tmpfile(void) {
    FILE *stream = FOUND(tmpfile)();

    if (stream)
        adopted(fileno(stream));
    return stream;
}

ALSO(tmpfile64, tmpfile);

PUBLIC int mkostemps(char *pattern, int suffix, int flags) {
    return adopted(FOUND(mkostemps)(pattern, suffix, flags));
}

ALSO(mkostemps64, mkostemps);

PUBLIC int mkostemp(char *pattern, int flags) {
    return mkostemps(pattern, 0, flags);
}

ALSO(mkostemp64, mkostemp);

PUBLIC int mkstemps(char *pattern, int suffix) {
    return mkostemps(pattern, suffix, 0);
}

ALSO(mkstemps64, mkstemps);

PUBLIC int mkstemp(char *pattern) {
    return mkostemps(pattern, 0, 0);
}

ALSO(mkstemp64, mkstemp);
