/* What this process is: the holder of its grants, a child of vfork(2), a program with a seccomp filter.
 *
 * Reading is allowed anywhere. Only start.c, fork.c and filter.c change what is here.
 */
#ifndef DAXFS_PROCESS_H
#define DAXFS_PROCESS_H

#include "base.h"

#pragma GCC visibility push(hidden)

extern bool pl_disabled; /* by the environment */
/* The program has a seccomp filter: the library makes no system call that is not the program's own. */
extern _Atomic bool pl_filtered;
/* A child of vfork(2) runs in its parent's memory, which it must not change. The child shares this thread's flag. */
extern PL_THREAD bool pl_vforked;

static inline bool pl_foreign(void) {
    return unlikely(pl_vforked);
}

/* Become a new holder, which was granted nothing yet: at the start and in a child of fork(2). */
void pl_new_holder(void);
uint64_t pl_holder(void);
/* The process that the holder stands for. */
pid_t pl_process(void);
/* Whether this process still is the one that the holder stands for: a raw clone(2) calls no fork handlers. */
bool pl_is_holder(void);

#pragma GCC visibility pop

#endif
