/* The state of this process: the holder of its grants, a child of vfork(2), a program with a seccomp filter.
 *
 * Any layer may read the state. Only start.c, fork.c and filter.c change it.
 */
#ifndef DAXFS_PROCESS_H
#define DAXFS_PROCESS_H

#include "base.h"

#pragma GCC visibility push(hidden)

extern bool pl_disabled; /* by the environment */
/* The program has a seccomp filter: the library makes no system calls of its own. */
extern _Atomic bool pl_filtered;
/* Set while a child of vfork(2) runs in this thread's memory, which it must not change. */
extern PL_THREAD bool pl_vforked;

static inline bool pl_foreign(void) {
    return unlikely(pl_vforked);
}

/* Become a new holder without grants, at the start and in a child of fork(2). */
void pl_new_holder(void);
/* Return the holder's number. */
uint64_t pl_holder(void);
/* Return the process id of the holder. */
pid_t pl_process(void);
/* Whether this process is still the holder. A raw clone(2) calls no fork handlers, and its child is not. */
bool pl_is_holder(void);

#pragma GCC visibility pop

#endif
