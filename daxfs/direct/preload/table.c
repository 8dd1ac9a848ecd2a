/* Which descriptor is which open file: a table that is read without a lock, and the objects of open files.
 *
 * The kernel decides what a descriptor is; the table follows: an entry goes before the kernel closes the descriptor,
 * and comes after the kernel has made it.
 */
#include "preload.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

struct pl_file *_Atomic pl_table[PL_DESCRIPTORS];
struct pl_file pl_files[PL_FILES];
_Atomic int pl_highest = -1;
PL_THREAD bool pl_vforked;

static _Atomic unsigned next_file;

/* Device and inode of a regular file, as the kernel knows them: the daemon isn't asked. */
bool pl_identify(int fd, dev_t *device, uint64_t *inode) {
    struct statx status;

    if (pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &status) ||
        !S_ISREG(status.stx_mode))
        return false;
    *device = makedev(status.stx_dev_major, status.stx_dev_minor);
    *inode = status.stx_ino;
    return true;
}

/* A free object with one reference, NULL if there is none. */
static struct pl_file *new_file(void) {
    unsigned first = atomic_load_explicit(&next_file, memory_order_relaxed);

    for (unsigned i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[(first + i) % PL_FILES];
        int free = 0;

        if (atomic_compare_exchange_strong(&file->references, &free, 1)) {
            atomic_store_explicit(&next_file, first + i + 1, memory_order_relaxed);
            return file;
        }
    }
    return NULL;
}

static bool slow(int flags) {
    return flags & (O_DSYNC | (O_SYNC & ~O_DSYNC));
}

/* All fields but pins and references: latecomers may still touch those. */
static void set_up(struct pl_file *file, struct pl_mount *mount, uint64_t inode, int flags) {
    pl_free_extents(file);
    file->mount = mount;
    file->inode = inode;
    file->slot = NULL;
    file->count = 0;
    file->granted = 0;
    file->leased = file->fixed = file->stores = file->shut_out = false;
    file->readable = (flags & O_ACCMODE) != O_WRONLY;
    file->writable = (flags & O_ACCMODE) != O_RDONLY;
    atomic_store(&file->slow_writes, slow(flags));
    atomic_store(&file->at_end, flags & O_APPEND);
    atomic_store(&file->unstorable, false);
    atomic_store(&file->stored, false);
    atomic_store(&file->shared, false);
    atomic_store(&file->refused, false);
    atomic_store(&file->mappings, 0);
    atomic_store(&file->patience, 1); /* who reads a file once pays for no question */
    atomic_store(&file->penalty, 0);
    atomic_store(&file->used, 0);
    atomic_store(&file->allocated, PL_UNKNOWN);
    atomic_store(&file->growing, 0);
    atomic_store(&file->hole_end, 0);
    pl_append_start(file);
    atomic_store(&file->dirty_low, UINT64_MAX);
    atomic_store(&file->dirty_high, 0);
    atomic_store(&file->spare, -1);
    atomic_store(&file->descriptors, 1);
    atomic_store(&file->gate, 0);
}

static void enter(int fd, struct pl_file *file) {
    int highest = atomic_load(&pl_highest);

    while (fd > highest && !atomic_compare_exchange_weak(&pl_highest, &highest, fd))
        ;
    atomic_store(&pl_table[fd], file);
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
        pl_gone(fd);
    if (!pl_filtered && !(flags & (O_PATH | O_DIRECTORY)) && pl_identify(fd, &device, &inode)) {
        mount = pl_mount_of(fd, device);
        file = mount ? new_file() : NULL;
        if (file) {
            set_up(file, mount, inode, flags);
            enter(fd, file);
        } else if (mount) {
            pl_leave(mount);
        }
    }
    errno = saved;
}

void pl_duplicated(int fd, int copy) {
    struct pl_file *file = pl_file_of(fd);

    if (copy < 0 || copy >= PL_DESCRIPTORS || copy == fd || pl_foreign())
        return;
    if (unlikely(pl_file_of(copy) != NULL))
        pl_gone(copy);
    if (!file)
        return;
    atomic_fetch_add(&file->references, 1);
    atomic_fetch_add(&file->descriptors, 1);
    enter(copy, file);
}

/* The descriptor was closed unseen (by the C library for itself, by a raw system call). */
void pl_gone(int fd) {
    struct pl_file *file = atomic_exchange(&pl_table[fd], NULL);

    if (!file)
        return;
    atomic_fetch_sub(&file->descriptors, 1);
    pl_drop(file);
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
        pl_tell(fd, file);
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

bool pl_hold_object(struct pl_file *file) {
    int references = atomic_load(&file->references);

    do {
        if (references <= 0)
            return false;
    } while (!atomic_compare_exchange_weak(&file->references, &references, references + 1));
    return true;
}

struct pl_file *pl_hold(int fd) {
    struct pl_file *file = pl_file_of(fd);

    if (!file || pl_foreign() || !pl_hold_object(file))
        return NULL;
    if (atomic_load(&pl_table[fd]) == file)
        return file;
    pl_drop(file);
    return NULL;
}

void pl_drop(struct pl_file *file) {
    struct pl_mount *mount = file->mount;

    if (atomic_fetch_sub(&file->references, 1) == 1)
        pl_leave(mount);
}

void pl_set_flags(int fd) {
    struct pl_file *file = pl_file_of(fd);
    long flags;

    if (!file || pl_foreign() || pl_filtered)
        return;
    flags = pl_call(SYS_fcntl, fd, F_GETFL);
    if (flags >= 0) {
        atomic_store(&file->slow_writes, slow((int)flags));
        atomic_store(&file->at_end, flags & O_APPEND);
    }
}
