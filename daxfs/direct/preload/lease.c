/* What is known of the memory of open files: pins, questions to the daemon, forks, what was stored.
 *
 * Two rules keep memory from being used after it was given back (DAXFS_RENEW):
 * - whoever uses it raises a counter first, then looks whether the gate is open; whoever renews shuts the gate first,
 *   then looks whether all counters are 0. One of the two sees the other.
 * - nobody waits without a limit: the thread that holds a pin may be the very one that runs this, below a signal.
 */
#include "preload.h"

#include <errno.h>
#include <string.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WINDOW (2UL << 20)    /* bytes that are filled at once, and that questions are aligned to */
#define EXTENTS_MOST (1U << 20)
#define QUESTIONS 16          /* for one access */
#define LARGE 65536           /* bytes of an access that pays for a question by itself */
#define WORTH_IT 8            /* accesses that pay for a question */
#define PENALTY_MOST 255U     /* system calls until the next question */
#define PATIENT_YIELDS 1000000 /* until a thread that asks the daemon is taken to wait for good */
#define PAGE 4096UL
#define YIELDS 200            /* until a pin is taken to be one that waits for us */

static uint64_t holder;
static pid_t owner; /* the process that `holder` stands for */
static _Atomic int *alive; /* a word that a child finds wiped; NULL: the kernel can't (before 4.14) */
static _Atomic unsigned threads;
static PL_THREAD unsigned stripe; /* 1 ... PL_STRIPES, 0: none yet */
static PL_THREAD int depth;       /* pins of this thread */
static PL_THREAD int asking;      /* gates that this thread has shut */

static void watch_forks(void) {
    void *page = (void *)pl_call(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return;
    if (pl_call(SYS_madvise, page, PAGE, MADV_WIPEONFORK))
        pl_call(SYS_munmap, page, PAGE);
    else
        alive = page;
}

void pl_new_holder(void) {
    struct timespec now;

    if (pl_filtered)
        return; /* a child, which asks nothing either */
    if (!alive)
        watch_forks();
    if (alive)
        atomic_store(alive, 1);
    owner = (pid_t)pl_call(SYS_getpid);
    if (pl_call(SYS_getrandom, &holder, sizeof(holder), GRND_NONBLOCK) == sizeof(holder))
        return;
    pl_call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    holder = ((uint64_t)owner << 40) ^ ((uint64_t)now.tv_sec << 30) ^ (uint64_t)now.tv_nsec;
}

uint64_t pl_holder(void) {
    return holder;
}

pid_t pl_process(void) {
    return owner;
}

bool pl_own_process(void) {
    if (pl_foreign())
        return false;
    if (likely(alive ? atomic_load_explicit(alive, memory_order_relaxed) : pl_call(SYS_getpid) == owner))
        return true;
    pl_after_fork_child();
    return false;
}

/* ---- pins */

static _Atomic int *my_pins(struct pl_file *file) {
    if (unlikely(!stripe))
        stripe = 1 + atomic_fetch_add(&threads, 1) % PL_STRIPES;
    return &file->stripes[stripe - 1].pins;
}

static bool no_pins(struct pl_file *file) {
    int sum = 0;

    for (int i = 0; i < PL_STRIPES; i++)
        sum |= atomic_load(&file->stripes[i].pins);
    return sum == 0;
}

static void wait_a_moment(void) {
    if (!pl_filtered)
        sched_yield();
}

/* Wait a moment for the pins to go: only this thread's own, below a signal, and very long copies don't. */
static bool drained(struct pl_file *file) {
    for (int i = 0; i < YIELDS; i++) {
        if (no_pins(file))
            return true;
        if (depth)
            return false;
        wait_a_moment();
    }
    return false;
}

bool pl_pin(int fd, struct pl_file *file) {
    if (pl_foreign())
        return false;
    depth++;
    atomic_fetch_add(my_pins(file), 1);
    if (likely(!atomic_load(&file->gate) && atomic_load(&pl_table[fd]) == file))
        return true;
    pl_unpin(file);
    return false;
}

void pl_unpin(struct pl_file *file) {
    atomic_fetch_sub(my_pins(file), 1);
    depth--;
    if (unlikely(atomic_load(&file->spare) >= 0))
        pl_let_go(file);
}

/* The file's last descriptor is about to be closed. If a copy is under way, the kernel must not release the file yet:
 * a descriptor of our own keeps it until the last pin goes. */
void pl_last_close(int fd, struct pl_file *file) {
    int spare;

    if (drained(file))
        return;
    spare = pl_filtered ? -1 : (int)pl_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 256);
    if (spare < 0 && !pl_filtered)
        spare = (int)pl_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
    atomic_fetch_add(&file->references, 1);
    if (spare < 0) {
        /* None to be had: wait for other threads. In a signal handler that is no use: the object is never used again,
         * so that at least nobody copies to another file's memory. */
        while (!depth && !no_pins(file))
            wait_a_moment();
        if (!depth)
            pl_drop(file);
        return;
    }
    atomic_store(&file->spare, spare);
    if (no_pins(file))
        pl_let_go(file);
}

