/* A filter kills for a call that it does not know, and the program's author knew nothing of this library's requests. So
 * before the filter is set the daemon is told all that was stored. After it pread(2) from memory that is known goes on
 * as before, and mappings stay, which takes no system call. Everything else is the plain call that the program made.
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
