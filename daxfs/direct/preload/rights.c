/* A process that has mapped a pool for writing can change every file of every user, so the mapping must not outlive the
 * rights by which the pool was opened. The library opens the pool again in the same mode; if that fails, it gives its
 * leases back and unmaps the pool. The program's own mappings of files stay, as mappings through the kernel do.
 */
#include "rights.h"

#include <errno.h>
#include <fcntl.h>

#include "book.h"
#include "lease.h"
#include "pins.h"
#include "process.h"
#include "stores.h"
#include "trust.h"

static int descriptor_of(const struct pl_file *file) {
    for (int fd = 0; fd <= pl_highest; fd++)
        if (pl_file_of(fd) == file)
            return fd;
    return -1;
}

/* Shut the gates of a mount's files, wait until no thread is inside, and give the leases back. False: a thread stays
 * inside. */
static bool shut_out(struct pl_mount *mount) {
    for (int i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[i];
        int fd;

        if (!atomic_load(&file->references) || file->mount != mount)
            continue;
        if (!pl_shut_out(file))
            return false;
        pl_flush_stores(file);
        fd = pl_filtered ? -1 : descriptor_of(file);
        if (fd >= 0)
            pl_notify(fd, file);
        if (fd >= 0 && file->leased && !atomic_load(&file->mappings) && !atomic_load(&file->shared))
            pl_give_back(fd, file);
        pl_forget_extents(file);
        file->entry = NULL;
        file->stores = false; /* the next mapping of the pool may be read-only */
    }
    return true;
}

/* Open the gates again. With for_good the files are left to the kernel; else the next request decides. */
static void let_in(struct pl_mount *mount, bool for_good) {
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

/* Whether the process's present rights would allow it to map the pool in the same mode. */
static bool still_allowed(const struct pl_mount *mount) {
    int fd;

    if (pl_filtered || !pl_trusted(mount->device))
        return false;
    fd = pl_open_pool(&mount->pool, mount->writable ? O_RDWR : O_RDONLY);
    if (fd >= 0)
        pl_call(SYS_close, fd);
    return fd >= 0;
}

/* Unmap the pool; the next use of a file requests it again, with the rights of that time. No thread can attach or leave
 * while the state is PL_BUSY, nor map while this thread has the book's lock. A signal handler that interrupted a copy
 * can't wait for it: then open files are left to the kernel, and the last close unmaps the pool. */
static void withdraw(struct pl_mount *mount) {
    int state = PL_READY;
    sigset_t saved;

    pl_book_lock(&saved);
    if (atomic_compare_exchange_strong(&mount->state, &state, PL_BUSY)) {
        if (shut_out(mount)) {
            pl_book_freeze(mount);
            atomic_store(&mount->stays, false);
            pl_unmap_pool(mount);
            atomic_store(&mount->state, PL_KNOWN);
            let_in(mount, false);
        } else {
            atomic_store(&mount->stays, false);
            atomic_store(&mount->state, PL_READY);
            let_in(mount, true);
        }
    }
    pl_book_unlock(&saved);
}

void pl_check_rights(void) {
    int saved = errno;

    if (pl_disabled || pl_foreign())
        return;
    for (int i = 0; i < PL_MOUNTS && atomic_load(&pl_mounts[i].state) != PL_FREE; i++) {
        struct pl_mount *mount = &pl_mounts[i];
        int state = atomic_load(&mount->state);

        if (state == PL_READY && !still_allowed(mount))
            withdraw(mount);
        else if (state == PL_NOT_DAXFS && mount->denied)
            atomic_compare_exchange_strong(&mount->state, &state, PL_KNOWN);
    }
    errno = saved;
}
