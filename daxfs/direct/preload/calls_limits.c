/* setrlimit(2) and prlimit(2): the library remembers the limit of file sizes. */
#include "calls.h"

#include <sys/resource.h>

#include "limit.h"
#include "process.h"

/* A child of vfork(2) changes its own limit, but pl_read_limit would change the parent's memory. */
static int change(pid_t process, __rlimit_resource_t resource, const void *wanted, void *old) {
    int failed = (int)pl_call(SYS_prlimit64, process, resource, wanted, old);

    if (!failed && wanted && resource == RLIMIT_FSIZE && !pl_foreign())
        pl_read_limit();
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
