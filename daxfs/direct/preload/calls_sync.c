/* fsync(2), sync(2) and their variants. */
#include "calls.h"

#include <fcntl.h>

#include "append.h"
#include "durable.h"
#include "follow.h"
#include "sync.h"

static int synchronise(int fd, bool data_only, int (*real)(int)) {
    struct pl_file *file = pl_file_of(fd);
    bool done = false, kernel = file && pl_mark_file(file);

    kernel = kernel || (file && pl_has_dirty_pages(fd));
    if (file && !kernel && pl_append_durable(fd, file, data_only))
        return 0;
    if (file && pl_sync(fd, data_only, &done))
        return -1;
    return done && !kernel ? 0 : real(fd);
}

PUBLIC int fsync(int fd) {
    return synchronise(fd, false, REAL(fsync));
}

PUBLIC int fdatasync(int fd) {
    return synchronise(fd, true, REAL(fdatasync));
}

PUBLIC int sync_file_range(int fd, off_t offset, off_t length, unsigned flags) {
    bool done;

    if (flags && pl_file_of(fd) && pl_sync(fd, false, &done))
        return -1;
    return REAL(sync_file_range)(fd, offset, length, flags);
}

PUBLIC void sync(void) {
    pl_sync_mounts();
}

PUBLIC int syncfs(int fd) {
    return pl_syncfs(fd);
}
