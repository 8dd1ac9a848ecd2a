/* A seccomp filter kills the program for a system call that its author did not foresee, as the library's requests are.
 * So the library flushes all stores and notifies the daemon before the filter is set. Afterwards pread(2) from cached
 * extents and existing mappings work as before, because they make no system call. All other calls of the program go to
 * the kernel unchanged.
 */
#include "filter.h"

#include <linux/seccomp.h>
#include <sys/prctl.h>

#include "durable.h"
#include "pool.h"
#include "process.h"

void pl_before_filter(void) {
    if (pl_foreign() || pl_disabled || pl_filtered)
        return;
    pl_flush_all();
    pl_keep_pools();
    atomic_store(&pl_filtered, true);
}

void pl_after_filter(bool good) {
    static _Atomic bool before;

    if (good)
        atomic_store(&before, true);
    else if (!pl_foreign() && !before)
        atomic_store(&pl_filtered, false);
}

int pl_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) {
    int result;

    if (option != PR_SET_SECCOMP)
        return (int)pl_call(SYS_prctl, option, a, b, c, d);
    pl_before_filter();
    result = (int)pl_call(SYS_prctl, option, a, b, c, d);
    pl_after_filter(result == 0);
    return result;
}
