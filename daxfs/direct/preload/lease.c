/* A request covers more than the access needs: whole windows, and up to EOF if it fills no holes. If leases of a file
 * don't last, they are requested less and less often.
 */
#include "lease.h"

#include <errno.h>
#include <string.h>

#include "counts.h"
#include "fork.h"
#include "ioctls.h"
#include "pins.h"
#include "process.h"

#define WINDOW (2UL << 20) /* bytes: the alignment of requests, and the unit in which holes are filled */
#define QUESTIONS 16       /* the most requests for one access */
#define LARGE 65536        /* bytes of an access that pays for a request by itself */
#define WORTH_IT 8         /* accesses that pay for a request */
#define PENALTY_MOST 255U  /* the most system calls until the next request */

/* Make a request. Return 0 or an errno. */
static int request(int fd, struct pl_mount *mount, struct daxfs_lease *lease) {
    int failed = pl_ioctl_lease(fd, mount->token, lease);

    if (failed == EOPNOTSUPP)
        atomic_store(&mount->stays, false); /* perhaps a new mount: its token is read after the last close */
    return failed;
}

int pl_ask(int fd, struct pl_file *file, struct daxfs_lease *lease) {
    int saved = errno, failed;

    if (!pl_attach(fd, file->mount))
        return EOPNOTSUPP;
    PL_COUNT(leases);
    failed = request(fd, file->mount, lease);
    if (unlikely(failed == EPROTO))
        atomic_store(&file->refused, true);
    errno = saved;
    return failed;
}

void pl_give_back(int fd, struct pl_file *file) {
    struct daxfs_lease lease;

    memset(&lease, 0, offsetof(struct daxfs_lease, extents));
    lease.flags = DAXFS_RENEW;
    request(fd, file->mount, &lease);
}

/* Take over status entry, epoch and size of a lease. False: it is of another pool than the mapped one. */
static bool take_lease(struct pl_file *file, const struct daxfs_lease *lease, bool store) {
    struct pl_mount *mount = file->mount;
    const struct daxfs_slot *entry = NULL;

    if (!pl_same_pool(mount, lease)) {
        atomic_store(&file->refused, true);
        return false;
    }
    if (lease->slot)
        entry = (const struct daxfs_slot *)(mount->base + lease->slot);
    if (file->leased && (file->entry != entry || file->epoch != lease->epoch))
        file->extents.count = 0, file->granted = 0; /* the file changed between two requests: keep the later one only */
    file->entry = entry;
    file->epoch = lease->epoch;
    file->size = lease->size;
    atomic_store(&file->fired, 0); /* the daemon has taken over */
    file->fixed = !entry;
    file->stores = store;
    file->leased = true;
    return true;
}

/* Remember an error that is final, for stores or for all accesses. */
static void refused(struct pl_file *file, int failed, bool store) {
    if (failed == EAGAIN || failed == EINTR || failed == ENOSPC)
        return;
    if (store && failed != ENOTTY) {
        atomic_store(&file->unstorable, true);
        file->stores = false;
    } else {
        atomic_store(&file->refused, true);
    }
}

/* Make requests until [offset, end) is known. The gate is shut and no thread is inside. Return 0 or an errno. */
static int ask_all(int fd, struct pl_file *file, uint64_t offset, uint64_t end, uint32_t flags) {
    struct daxfs_lease lease;
    uint64_t last = flags & DAXFS_FILL ? (end + WINDOW - 1) / WINDOW * WINDOW : DAXFS_FURTHEST;
    bool store = flags & DAXFS_WRITE;

    if (flags & DAXFS_EXTEND)
        last = end;
    else
        offset = offset / WINDOW * WINDOW;
    for (int i = 0; i < QUESTIONS; i++) {
        int failed;

        memset(&lease, 0, offsetof(struct daxfs_lease, extents));
        lease.offset = offset;
        lease.length = last - offset;
        lease.flags = flags;
        failed = pl_ask(fd, file, &lease);
        if (failed) {
            if (!(flags & DAXFS_EXTEND))
                refused(file, failed, store);
            return failed;
        }
        flags &= ~(uint32_t)DAXFS_RENEW;
        if (!take_lease(file, &lease, store) || !pl_extents_take(&file->extents, &lease, file->mount->mapped)) {
            pl_forget_extents(file);
            return EAGAIN;
        }
        if (flags & DAXFS_EXTEND)
            file->granted = lease.next;
        if (lease.next >= end || lease.next >= lease.size || lease.next <= offset)
            return 0;
        offset = lease.next;
    }
    return 0;
}

