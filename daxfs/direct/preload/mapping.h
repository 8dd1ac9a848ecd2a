/* Map a file from the pool, and unmap it, with the book's lock.
 *
 * If a file can't be mapped from the pool, the functions map nothing and leave it to the kernel.
 */
#ifndef DAXFS_MAPPING_H
#define DAXFS_MAPPING_H

#include "book.h"

#pragma GCC visibility push(hidden)

/* Whether cached extents cover the whole range. Needs no lock. */
bool pl_known(int fd, struct pl_file *file, uint64_t offset, uint64_t length, bool store);
/* Map a file of daxfs. MAP_FAILED: leave it to the kernel. */
void *pl_map_file(void *address, size_t length, int protection, int flags, int fd, uint64_t offset);
/* Map a file of daxfs through the kernel as a whole, for all mappings of these bytes. Return as mmap(2). */
void *pl_map_plain(void *address, size_t length, int protection, int flags, int fd, uint64_t offset);
/* Prepare for a system call that changes [start, end) of the address space. Needs room for two pieces afterwards. */
void pl_prepare(char *start, char *end);
/* munmap(2) of a range that may have pieces in the book. */
int pl_unmap(char *start, size_t length);

#pragma GCC visibility pop

#endif
