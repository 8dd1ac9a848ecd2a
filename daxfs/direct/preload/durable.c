/* fdatasync(2) of a file that the daemon has not changed since the last one makes no request: without msync(2) stores
 * are durable when they are made, and the times of a file need not be. To move the times is a change by the daemon: if
 * each fdatasync(2) did it, processes that store to one file would find it changed by each other all the time. So a
 * process moves them once a second.
 *
 * A file that has only mappings left is flushed. Without a descriptor the library can't notify the daemon of stores.
 */
#include "durable.h"

#include <errno.h>
#include <fcntl.h>

#include "follow.h"
#include "fork.h"
#include "pins.h"
#include "process.h"
#include "stores.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5; the number is the same on all machines */
#endif

/* Flush a file that is held. Only a change of rights can unmap its pool; it waits for this pin, and then flushes. */
static int flush(struct pl_file *file) {
    int failed = 0;

    pl_pin_held(file);
    if (atomic_load(&file->mount->state) != PL_BUSY && file->mount->base)
        failed = pl_flush_stores(file);
    pl_unpin(file);
    return failed;
}

bool pl_has_dirty_pages(int fd) {
    struct {
        uint64_t offset, length; /* 0: to the end of the file */
    } range = {0, 0};
    struct {
        uint64_t cached, dirty, written_back, evicted, recently_evicted;
    } found = {0, 0, 0, 0, 0};
    int saved = errno;
    bool unknown = pl_filtered || (pl_call(SYS_cachestat, fd, &range, &found, 0) && errno != ENOSYS);

    errno = saved;
    return unknown || found.dirty || found.written_back;
}

/* Return the state of a file: it is another one after each change by the daemon. The epoch is the high half, and the
 * number of changes the low one. 0: not known, or stores must be flushed first. */
static uint64_t state_of(int fd, struct pl_file *file) {
    uint64_t state = 0;

    if (file->mount->pool.persistence == DAXFS_MSYNC || !pl_pin(fd, file))
        return 0;
    if (file->leased && !file->fixed && pl_holds(file))
        state = file->epoch << 32 | (uint32_t)__atomic_load_n(&file->entry->changes, __ATOMIC_ACQUIRE);
    pl_unpin(file);
    return state;
}

/* Make all content of a file in this state, and whatever leads to it, durable. Return 0 or an errno. */
static int sync_content(int fd, struct pl_file *file, uint64_t state) {
    if (atomic_load(&file->durable) == state)
        return 0;
    if (pl_call(SYS_fdatasync, fd))
        return errno;
    atomic_store(&file->durable, state);
    return 0;
}

int pl_sync(int fd, bool data_only, bool *done) {
    struct pl_file *file = pl_hold(fd);
    int failed = 0, saved = errno;
    uint64_t state;

    *done = false;
    if (!file)
        return 0;
    state = data_only && !pl_times_lag(file) ? state_of(fd, file) : 0;
    if (state) {
        failed = sync_content(fd, file, state);
        *done = !failed;
    } else if (atomic_load(&file->stored) || atomic_load(&file->appends.unsynced)) {
        failed = flush(file);
        *done = !failed && pl_notify_with(fd, file, data_only ? DAXFS_DURABLE | DAXFS_DATA_ONLY : DAXFS_DURABLE);
    }
    pl_drop(file);
    /* If the daemon refuses the notification, the plain system call follows and returns the error. */
    errno = failed ? failed : saved;
    return failed ? -1 : 0;
}

void pl_notify_all(void) {
    if (pl_disabled || pl_filtered || !pl_own_process())
        return;
    for (int fd = 0; fd <= pl_highest; fd++) {
        struct pl_file *file = pl_file_of(fd);

        if (file)
            pl_notify(fd, file);
    }
}

/* Flush a file that is held, and notify the daemon; `fd` is one of its descriptors, or -1. Return 0 or an errno. */
static int flush_file(int fd, struct pl_file *file) {
    int failed;

    pl_mark_file(file);
    failed = flush(file);
    if (fd >= 0)
        pl_notify(fd, file);
    return failed;
}

int pl_flush_mount(dev_t device) {
    int saved = errno, failed = 0, answer;

    if (!pl_own_process())
        return 0;
    for (int fd = 0; fd <= pl_highest; fd++) {
        struct pl_file *file = pl_hold(fd);

        if (!file)
            continue;
        answer = !device || file->mount->device == device ? flush_file(fd, file) : 0;
        failed = answer ? answer : failed;
        pl_drop(file);
    }
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];

        if (!atomic_load(&file->mappings) || atomic_load(&file->descriptors) || !pl_hold_object(file))
            continue;
        answer = !device || file->mount->device == device ? flush_file(-1, file) : 0;
        failed = answer ? answer : failed;
        pl_drop(file);
    }
    errno = saved;
    return failed;
}

void pl_flush_all(void) {
    int saved = errno;

    pl_flush_mount(0);
    /* Later sendfile(2) and splice(2), which can't drop pages under the filter, would send old ones. */
    for (int fd = 0; fd <= pl_highest; fd++)
        if (pl_file_of(fd))
            pl_call(SYS_fadvise64, fd, 0, 0, POSIX_FADV_DONTNEED);
    errno = saved;
}