/* Whether the descriptor is still the same file: a raw system call may have closed it and opened another file there. */
static bool still_same_file(int fd, struct pl_file *file) {
    if (pl_is_open_as(fd, file))
        return true;
    atomic_store(&pl_table[fd], NULL);
    return false;
}

static bool worth_it(struct pl_file *file, uint64_t length) {
    uint32_t patience = atomic_load(&file->patience);

    if (!patience || (length >= LARGE && !atomic_load(&file->penalty)))
        return true;
    atomic_store(&file->patience, patience - 1);
    return false;
}

static void punish(struct pl_file *file) {
    uint32_t penalty = atomic_load(&file->penalty) * 2 + 1;

    if (penalty > PENALTY_MOST)
        penalty = PENALTY_MOST;
    atomic_store(&file->penalty, penalty);
    atomic_store(&file->patience, penalty);
}

static int learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    bool held = file->leased && pl_holds(file);

    if (!pl_attach(fd, file->mount)) {
        if (atomic_load(&file->mount->state) == PL_NOT_DAXFS || atomic_load(&file->mount->missing))
            atomic_store(&file->refused, true);
        return EOPNOTSUPP;
    }
    if (flags & DAXFS_WRITE && !file->mount->writable) {
        atomic_store(&file->unstorable, true);
        return EOPNOTSUPP;
    }
    if (!held && file->leased) {
        if (atomic_load(&file->used) < WORTH_IT)
            punish(file);
        else
            atomic_store(&file->penalty, 0);
        atomic_store(&file->used, 0);
    }
    if (!held || (flags & DAXFS_WRITE && !file->stores)) {
        if (file->leased && !atomic_load(&file->mappings) && !atomic_load(&file->shared))
            flags |= DAXFS_RENEW;
        pl_forget_extents(file);
    }
    if (file->stores)
        flags |= DAXFS_WRITE; /* a lease for writing stays one: else each read would end it */
    return ask_all(fd, file, offset, offset + length, flags);
}

/* Whether the file's status entry or epoch differs from those before the request. */
static bool epoch_changed(const struct pl_file *file, const struct daxfs_slot *entry, uint64_t epoch) {
    if (!entry || file->entry != entry)
        return true;
    return __atomic_load_n(&entry->epoch, __ATOMIC_ACQUIRE) != epoch || file->epoch != epoch;
}

/* Shut the gate and make the requests. */
static struct pl_learned learn_alone(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    struct pl_learned learned = {.failed = EAGAIN};
    const struct daxfs_slot *entry;
    int saved = errno;
    struct pl_file *held;
    uint64_t epoch;

    if (pl_filtered || (!pl_own_process() && pl_foreign()))
        return learned;
    /* The reference keeps the object from becoming another file, even if the descriptor is closed meanwhile. */
    held = pl_hold(fd);
    if (held != file || !pl_shut_gate(file)) {
        if (held)
            pl_drop(held);
        errno = saved;
        return learned;
    }
    entry = file->entry;
    epoch = file->epoch;
    if (pl_drained(file) && still_same_file(fd, file)) {
        learned.failed = learn(fd, file, offset, length, flags);
        if (atomic_load(&pl_table[fd]) != file)
            pl_forget_extents(file); /* the answer may be about another file */
        learned.known = file->leased;
    }
    if (!learned.known)
        punish(file);
    learned.epoch_changed = epoch_changed(file, entry, epoch);
    pl_open_gate(file);
    pl_drop(file);
    errno = saved;
    return learned;
}

struct pl_learned pl_learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    struct pl_learned nothing = {.failed = EAGAIN};

    if (pl_filtered || atomic_load(&file->refused))
        return nothing;
    if (flags & DAXFS_WRITE && (atomic_load(&file->unstorable) || !file->writable))
        return nothing;
    return worth_it(file, length) ? learn_alone(fd, file, offset, length, flags) : nothing;
}

struct pl_learned pl_extend(int fd, struct pl_file *file, uint64_t offset, uint64_t length) {
    return learn_alone(fd, file, offset, length, DAXFS_WRITE | DAXFS_FILL | DAXFS_EXTEND);
}
