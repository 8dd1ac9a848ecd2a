/* The start of the preload library: the C library's functions, the environment, forks.
 *
 * The file that may call what takes memory (dlsym, pthread_atfork): in pl_start, which the constructor runs
 * before the program has threads; another library's constructor may be earlier and runs it then.
 */
#include "preload.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct pl_real pl_real;
_Atomic bool pl_started;
bool pl_disabled;

#define FIND(name) (*(void **)&pl_real.name = dlsym(RTLD_NEXT, #name))

void pl_start(void) {
    const char *wanted = getenv("DAXFS_DIRECT");

    FIND(open);
    FIND(openat);
    FIND(close);
    FIND(close_range);
    FIND(dup);
    FIND(dup2);
    FIND(dup3);
    FIND(fcntl);
    FIND(read);
    FIND(write);
    FIND(pread);
    FIND(pwrite);
    FIND(readv);
    FIND(writev);
    FIND(preadv);
    FIND(pwritev);
    FIND(preadv2);
    FIND(pwritev2);
    FIND(fsync);
    FIND(fdatasync);
    FIND(sync_file_range);
    FIND(sendfile);
    FIND(splice);
    FIND(closefrom);
    if (wanted && !strcmp(wanted, "0"))
        pl_disabled = true;
    pl_count_start();
    pl_find_lines();
    pl_learn_limit();
    pl_new_holder();
    if (!atomic_exchange(&pl_started, true)) {
        pthread_atfork(pl_before_fork, pl_after_fork_parent, pl_after_fork_child);
        pthread_atfork(pl_book_before_fork, pl_book_after_fork_parent, pl_book_after_fork_child);
        pthread_atfork(NULL, NULL, pl_count_again);
    }
}

__attribute__((constructor)) static void begin(void) {
    if (!pl_started)
        pl_start();
}

void *pl_next(const char *name, void *_Atomic *found) {
    void *function = atomic_load_explicit(found, memory_order_relaxed);

    if (!function) {
        function = dlsym(RTLD_NEXT, name);
        atomic_store_explicit(found, function, memory_order_relaxed);
    }
    return function;
}

/* What a program leaves open at its end still gets its times. */
__attribute__((destructor)) static void end(void) {
    pl_tell_all();
    pl_count_say();
}
