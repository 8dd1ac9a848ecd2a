/* sync(2) and syncfs(2) for mounts of daxfs.
 *
 * The caller holds no pin and no lock. Both functions may wait for daemons.
 */
#ifndef DAXFS_SYNC_H
#define DAXFS_SYNC_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* sync(2), followed by a request to the daemons of all trusted mounts. */
void pl_sync_mounts(void);
/* syncfs(2), followed by a request to the daemon if the mount is trusted. */
int pl_syncfs(int fd);

#pragma GCC visibility pop

#endif
