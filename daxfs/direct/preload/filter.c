/* Programs that forbid themselves system calls (seccomp): from then on the library makes none of its own.
 *
 * A filter kills for a call that it does not know, and the program's author knew nothing of this library's questions to
 * the daemon. So before the filter is set all that was stored is told; after it pread(2) from memory that is known goes on
 * as before, and mappings stay, which takes no system call. Everything else is the plain call that the program made.
 */
#include "preload.h"

#include <linux/seccomp.h>
#include <stdarg.h>
#include <sys/prctl.h>

_Atomic bool pl_filtered;

void pl_filter_comes(void) {
    if (pl_foreign() || pl_disabled || pl_filtered)
        return;
    pl_settle_all();
    pl_keep_pools();
    atomic_store(&pl_filtered, true);
}

void pl_filter_came(bool good) {
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
    pl_filter_comes();
    result = (int)pl_call(SYS_prctl, option, a, b, c, d);
    pl_filter_came(result == 0);
    return result;
}

PUBLIC int prctl(int option, ...) {
    unsigned long given[4];
    va_list rest;

    va_start(rest, option);
    for (int i = 0; i < 4; i++)
        given[i] = va_arg(rest, unsigned long);
    va_end(rest);
    return pl_prctl(option, given[0], given[1], given[2], given[3]);
}
