/* The C library's own functions, and the start of the library.
 *
 * Only this layer may call functions that allocate memory (dlsym, pthread_atfork): in pl_start, which the constructor
 * runs before the program has threads. The constructor of another library may run earlier, and call it then.
 */
#ifndef DAXFS_START_H
#define DAXFS_START_H
#include "base.h"

#include <signal.h>
#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Functions of the C library that pl_start looks up. */
struct pl_real {
    int (*open)(const char *, int, ...);
    int (*openat)(int, const char *, int, ...);
    int (*close)(int);
    int (*close_range)(unsigned, unsigned, int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    int (*fcntl)(int, int, ...);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*write)(int, const void *, size_t);
    ssize_t (*pread)(int, void *, size_t, off_t);
    ssize_t (*pwrite)(int, const void *, size_t, off_t);
    ssize_t (*readv)(int, const struct iovec *, int);
    ssize_t (*writev)(int, const struct iovec *, int);
    ssize_t (*preadv)(int, const struct iovec *, int, off_t);
    ssize_t (*pwritev)(int, const struct iovec *, int, off_t);
    ssize_t (*preadv2)(int, const struct iovec *, int, off_t, int);
    ssize_t (*pwritev2)(int, const struct iovec *, int, off_t, int);
    int (*fsync)(int);
    int (*fdatasync)(int);
    int (*sync_file_range)(int, off_t, off_t, unsigned);
    ssize_t (*sendfile)(int, int, off_t *, size_t);
    ssize_t (*splice)(int, off_t *, int, off_t *, size_t, unsigned);
    void (*closefrom)(int);
    int (*sigaction)(int, const struct sigaction *, struct sigaction *);
    void (*(*signal)(int, void (*)(int)))(int);
    void (*(*__sysv_signal)(int, void (*)(int)))(int);
};

extern struct pl_real pl_real;
extern _Atomic bool pl_started;

/* Look the functions up, read the environment (DAXFS_DIRECT=0: do nothing), prepare for forks. It may be called again.
 */
void pl_start(void);
/* Return the C library's function with this name, looked up at the first call and kept in `found`. For rarely used
 * functions, and never in a signal handler. */
void *pl_next(const char *name, void *_Atomic *found);

/* REAL(read)(fd, ...): the C library's function. */
#define REAL(name) ((likely(pl_started) ? (void)0 : pl_start()), pl_real.name)

#pragma GCC visibility pop

#endif
