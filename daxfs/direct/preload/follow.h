/* Mark stores through mappings, and let mappings follow changes of their files.
 *
 * A function needs the book's lock, unless its comment says that it takes the lock.
 */
#ifndef DAXFS_FOLLOW_H
#define DAXFS_FOLLOW_H

#include "book.h"

#pragma GCC visibility push(hidden)

/* Whether the program may have stored through the piece. */
bool pl_may_be_dirty(const struct pl_piece *piece);
/* Mark [start, end) of a piece as stored to, for the next fsync of `file`. With DAXFS_LINES it is durable at once. */
void pl_mark_piece(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end);
/* Mark [start, end) of all pieces in it, for the next fsync of their files. */
void pl_mark_range(char *start, char *end);
/* Mark all mappings of this file, for its fsync (takes the lock). True: some of them go through the kernel, so the
 * plain system call is needed too. */
bool pl_mark_file(struct pl_file *file);

/* Map the plan's pieces from `start` on in the place of pieces of the same group. */
void pl_replace(char *start, int fd, struct pl_group *group);
/* Map again all pieces whose file has changed. `fd` serves groups of the same file whose own descriptor is closed. */
void pl_follow_groups(int fd);
/* Let mappings follow after a file was cut or punched, perhaps through `fd` (or -1) (takes the lock). */
void pl_follow(int fd);

#pragma GCC visibility pop

#endif
