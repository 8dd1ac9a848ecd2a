/* Extending writes: stored in memory past EOF, which the daemon then makes part of the file.
 *
 * One thread at a time appends to a file; another thread makes the system call. The caller holds no pin.
 */
#ifndef DAXFS_APPEND_H
#define DAXFS_APPEND_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Extend the file by a write at `base` that reaches past EOF. Return its length, or a reason (memory.h) to make the
 * system call. `epoch_changed` becomes true if the epoch changed meanwhile: mappings of the file must follow. */
ssize_t pl_append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base,
                  bool *epoch_changed);
/* For fsync(2) and fdatasync(2): whether all appended bytes are durable already, and the file has not changed since. */
bool pl_append_durable(int fd, struct pl_file *file, bool data_only);

#pragma GCC visibility pop

#endif
