/* Make stores of this process durable, those by calls and those through mappings.
 *
 * Each function takes the book's lock and makes requests, so the caller holds no pin and no lock.
 */
#ifndef DAXFS_DURABLE_H
#define DAXFS_DURABLE_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Make all direct stores to a file durable: flush them, then send DAXFS_IOC_STORED, or for fdatasync(2) what is needed.
 * Return 0, or -1 with errno. `done` becomes true if nothing of what fsync(2) or fdatasync(2) does is left to do. */
int pl_sync(int fd, bool data_only, bool *done);
/* Whether pages of a file wait to be written back, since a program without the library has stored through a mapping. A
 * kernel without cachestat(2) has no such mappings of files of daxfs. One that refuses to tell may have, and so may one
 * that a filter of system calls keeps from being asked. */
bool pl_has_dirty_pages(int fd);
/* Flush this process's stores to files of the mount with this st_dev (0: of all mounts), and notify the daemon. Return
 * 0, or the errno of a flush that failed. */
int pl_flush_mount(dev_t device);
/* Flush and notify for all mounts, before a seccomp filter forbids the library's own system calls. */
void pl_flush_all(void);
/* Notify the daemon of stores to files that are still open at the end of the program. */
void pl_notify_all(void);

#pragma GCC visibility pop

#endif
