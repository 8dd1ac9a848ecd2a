/* The constructor and the destructor of the library. */
#include "start.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "book.h"
#include "copy.h"
#include "counts.h"
#include "durable.h"
#include "fork.h"
#include "guard.h"
#include "limit.h"
#include "process.h"

struct pl_real pl_real;
_Atomic bool pl_started;

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
    FIND(sigaction);
    FIND(signal);
    FIND(__sysv_signal);
    pl_real_sigaction = pl_real.sigaction;
    if (wanted && !strcmp(wanted, "0"))
        pl_disabled = true;
    pl_count_start();
    pl_find_lines();
    pl_read_limit();
    pl_new_holder();
    if (!atomic_exchange(&pl_started, true)) {
        pthread_atfork(pl_before_fork, NULL, pl_after_fork_child);
        pthread_atfork(pl_book_before_fork, pl_book_after_fork_parent, pl_book_after_fork_child);
        pthread_atfork(NULL, NULL, pl_counts_reset);
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

/* Notify the daemon of stores to files that the program leaves open, so that their times change. */
__attribute__((destructor)) static void end(void) {
    pl_notify_all();
    pl_counts_print();
}
