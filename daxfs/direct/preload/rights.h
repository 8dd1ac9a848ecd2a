/* Unmap pools that the process could no longer map after a change of its rights.
 *
 * Call pl_check_rights after each change of user, group, capabilities or namespace, with no pin and no lock.
 */
#ifndef DAXFS_RIGHTS_H
#define DAXFS_RIGHTS_H

#include "base.h"

#pragma GCC visibility push(hidden)

void pl_check_rights(void);

#pragma GCC visibility pop

#endif
