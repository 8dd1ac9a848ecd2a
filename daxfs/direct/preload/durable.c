/* A file that has only mappings left is flushed. Without a descriptor the library can't notify the daemon of stores. */
#include "durable.h"

#include <errno.h>
#include <fcntl.h>

#include "follow.h"
#include "fork.h"
#include "pins.h"
#include "process.h"
#include "stores.h"

/* Flush a file that is held. Only a change of rights can unmap its pool; it waits for this pin, and then flushes. */
static int flush(struct pl_file *file) {
    int failed = 0;

    pl_pin_held(file);
    if (atomic_load(&file->mount->state) != PL_BUSY && file->mount->base)
        failed = pl_flush_stores(file);
    pl_unpin(file);
    return failed;
}

int pl_sync(int fd, bool data_only, bool *done) {
    struct pl_file *file = pl_hold(fd);
    int failed = 0, saved = errno;

    *done = false;
    if (!file)
        return 0;
    if (atomic_load(&file->stored) || atomic_load(&file->appends.unsynced)) {
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
