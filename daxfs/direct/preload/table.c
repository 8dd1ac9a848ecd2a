/* The library does not see raw system calls, nor descriptors that the C library closes itself. So an entry that exists
 * when the kernel returns its descriptor again is out of date.
 */
#include "table.h"

#include <errno.h>
#include <fcntl.h>

#include "file.h"
#include "pins.h"
#include "process.h"
#include "stores.h"

/* Remove the entry of a descriptor that was closed unseen. */
static void gone(int fd) {
    struct pl_file *file = atomic_exchange(&pl_table[fd], NULL);

    if (!file)
        return;
    atomic_fetch_sub(&file->descriptors, 1);
    pl_drop(file);
}

void pl_adopt(int fd, int flags) {
    int saved = errno;
    struct pl_mount *mount;
    struct pl_file *file;
    uint64_t inode;
    dev_t device;

    if (fd < 0 || fd >= PL_DESCRIPTORS || pl_disabled || pl_foreign())
        return;
    if (unlikely(pl_file_of(fd) != NULL))
        gone(fd);
    if (!pl_filtered && !(flags & (O_PATH | O_DIRECTORY)) && pl_identify(fd, &device, &inode)) {
        mount = pl_mount_of(fd, device);
        file = mount ? pl_new_file(mount, inode, flags) : NULL;
        if (file)
            pl_enter(fd, file);
        else if (mount)
            pl_leave(mount);
    }
    errno = saved;
}

void pl_duplicated(int fd, int copy) {
    struct pl_file *file = pl_file_of(fd);

    if (copy < 0 || copy >= PL_DESCRIPTORS || copy == fd || pl_foreign())
        return;
    if (unlikely(pl_file_of(copy) != NULL))
        gone(copy);
    if (!file)
        return;
    atomic_fetch_add(&file->references, 1);
    atomic_fetch_add(&file->descriptors, 1);
    pl_enter(copy, file);
}

void pl_forget(int fd) {
    struct pl_file *file = pl_file_of(fd);

    if (!file || pl_foreign())
        return;
    file = atomic_exchange(&pl_table[fd], NULL);
    if (!file)
        return;
    if (atomic_fetch_sub(&file->descriptors, 1) == 1) {
        pl_last_close(fd, file);
        pl_notify(fd, file);
    }
    pl_drop(file);
}

void pl_forget_from(unsigned first, unsigned last) {
    int highest = atomic_load(&pl_highest);

    if (pl_foreign())
        return;
    for (unsigned fd = first; highest >= 0 && fd <= (unsigned)highest && fd <= last; fd++)
        pl_forget((int)fd);
}

void pl_set_flags(int fd) {
    struct pl_file *file = pl_file_of(fd);
    long flags;

    if (!file || pl_foreign() || pl_filtered)
        return;
    flags = pl_call(SYS_fcntl, fd, F_GETFL);
    if (flags >= 0)
        pl_set_status_flags(file, (int)flags);
}
