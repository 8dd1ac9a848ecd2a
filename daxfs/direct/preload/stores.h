/* Stores to a file's memory that the daemon was not notified of yet.
 *
 * Marking a store makes no system call. The caller of the other functions makes sure that no thread unmaps the pool
 * meanwhile.
 */
#ifndef DAXFS_STORES_H
#define DAXFS_STORES_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* Return the time in ms. The C library reads it without a system call. */
uint64_t pl_now(void);
/* Mark memory of the file as stored to: fsync(2) and close(2) notify the daemon. */
void pl_stored(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* Mark memory that is not part of the file yet as stored to: it is flushed, and the daemon is not notified. */
void pl_dirtied(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* Flush the marked range by msync(2), if the pool needs it. Return 0 or an errno. */
int pl_flush_stores(struct pl_file *file);
/* Whether there are marked stores and the daemon was not notified of any for a second: the file's times lag behind. */
bool pl_times_lag(struct pl_file *file);
/* Notify the daemon if there are marked stores. */
void pl_notify(int fd, struct pl_file *file);
/* Notify the daemon in any case, with flags of enum daxfs_durability. False: it refused, and all stays marked. */
bool pl_notify_with(int fd, struct pl_file *file, uint32_t flags);

#pragma GCC visibility pop

#endif
