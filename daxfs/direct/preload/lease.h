/* Lease requests to the daemon.
 *
 * A request is made with no pin and with the gate shut. This layer does not touch the file's mappings: it reports that
 * the epoch has changed, and the caller lets the mappings follow (follow.h).
 */
#ifndef DAXFS_LEASE_H
#define DAXFS_LEASE_H

#include "file.h"

#pragma GCC visibility push(hidden)

/* The result of a request. */
struct pl_learned {
    int failed;         /* 0 or an errno */
    bool known;         /* the file has a lease now */
    bool epoch_changed; /* the epoch differs from the one before the request: mappings of the file must follow */
};

/* Request a lease of [offset, offset + length), unless leases of this file don't pay; flags: DAXFS_WRITE, DAXFS_FILL */
struct pl_learned pl_learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags);
/* Request memory of [offset, offset + length) past EOF for extending writes; `granted` becomes its end. */
struct pl_learned pl_extend(int fd, struct pl_file *file, uint64_t offset, uint64_t length);

/* Make one request, for plan.c with DAXFS_MAP (without DAXFS_RENEW, which only pl_learn may use). Return 0 or an errno;
 * EPROTO: the answer is not sound, and the library makes no further request about this file. The answer holds while
 * mappings > 0: call pl_mapping(file, 1) before, and pl_mapping(file, -1) after munmap or a failure. */
int pl_ask(int fd, struct pl_file *file, struct daxfs_lease *lease);
/* Give all grants of this file back. The gate is shut and no thread is inside. */
void pl_give_back(int fd, struct pl_file *file);

#pragma GCC visibility pop

#endif
