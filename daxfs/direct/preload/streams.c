/* Streams of the C library over descriptors of ours (fdopen, fopen): it closes those by itself, which must be noticed.
 *
 * Nothing of stdio may be called from a signal handler, so these functions may look up the real ones when they are
 * first called.
 */
#include "preload.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static void forget(FILE *stream) {
    int fd = stream ? fileno_unlocked(stream) : -1;

    if (fd >= 0)
        pl_forget(fd);
}

PUBLIC int fclose(FILE *stream) {
    static int (*real)(FILE *);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "fclose");
    /* Before the last of the buffer is written: by a system call, as all of it. */
    forget(stream);
    return real(stream);
}

PUBLIC FILE *freopen(const char *path, const char *mode, FILE *stream) {
    static FILE *(*real)(const char *, const char *, FILE *);
    FILE *made;

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "freopen");
    forget(stream);
    made = real(path, mode, stream);
    if (made && fileno_unlocked(made) >= 0 && !pl_filtered)
        pl_adopt(fileno_unlocked(made), (int)pl_call(SYS_fcntl, fileno_unlocked(made), F_GETFL));
    return made;
}

PUBLIC FILE *freopen64(const char *path, const char *mode, FILE *stream) {
    return freopen(path, mode, stream);
}
