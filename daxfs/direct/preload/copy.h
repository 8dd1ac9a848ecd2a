/* Copies between a program's memory and the pool, and the write-back of cache lines.
 *
 * No function here allocates memory, takes a lock or makes a system call, except pl_find_lines, which the constructor
 * calls.
 */
#ifndef DAXFS_COPY_H
#define DAXFS_COPY_H
#include "base.h"

#include <string.h>

#pragma GCC visibility push(hidden)

/* Copy from the pool. */
static inline void pl_load(void *to, const char *from, size_t length) {
    memcpy(to, from, length);
}

/* Copy into the pool. With `lines` the cache lines are written back, so that the bytes are durable afterwards. */
void pl_store(char *to, const void *from, size_t length, bool lines);
/* Find this machine's way to write back cache lines. */
void pl_find_lines(void);
/* Whether this machine's cache lines can be written back. */
bool pl_lines_known(void);
/* Write back the cache lines of a range, and fence. */
void pl_write_back(const char *address, size_t length);

#pragma GCC visibility pop

#endif
