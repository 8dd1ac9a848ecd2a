/* Keep the table of descriptors up to date.
 *
 * The table follows the kernel: an entry is removed before the kernel closes the descriptor, and added after the kernel
 * has made it.
 */
#ifndef DAXFS_TABLE_H
#define DAXFS_TABLE_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* Add a descriptor that open(2) has just returned, opened with these flags, if it is a file of daxfs. */
void pl_adopt(int fd, int flags);
/* Add `copy`, which was just made as a duplicate of `fd`. */
void pl_duplicated(int fd, int copy);
/* Remove a descriptor that the kernel is about to close, or dup2(2) to overwrite. */
void pl_forget(int fd);
/* Remove all descriptors from `first` to `last`. */
void pl_forget_from(unsigned first, unsigned last);
/* Read the file status flags again after F_SETFL. */
void pl_set_flags(int fd);

#pragma GCC visibility pop

#endif
