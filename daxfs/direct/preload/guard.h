/* Memory of a pool that is not there: SIGBUS inside the library.
 *
 * A pool's file may be cut, its medium may fail, and a full file system can't fill its holes. Then a load or store in
 * the mapping of the pool, which only the library uses, is SIGBUS. The handler puts private zeros in the place of the
 * whole mapping. So no lease holds any longer (the status entries read as 0, which is no epoch), nothing is stored to
 * the pool, and the system calls take over. Every other SIGBUS is the program's own.
 */
#ifndef DAXFS_GUARD_H
#define DAXFS_GUARD_H

#include "base.h"

#include <signal.h>

#pragma GCC visibility push(hidden)

/* The C library's sigaction(2). Set by start.c. */
extern int (*pl_real_sigaction)(int, const struct sigaction *, struct sigaction *);

/* Guard the mapping of a pool, before it is touched; `missing` becomes true before zeros replace it. */
void pl_guard(char *base, size_t size, _Atomic bool *missing);
/* End the guard of the mapping that begins at `base`. */
void pl_unguard(const char *base);
/* Write back cache lines of any mapping. False: memory is missing there. */
bool pl_guarded_write_back(const char *address, size_t length);
/* sigaction(2) for SIGBUS as the program calls it: its handler gets what is not the library's. */
int pl_program_sigbus(const struct sigaction *wanted, struct sigaction *old);

#pragma GCC visibility pop

#endif
