/* Appends that need no request: the daemon has laid their transactions ready in the log, and one atomic instruction
 * commits each (docs/DIRECT.md, rule 8).
 *
 * The caller has the file's `appends` to itself (append.c).
 */
#ifndef DAXFS_ARMED_H
#define DAXFS_ARMED_H
#include "file.h"

#pragma GCC visibility push(hidden)

/* Commit an append of `total` bytes at EOF, `size`, whose bytes are stored and flushed (pinned). False: it needs a
 * request. */
bool pl_fire(struct pl_file *file, uint64_t size, size_t total);
/* How many appends are worth arming now; 0: none. */
uint32_t pl_worth_arming(struct pl_file *file);
/* Take over the answer to a request that armed appends of `step` bytes (pinned); NULL: they can't be armed. */
void pl_take_armed(struct pl_file *file, const struct daxfs_armed *answer, uint64_t step);

#pragma GCC visibility pop

#endif
