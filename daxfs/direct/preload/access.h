/* One read or write: served from memory if possible, after requests to the daemon if these pay.
 *
 * Nothing is pinned or locked by the caller. File positions are always the kernel's. errno changes only where the
 * system call that was made instead sets it.
 */
#ifndef DAXFS_ACCESS_H
#define DAXFS_ACCESS_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Each returns the bytes read or written, or PL_NO: make the plain system call (memory.h). */

/* pread(2), pwrite(2) and their kin. */
ssize_t pl_at_offset(int fd, struct pl_file *file, const struct iovec *vector, int count, off_t offset, bool write);
/* read(2), write(2) and their kin. Another negative number: the system call was made, and has set errno. */
ssize_t pl_at_position(int fd, struct pl_file *file, const struct iovec *vector, int count, bool write);

#pragma GCC visibility pop

#endif
