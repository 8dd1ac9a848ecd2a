/* sync(2) and syncfs(2) for mounts of daxfs.
 *
 * Call it with no pin and no lock; each may wait for daemons.
 */
#ifndef DAXFS_SYNC_H
#define DAXFS_SYNC_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* As sync(2) and syncfs(2); the daemons of believed mounts are asked too. */
void pl_sync_mounts(void);
int pl_syncfs(int fd);

#pragma GCC visibility pop

#endif
