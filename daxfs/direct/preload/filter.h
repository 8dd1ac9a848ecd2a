/* A program that forbids itself system calls (seccomp).
 *
 * Call these before and after a filter is set, with no pin and no lock.
 */
#ifndef DAXFS_FILTER_H
#define DAXFS_FILTER_H

#include "base.h"

#pragma GCC visibility push(hidden)

void pl_before_filter(void);
/* Whether the filter was set. */
void pl_after_filter(bool good);
/* prctl(2), which may set one. */
int pl_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);

#pragma GCC visibility pop

#endif
