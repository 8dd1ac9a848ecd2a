/* Writes that reach past EOF: stored in memory there, which the daemon makes part of the file.
 *
 * One thread at a time appends to a file; another one makes the system call. Nothing is pinned by the caller.
 */
#ifndef DAXFS_APPEND_H
#define DAXFS_APPEND_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* A write at `base` that reaches past EOF. Its length, or a reason (memory.h) to make the system call. `moved` becomes
 * true if the epoch moved meanwhile: mappings of the file must follow. */
ssize_t pl_append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base, bool *moved);
/* For fsync(2) and fdatasync(2): whether what was appended is durable already, and nothing has changed since. */
bool pl_append_durable(int fd, struct pl_file *file, bool data_only);

#pragma GCC visibility pop

#endif
