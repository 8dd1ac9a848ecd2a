/* Serve one read or write from memory if possible, after requests to the daemon if these pay.
 *
 * The caller holds no pin and no lock. The kernel keeps all file positions. errno changes only if a system call that is
 * made instead sets it.
 */
#ifndef DAXFS_ACCESS_H
#define DAXFS_ACCESS_H
#include "file.h"

#include <sys/uio.h>

#pragma GCC visibility push(hidden)

/* Each function returns the bytes read or written, or PL_NO: make the plain system call (memory.h). */

/* pread(2), pwrite(2) and their variants. */
ssize_t pl_at_offset(int fd, struct pl_file *file, const struct iovec *vector, int count, off_t offset, bool write);
/* read(2), write(2) and their variants. Another negative number: the system call was made, and has set errno. */
ssize_t pl_at_position(int fd, struct pl_file *file, const struct iovec *vector, int count, bool write);

#pragma GCC visibility pop

#endif
