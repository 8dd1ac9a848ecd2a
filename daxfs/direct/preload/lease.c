/* A request asks for more than the access needs: whole windows, and to the end of the file where that fills no holes.
 * Leases that don't last are requested less and less often.
 */
#include "lease.h"

#include <errno.h>
#include <string.h>

#include "counts.h"
#include "fork.h"
#include "ioctls.h"
#include "pins.h"
#include "process.h"

#define WINDOW (2UL << 20) /* bytes that are filled at once, and that requests are aligned to */
#define QUESTIONS 16       /* requests for one access */
#define LARGE 65536        /* bytes of an access that pays for a request by itself */
#define WORTH_IT 8         /* accesses that pay for a request */
#define PENALTY_MOST 255U  /* system calls until the next request */

/* 0 or an errno. */
static int request(int fd, struct pl_mount *mount, struct daxfs_lease *lease) {
    int failed = pl_ioctl_lease(fd, mount->token, lease);

    if (failed == EOPNOTSUPP)
        atomic_store(&mount->stays, false); /* perhaps mounted anew: its token is read when no file is open */
    return failed;
}

int pl_ask(int fd, struct daxfs_lease *lease) {
    struct pl_file *file = pl_file_of(fd);
    int saved = errno, failed;

    if (!file || !pl_attach(fd, file->mount))
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

/* Take over what the answer says of epoch and size. */
static bool same_lease(struct pl_file *file, const struct daxfs_lease *lease, bool store) {
    struct pl_mount *mount = file->mount;
    const struct daxfs_slot *entry = NULL;

    if (!pl_same_pool(mount, lease)) {
        atomic_store(&file->refused, true);
        return false;
    }
    if (lease->slot)
        entry = (const struct daxfs_slot *)(mount->base + lease->slot);
    if (file->leased && (file->entry != entry || file->epoch != lease->epoch))
        file->extents.count = 0, file->granted = 0; /* the file changed between two requests: the later one counts */
    file->entry = entry;
    file->epoch = lease->epoch;
    file->size = lease->size;
    file->fixed = !entry;
    file->stores = store;
    file->leased = true;
    return true;
}

/* Some errors hold for good: for stores, or for all accesses. */
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

/* Ask until [offset, end) is known. The gate is shut and nobody is inside. 0 or an errno. */
static int ask_all(int fd, struct pl_file *file, uint64_t offset, uint64_t end, uint32_t flags) {
    struct daxfs_lease lease;
    uint64_t last = flags & DAXFS_FILL ? (end + WINDOW - 1) / WINDOW * WINDOW : DAXFS_FURTHEST;
    bool store = flags & DAXFS_WRITE;

    if (flags & DAXFS_GROW)
        last = end;
    else
        offset = offset / WINDOW * WINDOW;
    for (int i = 0; i < QUESTIONS; i++) {
        int failed;

        memset(&lease, 0, offsetof(struct daxfs_lease, extents));
        lease.offset = offset;
        lease.length = last - offset;
        lease.flags = flags;
        failed = pl_ask(fd, &lease);
        if (failed) {
            if (!(flags & DAXFS_GROW))
                refused(file, failed, store);
            return failed;
        }
        flags &= ~(uint32_t)DAXFS_RENEW;
        if (!same_lease(file, &lease, store) || !pl_extents_take(&file->extents, &lease, file->mount->pool.size)) {
            pl_forget_extents(file);
            return EAGAIN;
        }
        if (flags & DAXFS_GROW)
            file->granted = lease.next;
        if (lease.next >= end || lease.next >= lease.size || lease.next <= offset)
            return 0;
        offset = lease.next;
    }
    return 0;
}

/* Whether the descriptor still is that file: a raw system call may have closed it and opened another file there. */
static bool still_it(int fd, struct pl_file *file) {
    dev_t device;
    uint64_t inode;

    if (pl_identify(fd, &device, &inode) && device == file->mount->device && inode == file->inode)
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
        if (atomic_load(&file->mount->state) == PL_NOT_DAXFS)
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
        flags |= DAXFS_WRITE; /* a lease for storing stays one, else each read would end it */
    return ask_all(fd, file, offset, offset + length, flags);
}

/* Whether the file's epoch is another one than the one that was known before the request. */
static bool has_moved(const struct pl_file *file, const struct daxfs_slot *entry, uint64_t epoch) {
    if (!entry || file->entry != entry)
        return true;
    return __atomic_load_n(&entry->epoch, __ATOMIC_ACQUIRE) != epoch || file->epoch != epoch;
}

/* Shut the gate and learn. */
static struct pl_learned learn_alone(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    struct pl_learned learned = {.failed = EAGAIN};
    const struct daxfs_slot *entry;
    int saved = errno;
    struct pl_file *held;
    uint64_t epoch;

    if (pl_filtered || (!pl_own_process() && pl_foreign()))
        return learned;
    /* Held, so that the object is no other file's when the answer comes, even if the descriptor is closed meanwhile. */
    held = pl_hold(fd);
    if (held != file || !pl_shut_gate(file)) {
        if (held)
            pl_drop(held);
        errno = saved;
        return learned;
    }
    entry = file->entry;
    epoch = file->epoch;
    if (pl_drained(file) && still_it(fd, file)) {
        learned.failed = learn(fd, file, offset, length, flags);
        if (atomic_load(&pl_table[fd]) != file)
            pl_forget_extents(file); /* it may have been answered for another */
        learned.known = file->leased;
    }
    if (!learned.known)
        punish(file);
    learned.moved = has_moved(file, entry, epoch);
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

struct pl_learned pl_grow(int fd, struct pl_file *file, uint64_t offset, uint64_t length) {
    return learn_alone(fd, file, offset, length, DAXFS_WRITE | DAXFS_FILL | DAXFS_GROW);
}
