/* The limit of file sizes (RLIMIT_FSIZE), which the kernel looks at for each write (generic_write_check_limits), also
 * for one that stores over what is there.
 *
 * A write that goes past the limit is left to the kernel, which cuts it off, or sends SIGXFSZ and says EFBIG. The limit
 * is remembered, so that it costs a write no system call; a change that another process makes (prlimit --pid) is not
 * seen.
 */
#include "preload.h"

_Atomic uint64_t pl_file_limit;

/* Two threads may change it at once: what is remembered in the end is what the kernel says then. */
void pl_learn_limit(void) {
    struct rlimit64 limit;
    int saved = errno;

    do {
        if (pl_call(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit))
            limit.rlim_cur = 0; /* unknown: every write is the kernel's */
    } while (atomic_exchange(&pl_file_limit, limit.rlim_cur) != limit.rlim_cur);
    errno = saved;
}

/* A child of vfork(2) changes its own limit, but would change the parent's memory. */
static int change(pid_t process, __rlimit_resource_t resource, const void *wanted, void *old) {
    int failed = (int)pl_call(SYS_prlimit64, process, resource, wanted, old);

    if (!failed && wanted && resource == RLIMIT_FSIZE && !pl_foreign())
        pl_learn_limit();
    return failed;
}

PUBLIC int prlimit(pid_t process, __rlimit_resource_t resource, const struct rlimit *wanted, struct rlimit *old) {
    return change(process, resource, wanted, old);
}

PUBLIC int prlimit64(pid_t process, __rlimit_resource_t resource, const struct rlimit64 *wanted, struct rlimit64 *old) {
    return change(process, resource, wanted, old);
}

PUBLIC int setrlimit(__rlimit_resource_t resource, const struct rlimit *wanted) {
    return change(0, resource, wanted, NULL);
}

PUBLIC int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *wanted) {
    return change(0, resource, wanted, NULL);
}
