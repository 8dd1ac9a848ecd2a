/* The copy saves each write a system call. A change by another process (prlimit --pid) is not seen. As the kernel does
 * (generic_write_check_limits), the library compares every write with the limit, also one that only overwrites.
 */
#include "limit.h"

#include <errno.h>
#include <sys/resource.h>

_Atomic uint64_t pl_file_limit;

/* Two threads may change the limit at once. The loop ends when the copy has the kernel's last value. */
void pl_read_limit(void) {
    struct rlimit64 limit;
    int saved = errno;

    do {
        if (pl_call(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &limit))
            limit.rlim_cur = 0; /* unknown: leave every write to the kernel */
    } while (atomic_exchange(&pl_file_limit, limit.rlim_cur) != limit.rlim_cur);
    errno = saved;
}
