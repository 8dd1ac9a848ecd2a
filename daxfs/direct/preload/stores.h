/* What was stored in a file's memory and the daemon was not told yet.
 *
 * Marking a store takes no system call. The caller of the others sees to it that nobody unmaps the pool meanwhile.
 */
#ifndef DAXFS_STORES_H
#define DAXFS_STORES_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* Memory of the file was stored to: fsync(2) and close(2) tell the daemon. */
void pl_stored(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* The same of memory that is not part of the file yet: only the flush needs to know. */
void pl_dirtied(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* msync(2) of the range that was stored to, where the pool needs it. 0 or an errno. */
int pl_flush_stores(struct pl_file *file);
/* Tell the daemon that something was stored, if so. */
void pl_notify(int fd, struct pl_file *file);
/* Tell it in any case, with flags of enum daxfs_durability. False: it does not take it, all stays marked. */
bool pl_notify_with(int fd, struct pl_file *file, uint32_t flags);

#pragma GCC visibility pop

#endif
