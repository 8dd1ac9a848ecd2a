/* When these functions return, every earlier change of any process on the mounts is durable.
 *
 * A kernel without HAS_SYNCFS only writes its own pages back to a FUSE daemon. So the library makes the system call,
 * flushes this process's stores and notifies the daemon of them, and then sends DAXFS_IOC_SYNC through any open file
 * or directory of the mount. syncfs(2) has a descriptor. sync(2) uses open files and the root directories of mounts,
 * since programs close their files first.
 */
#include "sync.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "durable.h"
#include "file.h"
#include "ioctls.h"
#include "process.h"
#include "trust.h"

#define TYPE " - " DAXFS_FILESYSTEM_TYPE " "
#define LONGEST 8192 /* bytes of a line of the table of mounts; longer lines are skipped */
#define MOUNTS 64    /* the most mounts with open files that are asked */

/* Whether a descriptor's mount is trusted, now or, if it is detached or hidden meanwhile, when its pool was mapped. */
static bool believed(int fd, dev_t device) {
    const struct pl_file *file = pl_file_of(fd);

    return (file && atomic_load(&file->mount->state) == PL_READY) || pl_trusted(device);
}

/* Send requests through open files: the root of a mount may be out of this process's reach. */
static void ask_by_files(void) {
    const struct pl_mount *asked[MOUNTS];
    size_t count = 0;

    for (int fd = 0; fd <= pl_highest && count < MOUNTS; fd++) {
        struct pl_file *file = pl_hold(fd);
        size_t i = 0;

        if (!file)
            continue;
        while (i < count && asked[i] != file->mount)
            i++;
        if (i == count) {
            asked[count++] = file->mount;
            if (believed(fd, file->mount->device))
                pl_ioctl_sync(fd);
        }
        pl_drop(file);
    }
}

/* Send the request through a mountpoint, unless another mount covers it. Return 0 or an errno. */
static int ask_by_path(const char *path, dev_t device) {
    int fd = (int)pl_call(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK), failed = 0;
    struct stat status;

    if (fd < 0)
        return errno;
    if (!pl_call(SYS_fstat, fd, &status) && status.st_dev == device)
        failed = pl_ioctl_sync(fd);
    pl_call(SYS_close, fd);
    return failed;
}

/* Return a field of a line. NULL: the line has fewer fields. */
static char *field(char *line, int number) {
    while (line && number--) {
        line = strchr(line, ' ');
        line = line ? line + 1 : NULL;
    }
    return line;
}

/* Decode a path: the table has blanks and some other characters as a backslash and three octal digits. */
static void unescape(char *text) {
    char *to = text;

    for (; *text && *text != ' '; text++) {
        if (text[0] == '\\' && text[1] && text[2] && text[3]) {
            *to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 3;
        } else {
            *to++ = *text;
        }
    }
    *to = 0;
}

/* Send the request to the mount of a line: id, parent, major:minor, root, mountpoint, ..., a dash, type, ... */
static int ask_by_line(char *line, dev_t wanted) {
    char *device = field(line, 2), *path = field(line, 4);
    unsigned major;
    dev_t found;

    if (!path || !strstr(path, TYPE))
        return 0;
    major = (unsigned)strtoul(device, &device, 10);
    found = makedev(major, (unsigned)strtoul(device + 1, NULL, 10));
    if ((wanted && found != wanted) || !pl_trusted(found))
        return 0;
    unescape(path);
    return ask_by_path(path, found);
}

/* Send requests to all mounts of daxfs that this process sees (0), or to the one with this st_dev. Return 0 or the last
 * errno. */
static int ask_by_table(dev_t wanted) {
    char text[LONGEST];
    size_t have = 0;
    long count;
    int table = (int)pl_call(SYS_openat, AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC), failed = 0;

    if (table < 0)
        return errno;
    while ((count = pl_call(SYS_read, table, text + have, sizeof(text) - have)) > 0) {
        char *line = text, *end;

        have += (size_t)count;
        while ((end = memchr(line, '\n', have))) {
            int answer;

            *end = 0;
            answer = ask_by_line(line, wanted);
            failed = answer ? answer : failed;
            have -= (size_t)(end + 1 - line);
            line = end + 1;
        }
        if (have == sizeof(text))
            have = 0;
        memmove(text, line, have);
    }
    pl_call(SYS_close, table);
    return failed;
}

static bool mute(void) {
    return pl_disabled || pl_filtered || pl_foreign();
}

void pl_sync_mounts(void) {
    int saved = errno;

    pl_call(SYS_sync);
    if (!mute()) {
        pl_flush_mount(0);
        ask_by_files();
        ask_by_table(0);
    }
    errno = saved;
}

int pl_syncfs(int fd) {
    int saved = errno, failed;
    struct statx status;
    dev_t device;

    if (pl_call(SYS_syncfs, fd))
        return -1;
    /* AT_STATX_DONT_SYNC: a mount whose daemon has ended must not look like another file system. */
    if (mute() || pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) ||
        !believed(fd, device = makedev(status.stx_dev_major, status.stx_dev_minor))) {
        errno = saved;
        return 0;
    }
    failed = pl_flush_mount(device);
    if (!failed)
        failed = S_ISREG(status.stx_mode) || S_ISDIR(status.stx_mode) ? pl_ioctl_sync(fd) : ask_by_table(device);
    errno = failed ? failed : saved;
    return failed ? -1 : 0;
}
