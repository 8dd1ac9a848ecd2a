/* Durability of what this process has stored, by calls and through mappings.
 *
 * Each function takes the book's lock, and makes requests: call it with no pin and no lock.
 */
#ifndef DAXFS_DURABLE_H
#define DAXFS_DURABLE_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Make durable all that was stored directly: flush, then DAXFS_IOC_STORED. 0, or -1 with errno. `done`: the daemon has
 * done all that fsync(2) does. */
int pl_sync(int fd, bool data_only, bool *done);
/* Flush what this process has stored in files of the mount with this st_dev (0: of all), and tell the daemon.
 * 0 or an errno: a flush failed. */
int pl_flush_mount(dev_t device);
/* The same for all mounts, before system calls of the library's own are forbidden. */
void pl_flush_all(void);
/* At the end of the program: tell the daemon what was stored in files that are still open. */
void pl_notify_all(void);

#pragma GCC visibility pop

#endif
