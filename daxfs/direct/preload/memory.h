/* Loads and stores of file content in the pool's memory.
 *
 * Copies only: no system call, no request, no lock. A file without what it takes says why.
 */
#ifndef DAXFS_MEMORY_H
#define DAXFS_MEMORY_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Why memory did not serve; PL_NOT_YET: it may next time. */
enum { PL_NO = -1, PL_UNKNOWN_PLACE = -2, PL_IN_HOLE = -3, PL_BEYOND = -4, PL_NOT_YET = -5 };

/* Copy to the memory at `offset` of the file (pinned), where all of it is memory; 0 or a reason. Nothing is marked but
 * what must be flushed. */
ssize_t pl_put(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset);
/* Load or store once, by what is known. The bytes copied, or a reason; they count only if the lease held all the time.
 */
ssize_t pl_attempt(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset, bool write);

#pragma GCC visibility pop

#endif
