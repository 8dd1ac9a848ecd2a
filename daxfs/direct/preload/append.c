/* docs/DIRECT.md, rules 8 and 9, say what may be stored past EOF and when it becomes part of the file. If the daemon
 * refuses, the system call writes the same bytes at the same offset.
 *
 * The library notices programs that call fsync(2) after each append. Their appends request durability at once: one
 * request instead of two. The fsync(2) that follows only checks that the status entry has not changed.
 */
#include "append.h"

#include <errno.h>
#include <string.h>

#include "armed.h"
#include "fork.h"
#include "ioctls.h"
#include "lease.h"
#include "memory.h"
#include "pins.h"

#define IN_A_ROW 2        /* appends by system calls before memory past EOF is requested */
#define PAIRS 2           /* appends, each with its own fsync, before the next one requests durability */
#define WORTH_IT 8        /* appends that pay for a request of memory */
#define PENALTY_MOST 255U /* the most system calls until memory is requested again */

/* Only one thread at a time may append, because two would store to the same place. */
static bool enter(struct pl_appends *appends) {
    int free = 0;

    return atomic_compare_exchange_strong(&appends->busy, &free, 1);
}

static void leave(struct pl_appends *appends) {
    atomic_store(&appends->busy, 0);
}

static bool at_end(const struct pl_file *file) {
    return atomic_load(&file->at_end);
}

static void punish(struct pl_appends *appends) {
    appends->penalty = appends->penalty * 2 + 1;
    if (appends->penalty > PENALTY_MOST)
        appends->penalty = PENALTY_MOST;
    appends->patience = appends->penalty;
}

/* Another writer has extended the file, which ended the grant. */
static void ended(struct pl_appends *appends) {
    if (appends->used < WORTH_IT)
        punish(appends);
    else
        appends->penalty = 0;
}

/* Request the blocks of [base, base + length). Return 0 or an errno. */
static int request_blocks(int fd, struct pl_file *file, uint64_t base, uint64_t length, bool *epoch_changed) {
    uint64_t block = file->mount->pool.block_size, end = (base + length + block - 1) / block * block;
    struct pl_learned learned;

    base = base / block * block;
    learned = pl_extend(fd, file, base, end - base);
    *epoch_changed = *epoch_changed || learned.epoch_changed;
    return learned.failed;
}

/* Request memory for the write and for later ones like it. */
static bool request_memory(int fd, struct pl_file *file, uint64_t base, size_t total, bool *epoch_changed) {
    struct pl_appends *appends = &file->appends;
    uint64_t step = appends->appended;
    int failed;

    if (appends->patience) {
        appends->patience--;
        return false;
    }
    if (step < DAXFS_FIRST_STEP)
        step = DAXFS_FIRST_STEP;
    if (step > DAXFS_LAST_STEP)
        step = DAXFS_LAST_STEP;
    if (step < total)
        step = total;
    failed = request_blocks(fd, file, base, step, epoch_changed);
    if (failed == ENOSPC && step > total)
        failed = request_blocks(fd, file, base, total, epoch_changed);
    appends->used = 0;
    if (failed)
        punish(appends);
    return !failed;
}

/* Store the bytes (pinned); `size` becomes EOF of that moment. PL_UNKNOWN_PLACE: memory must be requested first. */
static ssize_t stage(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base, uint64_t *size) {
    ssize_t done;

    if (!file->leased || !file->stores || !pl_holds(file))
        return PL_UNKNOWN_PLACE;
    *size = pl_size(file);
    if (base > *size || base + total <= *size || (at_end(file) && base != *size))
        return PL_NO;
    if (base + total > file->granted)
        return PL_UNKNOWN_PLACE;
    done = pl_put(file, vector, total, base);
    return !done && atomic_load(&file->mount->missing) ? PL_NO : done;
}

/* Count an append that is part of the file. */
static void appended(struct pl_appends *appends, size_t total) {
    appends->waiting = true;
    appends->appended += total;
    appends->used++;
}

/* Send the notification; if it is durable and appends of `step` bytes are worth it, have further ones armed. Return 0 or
 * an errno. */
