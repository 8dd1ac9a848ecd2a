/* Prepare open files for fork(2).
 *
 * A child starts as a new holder without cached extents. pl_before_fork and pl_after_fork_child are handlers of
 * pthread_atfork.
 */
#ifndef DAXFS_FORK_H
#define DAXFS_FORK_H

#include "base.h"

#pragma GCC visibility push(hidden)

void pl_before_fork(void);
void pl_after_fork_child(void);
/* Whether this process may use the library's state. False in a child of vfork(2), and once in a child that was forked
 * without the handlers: the function then does their work. */
bool pl_own_process(void);

#pragma GCC visibility pop

#endif