/* Close the descriptor that kept the file, if the last pin is gone. */
void pl_let_go(struct pl_file *file) {
    int spare = atomic_load(&file->spare);

    if (spare < 0 || !no_pins(file) || !atomic_compare_exchange_strong(&file->spare, &spare, -1))
        return;
    pl_tell(spare, file);
    pl_call(SYS_close, spare);
    pl_drop(file);
}

/* ---- extents */

/* The first extent that ends behind `offset`. */
static uint32_t first_behind(const struct pl_file *file, uint64_t offset) {
    uint32_t low = 0, high = file->count;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (file->extents[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct pl_extent *pl_find(const struct pl_file *file, uint64_t offset) {
    uint32_t at = first_behind(file, offset);

    return at < file->count && file->extents[at].start <= offset ? &file->extents[at] : NULL;
}

/* Room for `count` extents. Memory straight from the kernel: the gate is shut, nobody reads the old place. */
static bool make_room(struct pl_file *file, uint32_t count) {
    uint32_t room = 128;
    void *made;

    if (count <= file->room)
        return true;
    if (count > EXTENTS_MOST)
        return false;
    while (room < count)
        room *= 2;
    made = (void *)pl_call(SYS_mmap, NULL, room * sizeof(struct pl_extent), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (made == MAP_FAILED)
        return false;
    memcpy(made, file->extents, file->count * sizeof(struct pl_extent));
    pl_free_extents(file);
    file->extents = made;
    file->room = room;
    return true;
}

void pl_free_extents(struct pl_file *file) {
    if (file->extents && file->extents != file->few)
        pl_call(SYS_munmap, file->extents, file->room * sizeof(struct pl_extent));
    file->extents = file->few;
    file->room = sizeof(file->few) / sizeof(file->few[0]);
}

static bool put(struct pl_file *file, uint32_t at, const struct pl_extent *extent) {
    struct pl_extent *before = at ? &file->extents[at - 1] : NULL;

    if (before && before->end == extent->start && before->kind == extent->kind &&
        (extent->kind != DAXFS_MEMORY || before->pool + (before->end - before->start) == extent->pool)) {
        before->end = extent->end;
        return true;
    }
    if (!make_room(file, file->count + 1))
        return false;
    memmove(&file->extents[at + 1], &file->extents[at], (file->count - at) * sizeof(*extent));
    file->extents[at] = *extent;
    file->count++;
    return true;
}

/* Forget what is known of [start, end). */
static bool cut(struct pl_file *file, uint64_t start, uint64_t end) {
    uint32_t i = first_behind(file, start);

    while (i < file->count && file->extents[i].start < end) {
        struct pl_extent *extent = &file->extents[i], rest = *extent;

        if (extent->start < start) {
            extent->end = start;
            i++;
            if (rest.end > end) {
                rest.pool += end - rest.start;
                rest.start = end;
                return put(file, i, &rest);
            }
        } else if (extent->end > end) {
            extent->pool += end - extent->start;
            extent->start = end;
            i++;
        } else {
            file->count--;
            memmove(extent, extent + 1, (file->count - i) * sizeof(*extent));
        }
    }
    return true;
}

/* Take over an answer; what lies outside of the mapped pool is unknown (the pool has grown since). */
static bool take(struct pl_file *file, const struct daxfs_lease *lease) {
    if (!cut(file, lease->offset, lease->next))
        return false;
    for (uint32_t i = 0; i < lease->count; i++) {
        const struct daxfs_extent *told = &lease->extents[i];
        struct pl_extent extent = {told->offset, told->offset + told->length, told->pool_offset, told->kind, 0};

        if (told->kind == DAXFS_MEMORY && (told->pool_offset > file->mount->pool.size ||
                                           told->length > file->mount->pool.size - told->pool_offset))
            extent.kind = DAXFS_KERNEL;
        if (!put(file, first_behind(file, extent.start), &extent))
            return false;
    }
    return true;
}

/* ---- questions */

/* 0 or an errno. */
static int ask(int fd, struct pl_mount *mount, struct daxfs_lease *lease) {
    int failed;

    lease->holder = holder;
    memcpy(lease->token, mount->token, sizeof(lease->token));
    failed = pl_call(SYS_ioctl, fd, DAXFS_IOC_LEASE, lease) ? errno : 0;
    if (failed == EOPNOTSUPP)
        atomic_store(&mount->stays, false); /* perhaps mounted anew: its token is read when no file is open */
    return failed;
}

int pl_ask(int fd, struct daxfs_lease *lease) {
    struct pl_file *file = pl_file_of(fd);
    uint64_t offset = lease->offset, length = lease->length;
    uint32_t flags = lease->flags;
    int saved = errno, failed;

    if (!file || !pl_attach(fd, file->mount))
        return EOPNOTSUPP;
    PL_COUNT(leases);
    failed = ask(fd, file->mount, lease);
    if (!failed && unlikely(!pl_sound_lease(lease, offset, length, flags))) {
        atomic_store(&file->refused, true);
        failed = EPROTO;
    }
    errno = saved;
    return failed;
}

static void forget_extents(struct pl_file *file) {
    file->leased = file->fixed = false;
    file->count = 0;
    file->granted = 0;
}

/* What the daemon answered about epoch and size is what the file object says from now on. */
static bool same_lease(struct pl_file *file, const struct daxfs_lease *lease, bool store) {
    struct pl_mount *mount = file->mount;
    const struct daxfs_slot *slot = NULL;

    if (!pl_same_pool(mount, lease)) {
        atomic_store(&file->refused, true);
        return false;
    }
    if (lease->slot)
        slot = (const struct daxfs_slot *)(mount->base + lease->slot);
    if (file->leased && (file->slot != slot || file->epoch != lease->epoch))
        file->count = 0, file->granted = 0; /* it changed between two questions: the later one counts */
    file->slot = slot;
    file->epoch = lease->epoch;
    file->size = lease->size;
    file->fixed = !slot;
    file->stores = store;
    file->leased = true;
    return true;
}

/* Some answers hold for good: for stores, or for all. */
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
        if (!same_lease(file, &lease, store) || !take(file, &lease)) {
            forget_extents(file);
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

/* Whether the descriptor still is that file: one that was closed behind our back may be another by now. */
static bool still_it(int fd, struct pl_file *file) {
    dev_t device;
    uint64_t inode;

    if (pl_identify(fd, &device, &inode) && device == file->mount->device && inode == file->inode)
        return true;
    atomic_store(&pl_table[fd], NULL);
    return false;
}

/* Leases that don't last are asked for less and less often. */
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
        forget_extents(file);
    }
    if (file->stores)
        flags |= DAXFS_WRITE; /* one that may store stays so, else each read would end it */
    return ask_all(fd, file, offset, offset + length, flags);
}

/* Shut the gate and learn. 0 or an errno; whether anything is known now. */
static int learn_alone(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags, bool *known) {
    int saved = errno, open = 0, failed = EAGAIN;
    struct pl_file *held;

    *known = false;
    if (pl_filtered || (!pl_own_process() && pl_foreign()))
        return EAGAIN;
    /* Held, so that it is no other file's object when the answer comes, even if the descriptor is closed meanwhile. */
    held = pl_hold(fd);
    if (held != file || !atomic_compare_exchange_strong(&file->gate, &open, 1)) {
        if (held)
            pl_drop(held);
        errno = saved;
        return EAGAIN;
    }
    asking++;
    if (drained(file) && still_it(fd, file)) {
        failed = learn(fd, file, offset, length, flags);
        if (atomic_load(&pl_table[fd]) != file)
            forget_extents(file); /* it may have been answered for another */
        *known = file->leased;
    }
    if (!*known)
        punish(file);
    atomic_store(&file->gate, 0);
    asking--;
    if (atomic_load(&file->mappings))
        pl_map_check(fd);
    pl_drop(file);
    errno = saved;
    return failed;
}

bool pl_learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags) {
    bool known = false;

    if (pl_filtered || atomic_load(&file->refused) || (flags & DAXFS_WRITE && (atomic_load(&file->unstorable) || !file->writable)))
        return false;
    if (!worth_it(file, length))
        return false;
    learn_alone(fd, file, offset, length, flags, &known);
    return known;
}

int pl_grow(int fd, struct pl_file *file, uint64_t offset, uint64_t length) {
    bool known;

    return learn_alone(fd, file, offset, length, DAXFS_WRITE | DAXFS_FILL | DAXFS_GROW, &known);
}

bool pl_mapping(struct pl_file *file, int change) {
    atomic_fetch_add(&file->mappings, change);
    if (change < 0 || !atomic_load(&file->gate))
        return true;
    atomic_fetch_sub(&file->mappings, change);
    return false;
}

/* ---- what was stored */

void pl_stored(struct pl_file *file, uint64_t pool_offset, uint64_t length) {
    if (!atomic_load_explicit(&file->stored, memory_order_relaxed))
        atomic_store(&file->stored, true);
    pl_dirtied(file, pool_offset, length);
}

void pl_dirtied(struct pl_file *file, uint64_t pool_offset, uint64_t length) {
    if (file->mount->pool.persistence != DAXFS_MSYNC)
        return;
    for (uint64_t low = atomic_load(&file->dirty_low); pool_offset < low;)
        if (atomic_compare_exchange_weak(&file->dirty_low, &low, pool_offset))
            break;
    for (uint64_t high = atomic_load(&file->dirty_high); pool_offset + length > high;)
        if (atomic_compare_exchange_weak(&file->dirty_high, &high, pool_offset + length))
            break;
}

static int tell(int fd, struct pl_file *file, uint32_t flags) {
    struct daxfs_stored stored = {.flags = flags};
    bool before = atomic_exchange(&file->stored, false), untold = false;

    if (pl_filtered)
        return -1;
    if (flags & DAXFS_DURABLE)
        untold = atomic_exchange(&file->appends.untold, false);
    if (!pl_call(SYS_ioctl, fd, DAXFS_IOC_STORED, &stored))
        return 0;
    if (before)
        atomic_store(&file->stored, true);
    if (untold)
        atomic_store(&file->appends.untold, true);
    return -1;
}

/* What was stored with a pool that needs msync(2). Nobody unmaps it meanwhile. */
static int flush_mapped(struct pl_file *file) {
    uint64_t low = atomic_exchange(&file->dirty_low, UINT64_MAX), high = atomic_exchange(&file->dirty_high, 0);

    return low < high ? pl_flush(file->mount, file->mount->base + low, high - low) : 0;
}

/* The file is held: only a change of rights unmaps its pool, which waits for this pin and flushes the rest itself. */
static int flush(struct pl_file *file) {
    int failed = 0;

    depth++;
    atomic_fetch_add(my_pins(file), 1);
    if (atomic_load(&file->mount->state) != PL_BUSY && file->mount->base)
        failed = flush_mapped(file);
    pl_unpin(file);
    return failed;
}

int pl_sync(int fd, bool data_only, bool *done) {
    struct pl_file *file = pl_hold(fd);
    int failed = 0, saved = errno;

    *done = false;
    if (!file)
        return 0;
    if (atomic_load(&file->stored) || atomic_load(&file->appends.untold)) {
        failed = flush(file);
        *done = !failed && tell(fd, file, data_only ? DAXFS_DURABLE | DAXFS_DATA_ONLY : DAXFS_DURABLE) == 0;
    }
    pl_drop(file);
    /* If the daemon doesn't take it, the plain system call answers. */
    errno = failed ? failed : saved;
    return failed ? -1 : 0;
}

void pl_tell(int fd, struct pl_file *file) {
    int saved = errno;

    if (atomic_load(&file->stored))
        tell(fd, file, 0);
    errno = saved;
}

void pl_tell_all(void) {
    if (pl_disabled || pl_filtered || !pl_own_process())
        return;
    for (int fd = 0; fd <= pl_highest; fd++) {
        struct pl_file *file = pl_file_of(fd);

        if (file)
            pl_tell(fd, file);
    }
}

/* One that is held. Without a descriptor, when only mappings are left, there is nothing to tell by. */
static int settle(int fd, struct pl_file *file) {
    int failed;

    pl_map_settle(file);
    failed = flush(file);
    if (fd >= 0)
        pl_tell(fd, file);
    return failed;
}

int pl_settle_mount(dev_t device) {
    int saved = errno, failed = 0, answer;

    if (!pl_own_process())
        return 0;
    for (int fd = 0; fd <= pl_highest; fd++) {
        struct pl_file *file = pl_hold(fd);

        if (!file)
            continue;
        answer = !device || file->mount->device == device ? settle(fd, file) : 0;
        failed = answer ? answer : failed;
        pl_drop(file);
    }
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];

        if (!atomic_load(&file->mappings) || atomic_load(&file->descriptors) || !pl_hold_object(file))
            continue;
        answer = !device || file->mount->device == device ? settle(-1, file) : 0;
        failed = answer ? answer : failed;
        pl_drop(file);
    }
    errno = saved;
    return failed;
}

