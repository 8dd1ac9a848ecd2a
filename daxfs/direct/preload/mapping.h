/* Mapping a file, and unmapping, below the book's lock.
 *
 * A file that can't be mapped from the pool is the kernel's: nothing is mapped then that was not before.
 */
#ifndef DAXFS_MAPPING_H
#define DAXFS_MAPPING_H

#include "book.h"

#pragma GCC visibility push(hidden)

/* Whether reads and writes have learned where all of a range lies (without the lock). */
bool pl_known(int fd, struct pl_file *file, uint64_t offset, uint64_t length, bool store);
/* Map a file of daxfs; MAP_FAILED: the kernel shall do it. */
void *pl_map_file(void *address, size_t length, int protection, int flags, int fd, uint64_t offset);
/* munmap(2). */
int pl_unmap(char *start, size_t length);

#pragma GCC visibility pop

#endif
