/* Descriptors that come and go: which of them are files of daxfs.
 *
 * The kernel decides what a descriptor is and the table follows: an entry goes before the kernel closes the descriptor,
 * and comes after the kernel has made it.
 */
#ifndef DAXFS_TABLE_H
#define DAXFS_TABLE_H

#include "base.h"

#pragma GCC visibility push(hidden)

/* open(2) has just given this descriptor, with these flags: it enters the table if it is a file of daxfs. */
void pl_adopt(int fd, int flags);
/* `copy` is a duplicate of `fd`, just made. */
void pl_duplicated(int fd, int copy);
/* The kernel is about to close `fd`, or dup2(2) to overwrite it. */
void pl_forget(int fd);
void pl_forget_from(unsigned first, unsigned last);
/* F_SETFL was done. */
void pl_set_flags(int fd);

#pragma GCC visibility pop

#endif
