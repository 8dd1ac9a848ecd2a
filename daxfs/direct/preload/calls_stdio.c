/* Descriptors that the C library opens and closes itself: streams and temporary files.
 *
 * Streams read and write by calls inside the C library, which go through the kernel. That mixes with direct access: the
 * memory is the same, and the kernel keeps the position. But programs map such a descriptor (mmap of fileno), or read
 * and write it themselves, as C++ streams do.
 */
#include "calls.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "follow.h"
#include "process.h"
#include "table.h"

/* The C library's function, looked up at its first use: none of these functions may be called in a signal handler. */
#define FOUND(name) ((__typeof__(&name))pl_next(#name, &found_##name))
#define KNOWN(name) static void *_Atomic found_##name

KNOWN(fopen);
KNOWN(tmpfile);
KNOWN(mkostemps);
KNOWN(fclose);
KNOWN(freopen);

static int adopted(int fd) {
    if (fd >= 0 && !pl_filtered) {
        int flags = (int)pl_call(SYS_fcntl, fd, F_GETFL);

        pl_adopt(fd, flags);
        if (flags & O_ACCMODE)
            pl_follow(fd); /* it may have been opened with O_TRUNC */
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

static void forget(FILE *stream) {
    int fd = stream ? fileno_unlocked(stream) : -1;

    if (fd >= 0)
        pl_forget(fd);
}

PUBLIC int fclose(FILE *stream) {
    /* Before the rest of the buffer is written: the C library writes by system calls. */
    forget(stream);
    return FOUND(fclose)(stream);
}

PUBLIC FILE *freopen(const char *path, const char *mode, FILE *stream) {
    FILE *made;

    forget(stream);
    made = FOUND(freopen)(path, mode, stream);
    if (made && fileno_unlocked(made) >= 0 && !pl_filtered)
        pl_adopt(fileno_unlocked(made), (int)pl_call(SYS_fcntl, fileno_unlocked(made), F_GETFL));
    return made;
}

ALSO(freopen64, freopen);
