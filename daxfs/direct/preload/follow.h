/* Mappings and their files: stores through mappings are marked, and mappings follow changes of the file.
 *
 * Functions whose comment does not say otherwise need the book's lock; the others take it.
 */
#ifndef DAXFS_FOLLOW_H
#define DAXFS_FOLLOW_H

#include "book.h"

#pragma GCC visibility push(hidden)

/* Whether something may have been stored through the piece. */
bool pl_may_be_dirty(const struct pl_piece *piece);
/* What was stored to [start, end) of a piece is for the next fsync of `file`, or is durable now (cache lines). */
void pl_mark_piece(const struct pl_piece *piece, struct pl_file *file, const char *start, const char *end);
void pl_mark_range(char *start, char *end);
/* For fsync: mark what was stored through all mappings of this file (takes the lock). True: some go through the kernel,
 * so the plain system call is needed as well. */
bool pl_mark_file(struct pl_file *file);

/* Map anew what has changed below mappings; `fd` may help if it is the same file. */
void pl_follow_groups(int fd);
/* Files were cut or punched, perhaps by way of `fd` (or -1): mappings follow (takes the lock). */
void pl_follow(int fd);

#pragma GCC visibility pop

#endif
