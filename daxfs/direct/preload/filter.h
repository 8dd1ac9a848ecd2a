/* Programs that forbid themselves system calls (seccomp).
 *
 * Call these functions before and after a filter is set, with no pin and no lock.
 */
#ifndef DAXFS_FILTER_H
#define DAXFS_FILTER_H

#include "base.h"

#pragma GCC visibility push(hidden)

void pl_before_filter(void);
/* `good`: the filter was set. */
void pl_after_filter(bool good);
/* prctl(2), which may set a filter. */
int pl_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);

#pragma GCC visibility pop

#endif