static int notify(int fd, struct pl_file *file, struct daxfs_appended *notification, size_t step) {
    struct pl_appends *appends = &file->appends;
    bool whole = step && !((notification->base | step) % file->mount->pool.block_size);
    struct daxfs_armed armed;
    int failed;

    if (!(notification->flags & DAXFS_DURABLE) || !whole || appends->unarmed)
        return pl_ioctl_appended(fd, notification);
    memset(&armed, 0, offsetof(struct daxfs_armed, words));
    armed.count = pl_worth_arming(file);
    if (!armed.count)
        return pl_ioctl_appended(fd, notification);
    armed.base = notification->base;
    armed.size = notification->size;
    armed.flags = notification->flags;
    failed = pl_ioctl_armed(fd, &armed);
    if (failed == ENOTTY || failed == EPROTO) {
        appends->unarmed = true;
        return failed == ENOTTY ? pl_ioctl_appended(fd, notification) : failed;
    }
    pl_take_armed(file, failed ? NULL : &armed, step);
    notification->changes = armed.changes;
    return failed;
}

/* Make the stored bytes part of the file (pinned). */
static ssize_t publish(int fd, struct pl_file *file, uint64_t base, size_t total, uint64_t size) {
    struct pl_appends *appends = &file->appends;
    struct daxfs_appended notification = {.base = size, .size = base + total};
    bool durable = appends->pairs >= PAIRS && file->mount->pool.persistence != DAXFS_MSYNC;
    uint64_t now;
    int failed;

    if (durable && base == size && pl_fire(file, size, total)) {
        appended(appends, total);
        return (ssize_t)total;
    }
    if (durable)
        notification.flags = DAXFS_DURABLE | (appends->data_only ? DAXFS_DATA_ONLY : 0);
    failed = notify(fd, file, &notification, base == size ? total : 0);
    if (failed) {
        if (failed == EAGAIN) {
            ended(appends);
            return PL_NO;
        }
        /* The request may have failed halfway: bytes that the file has by now are written. */
        now = pl_size(file);
        appends->durable = false;
        atomic_store(&appends->unsynced, true);
        return now > size && now <= base + total ? (ssize_t)(now - base) : PL_NO;
    }
    appends->durable = durable;
    appends->durable_data = appends->data_only;
    appends->changes = notification.changes;
    if (!durable)
        atomic_store(&appends->unsynced, true);
    appended(appends, total);
    return (ssize_t)total;
}

static ssize_t append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base,
                      bool *epoch_changed) {
    ssize_t done = PL_UNKNOWN_PLACE;
    uint64_t size;

    for (int i = 0; i < 2 && done == PL_UNKNOWN_PLACE; i++) {
        if (i && !request_memory(fd, file, base, total, epoch_changed))
            return PL_NO;
        if (!pl_pin(fd, file))
            return PL_NO;
        done = stage(file, vector, total, base, &size);
        if (!done)
            done = publish(fd, file, base, total, size);
        pl_unpin(file);
    }
    return done;
}

ssize_t pl_append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base,
                  bool *epoch_changed) {
    struct pl_appends *appends = &file->appends;
    bool whole = !((base | total) % file->mount->pool.block_size);
    ssize_t done = PL_NO;
    int saved = errno;

    if (!pl_own_process() || !enter(appends))
        return PL_NO;
    if (appends->waiting)
        appends->pairs = 0;
    appends->waiting = false;
    if (at_end(file) && !whole) {
        appends->seen = 0;
    } else if (appends->seen < IN_A_ROW) {
        appends->seen++;
        done = PL_NOT_YET;
    } else {
        done = append(fd, file, vector, total, base, epoch_changed);
    }
    leave(appends);
    errno = saved;
    return done;
}

bool pl_append_durable(int fd, struct pl_file *file, bool data_only) {
    struct pl_appends *appends = &file->appends;
    bool durable;

    if (!enter(appends))
        return false;
    if (appends->waiting && appends->pairs < PAIRS)
        appends->pairs++;
    if (appends->waiting)
        appends->data_only = data_only;
    appends->waiting = false;
    durable = appends->durable && (data_only || !appends->durable_data) && !atomic_load(&file->stored);
    if (durable) {
        durable = pl_pin(fd, file);
        if (durable) {
            durable = file->leased && !file->fixed && pl_holds(file) &&
                      __atomic_load_n(&file->entry->changes, __ATOMIC_ACQUIRE) == appends->changes;
            pl_unpin(file);
        }
    }
    leave(appends);
    return durable;
}
