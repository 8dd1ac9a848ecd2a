/* Calls that change a file's size or blocks: mappings in this process follow at once. */
#include "calls.h"

#include <fcntl.h>

#include "follow.h"

#ifdef PL_MAPS

PUBLIC int ftruncate(int fd, off_t length) {
    int failed = (int)pl_call(SYS_ftruncate, fd, length);

    if (!failed)
        pl_follow(fd);
    return failed;
}

ALSO(ftruncate64, ftruncate);

PUBLIC int truncate(const char *path, off_t length) {
    int failed = (int)pl_call(SYS_truncate, path, length);

    if (!failed)
        pl_follow(-1);
    return failed;
}

ALSO(truncate64, truncate);

PUBLIC int fallocate(int fd, int mode, off_t offset, off_t length) {
    int failed = (int)pl_call(SYS_fallocate, fd, mode, offset, length);

    if (!failed)
        pl_follow(fd);
    return failed;
}

ALSO(fallocate64, fallocate);

#endif
