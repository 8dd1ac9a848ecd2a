/* prctl(2), and syscall(2) for calls that the library must notice: libseccomp sets filters by syscall(2), libcap sets
 * capabilities by it, and the C library has no other way to Landlock. Some programs call statx(2) and pwritev2(2) by it.
 */
#include "calls.h"

#include <linux/seccomp.h>
#include <stdarg.h>

#include "atomic.h"
#include "filter.h"
#include "limit.h"
#include "process.h"
#include "rights.h"
#include "sync.h"

PUBLIC int prctl(int option, ...) {
    unsigned long given[4];
    va_list rest;

    va_start(rest, option);
    for (int i = 0; i < 4; i++)
        given[i] = va_arg(rest, unsigned long);
    va_end(rest);
    return pl_prctl(option, given[0], given[1], given[2], given[3]);
}

#ifdef PL_RAW_CALLS

#ifndef SYS_landlock_restrict_self
#define SYS_landlock_restrict_self 446
#endif

static bool changes_rights(long number) {
    switch (number) {
    case SYS_setuid:
    case SYS_setreuid:
    case SYS_setresuid:
    case SYS_setfsuid:
    case SYS_setgid:
    case SYS_setregid:
    case SYS_setresgid:
    case SYS_setfsgid:
    case SYS_setgroups:
    case SYS_capset:
    case SYS_setns:
    case SYS_unshare:
    case SYS_landlock_restrict_self:
        return true;
    default:
        return false;
    }
}

static long set_filter(long operation, long flags, long filter) {
    bool sets = operation == SECCOMP_SET_MODE_STRICT || operation == SECCOMP_SET_MODE_FILTER;
    long result;

    if (sets)
        pl_before_filter();
    result = pl_call(SYS_seccomp, operation, flags, filter);
    if (sets)
        pl_after_filter(result >= 0);
    return result;
}

PUBLIC long syscall(long number, ...) {
    long given[6], result;
    va_list rest;

    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        given[i] = va_arg(rest, long);
    va_end(rest);
    if (unlikely(number == SYS_seccomp))
        return set_filter(given[0], given[1], given[2]);
    if (unlikely(number == SYS_prctl))
        return pl_prctl((int)given[0], (unsigned long)given[1], (unsigned long)given[2], (unsigned long)given[3],
                        (unsigned long)given[4]);
    if (unlikely(number == SYS_pwritev2 && given[5] & RWF_ATOMIC))
        return pl_write_atomic((int)given[0], (const struct iovec *)given[1], (int)given[2], given[3], (int)given[5]);
    if (unlikely(number == SYS_statx))
        return pl_statx((int)given[0], (const char *)given[1], (int)given[2], (unsigned)given[3],
                        (struct statx *)given[4]);
    if (unlikely(number == SYS_sync))
        return pl_sync_mounts(), 0;
    if (unlikely(number == SYS_syncfs))
        return pl_syncfs((int)given[0]);
    result = pl_call(number, given[0], given[1], given[2], given[3], given[4], given[5]);
    if (unlikely(changes_rights(number)))
        pl_check_rights();
    else if (unlikely(number == SYS_prlimit64 || number == SYS_setrlimit) && !pl_foreign())
        pl_read_limit();
    return result;
}

#endif
