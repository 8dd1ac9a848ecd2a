/* The base of every file of the preload library: attributes, and system calls without the C library.
 *
 * Rules for all layers: since the caller may be a signal handler, a function does not call malloc, does not wait for
 * another thread without a limit and does not change errno, unless its comment says so. A function that can't do its
 * work reports that, and the caller makes the plain system call, which is always right.
 *
 * LAYERS has the order of the layers. A file includes its own header and headers of layers below it, and no others.
 */
#ifndef DAXFS_BASE_H
#define DAXFS_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "../daxfs.h"

#pragma GCC visibility push(hidden)

#define PUBLIC __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define PL_THREAD __thread __attribute__((tls_model("initial-exec")))

/* The library makes raw system calls: syscall(2) is one of the functions that it replaces. */

#if defined(__x86_64__)
#define PL_RAW_CALLS
static inline long pl_kernel(long number, long a, long b, long c, long d, long e, long f) {
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    register long sixth __asm__("r9") = f;
    long answer;

    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return answer;
}
#elif defined(__aarch64__)
#define PL_RAW_CALLS
static inline long pl_kernel(long number, long a, long b, long c, long d, long e, long f) {
    register long which __asm__("x8") = number;
    register long answer __asm__("x0") = a;
    register long second __asm__("x1") = b, third __asm__("x2") = c, fourth __asm__("x3") = d;
    register long fifth __asm__("x4") = e, sixth __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(answer)
                     : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "memory");
    return answer;
}
#endif

#ifdef PL_RAW_CALLS
static inline long pl_checked(long answer) {
    if (likely((unsigned long)answer < -4095UL))
        return answer;
    errno = (int)-answer;
    return -1;
}

#define PL_SIX(number, a, b, c, d, e, f, ...)                                                                          \
    pl_checked(pl_kernel((long)(number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)))
#define pl_call(...) PL_SIX(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#else
#define pl_call syscall
#endif

#pragma GCC visibility pop

#endif
