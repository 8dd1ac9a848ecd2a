/* The limit is remembered so that a write needs no system call for it. A change that another process makes (prlimit
 * --pid) is not seen. The kernel compares for each write (generic_write_check_limits), also for one that stores over
 * what is there.
 */
#include "limit.h"

#include <errno.h>
#include <sys/resource.h>

_Atomic uint64_t pl_file_limit;

/* Two threads may change the limit at once: what the kernel says last is remembered in the end. */
void pl_read_limit(void) {
    struct rlimit64 limit;
    int saved = errno;

    do {
        if (pl_call(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit))
            limit.rlim_cur = 0; /* unknown: every write is the kernel's */
    } while (atomic_exchange(&pl_file_limit, limit.rlim_cur) != limit.rlim_cur);
    errno = saved;
}
