/* Load and store file content in the pool's memory.
 *
 * These functions only copy: no system call, no request, no lock. If memory can't serve, they return the reason.
 */
#ifndef DAXFS_MEMORY_H
#define DAXFS_MEMORY_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Why memory could not serve an access; PL_NOT_YET: it may serve the next one. */
enum { PL_NO = -1, PL_UNKNOWN_PLACE = -2, PL_IN_HOLE = -3, PL_BEYOND = -4, PL_NOT_YET = -5 };

/* Copy to the memory at `offset` of the file (pinned) if the whole range is memory. Return 0 or a reason. It only marks
 * the range that must be flushed. */
ssize_t pl_put(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset);
/* Load or store once, by the cached extents. Return the bytes copied, or a reason; the copy counts only if the lease
 * held all the time. */
ssize_t pl_attempt(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset, bool write);

#pragma GCC visibility pop

#endif