void pl_settle_all(void) {
    int saved = errno;

    pl_settle_mount(0);
    /* Pages of before would be sent by sendfile(2) and splice(2). */
    for (int fd = 0; fd <= pl_highest; fd++)
        if (pl_file_of(fd))
            pl_call(SYS_fadvise64, fd, 0, 0, POSIX_FADV_DONTNEED);
    errno = saved;
}

/* ---- the end of all leases of a mount */

static int descriptor_of(const struct pl_file *file) {
    for (int fd = 0; fd <= pl_highest; fd++)
        if (pl_file_of(fd) == file)
            return fd;
    return -1;
}

/* Shut the gate and wait for those who are inside, or ask just now. False: it is this thread, below a signal. */
static bool shut_out(struct pl_file *file) {
    for (int i = 0, open = 0; i < PATIENT_YIELDS && !depth && !asking; i++, open = 0) {
        if (!atomic_compare_exchange_strong(&file->gate, &open, 1)) {
            wait_a_moment();
            continue;
        }
        while (!no_pins(file))
            wait_a_moment();
        file->shut_out = true;
        return true;
    }
    return false;
}

static void give_back(int fd, struct pl_file *file) {
    struct daxfs_lease lease;

    memset(&lease, 0, offsetof(struct daxfs_lease, extents));
    lease.flags = DAXFS_RENEW;
    ask(fd, file->mount, &lease);
}

