/* What a fork makes of open files.
 *
 * A child starts as a new holder that knows no extents. The handlers are pthread_atfork's.
 */
#ifndef DAXFS_FORK_H
#define DAXFS_FORK_H

#include "base.h"

#pragma GCC visibility push(hidden)

void pl_before_fork(void);
void pl_after_fork_child(void);
/* Whether this process may use what the library knows. False: a child of vfork(2), or a child that was forked without
 * the handlers, which is noticed and made good now. */
bool pl_own_process(void);

#pragma GCC visibility pop

#endif
