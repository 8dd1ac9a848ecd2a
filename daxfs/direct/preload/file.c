/* A free object has no references. The thread that takes the first reference sets the object up; the thread that drops
 * the last one leaves the mount. */
#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "process.h"

struct pl_file *_Atomic pl_table[PL_DESCRIPTORS];
struct pl_file pl_files[PL_FILES];
_Atomic int pl_highest = -1;

static _Atomic unsigned next_file;

void pl_forget_extents(struct pl_file *file) {
    file->leased = file->fixed = false;
    file->extents.count = 0;
    file->granted = 0;
}

void pl_forget_appends(struct pl_file *file) {
    struct pl_appends *appends = &file->appends;

    appends->appended = appends->changes = 0;
    appends->patience = appends->penalty = appends->used = 0;
    appends->seen = appends->pairs = 0;
    appends->waiting = appends->data_only = appends->durable = appends->durable_data = appends->unarmed = false;
    appends->armed.next = appends->armed.count = appends->armed.given = 0;
    appends->armed.wanted = appends->armed.refused = appends->armed.patience = appends->armed.penalty = 0;
    atomic_store(&file->fired, 0);
    atomic_store(&appends->unsynced, false);
    atomic_store(&appends->busy, 0);
}

void pl_set_status_flags(struct pl_file *file, int flags) {
    atomic_store(&file->slow_writes, flags & (O_DSYNC | (O_SYNC & ~O_DSYNC)));
    atomic_store(&file->at_end, flags & O_APPEND);
}

/* Set all fields but pins and references, which late threads may still touch. */
static void set_up(struct pl_file *file, struct pl_mount *mount, uint64_t inode, int flags) {
    pl_extents_reset(&file->extents, file->few);
    file->mount = mount;
    file->inode = inode;
    file->entry = NULL;
    file->granted = 0;
    file->leased = file->fixed = file->stores = file->shut_out = false;
    file->readable = (flags & O_ACCMODE) != O_WRONLY;
    file->writable = (flags & O_ACCMODE) != O_RDONLY;
    pl_set_status_flags(file, flags);
    atomic_store(&file->unstorable, false);
    atomic_store(&file->stored, false);
    atomic_store(&file->reported, 0);
    atomic_store(&file->durable, 0);
    atomic_store(&file->shared, false);
    atomic_store(&file->announced, false);
    atomic_store(&file->refused, false);
    atomic_store(&file->mappings, 0);
    atomic_store(&file->patience, 1); /* a program that reads a file once pays for no request */
    atomic_store(&file->penalty, 0);
    atomic_store(&file->used, 0);
    atomic_store(&file->allocated, PL_UNKNOWN);
    atomic_store(&file->extending, 0);
    atomic_store(&file->hole_end, 0);
    pl_forget_appends(file);
    atomic_store(&file->dirty_low, UINT64_MAX);
    atomic_store(&file->dirty_high, 0);
    atomic_store(&file->spare, -1);
    atomic_store(&file->kept, -1);
    atomic_store(&file->descriptors, 1);
    atomic_store(&file->gate, 0);
}

struct pl_file *pl_new_file(struct pl_mount *mount, uint64_t inode, int flags) {
    unsigned first = atomic_load_explicit(&next_file, memory_order_relaxed);

    for (unsigned i = 0; i < PL_FILES; i++) {
        struct pl_file *file = &pl_files[(first + i) % PL_FILES];
        int free = 0;

        if (atomic_compare_exchange_strong(&file->references, &free, 1)) {
            atomic_store_explicit(&next_file, first + i + 1, memory_order_relaxed);
            set_up(file, mount, inode, flags);
            return file;
        }
    }
    return NULL;
}

void pl_enter(int fd, struct pl_file *file) {
    int highest = atomic_load(&pl_highest);

    while (fd > highest && !atomic_compare_exchange_weak(&pl_highest, &highest, fd))
        ;
    atomic_store(&pl_table[fd], file);
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

bool pl_identify(int fd, dev_t *device, uint64_t *inode) {
    struct statx status;

    if (pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &status) ||
        !S_ISREG(status.stx_mode))
        return false;
    *device = makedev(status.stx_dev_major, status.stx_dev_minor);
    *inode = status.stx_ino;
    return true;
}

bool pl_is_open_as(int fd, const struct pl_file *file) {
    dev_t device;
    uint64_t inode;

    return fd >= 0 && pl_identify(fd, &device, &inode) && device == file->mount->device && inode == file->inode;
}