bool pl_shut_out(struct pl_mount *mount) {
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];
        int fd;

        if (!atomic_load(&file->references) || file->mount != mount)
            continue;
        if (!shut_out(file))
            return false;
        flush_mapped(file);
        fd = pl_filtered ? -1 : descriptor_of(file);
        if (fd >= 0)
            pl_tell(fd, file);
        if (fd >= 0 && file->leased && !atomic_load(&file->mappings) && !atomic_load(&file->shared))
            give_back(fd, file);
        forget_extents(file);
        file->slot = NULL;
        file->stores = false; /* the pool may be mapped for reading only next time */
    }
    return true;
}

void pl_let_in(struct pl_mount *mount, bool for_good) {
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];

        if (!atomic_load(&file->references) || file->mount != mount)
            continue;
        if (for_good)
            atomic_store(&file->refused, true);
        if (file->shut_out)
            atomic_store(&file->gate, 0);
        file->shut_out = false;
    }
}

/* ---- forks */

void pl_before_fork(void) {
    for (int i = 0; i < PL_FILES; i++)
        if (atomic_load(&pl_files[i].references) && atomic_load(&pl_files[i].mappings))
            atomic_store(&pl_files[i].shared, true);
}

void pl_after_fork_parent(void) {
}

/* In the child: another holder, which knows nothing yet. Other threads' pins and gates have no one to open them; if
 * this thread itself is inside a copy (a fork in a signal handler), its file stays with the system calls. */
void pl_after_fork_child(void) {
    pl_new_holder();
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];

        if (!atomic_load(&file->references))
            continue;
        if (depth)
            atomic_store(&file->refused, true);
        else
            for (int j = 0; j < PL_STRIPES; j++)
                atomic_store(&file->stripes[j].pins, 0);
        forget_extents(file);
        atomic_store(&file->stored, false);
        pl_append_start(file);
        atomic_store(&file->gate, 0);
        if (atomic_load(&file->spare) >= 0)
            pl_let_go(file);
    }
}
