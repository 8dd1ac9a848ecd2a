/* Requests to the daemon about where a file lies.
 *
 * A request is made with no pin and with the gate shut. The file's mappings are not touched here: an answer says
 * whether the epoch moved, and the caller lets the mappings follow (follow.h).
 */
#ifndef DAXFS_LEASE_H
#define DAXFS_LEASE_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* What a request came to. */
struct pl_learned {
    int failed; /* 0 or an errno */
    bool known; /* the file has a lease now */
    bool moved; /* the epoch is not the one that was known before: mappings of the file must follow */
};

/* Learn of [offset, offset + length), unless leases of this file don't pay; flags: DAXFS_WRITE, DAXFS_FILL. */
struct pl_learned pl_learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags);
/* Learn of [offset, offset + length) past EOF, to make the file longer: `granted`. */
struct pl_learned pl_grow(int fd, struct pl_file *file, uint64_t offset, uint64_t length);

/* One request of plan.c (DAXFS_MAP; no DAXFS_RENEW, which is pl_learn's). 0 or an errno; EPROTO: the answer makes no
 * sense, so no more is asked about this file. The answer holds while mappings > 0: call pl_mapping(file, 1) before it,
 * and pl_mapping(file, -1) after munmap or a failure. */
int pl_ask(int fd, struct daxfs_lease *lease);
/* Give back all that was granted: with the gate shut and nobody inside. */
void pl_give_back(int fd, struct pl_file *file);

#pragma GCC visibility pop

#endif
