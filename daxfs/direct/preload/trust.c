/* A mount by root or by this process's own user is trusted; another mount might name any file as its pool
 * (docs/DIRECT.md, rule 2, has the reason). direct/trust.py has the same checks in Python.
 */
#include "trust.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#define PROC_MAGIC 0x9fa0
#define MNT_ID_UNIQUE 0x4000U /* STATX_MNT_ID_UNIQUE */

/* The table of mounts as a stream of words, which end at blanks, commas and newlines. */
struct words {
    int fd;
    size_t at, count;
    char buffer[1024];
    char word[64]; /* longer words are cut off */
    int field;     /* of this line, from 0 on */
    bool whole;    /* the word is the whole field */
    char end;      /* the character after the word */
};

static bool next_word(struct words *words) {
    size_t length = 0;
    bool first = words->end != ',';

    words->field = words->end == '\n' ? 0 : words->field + first;
    for (;;) {
        if (words->at == words->count) {
            long count = pl_call(SYS_read, words->fd, words->buffer, sizeof(words->buffer));

            if (count <= 0)
                return false;
            words->at = 0;
            words->count = (size_t)count;
        }
        words->end = words->buffer[words->at++];
        if (words->end == ' ' || words->end == ',' || words->end == '\n')
            break;
        if (length < sizeof(words->word) - 1)
            words->word[length++] = words->end;
    }
    words->word[length] = 0;
    words->whole = first && words->end != ',';
    return true;
}

static bool number(const char **text, uint64_t *value) {
    const char *start = *text;

    for (*value = 0; **text >= '0' && **text <= '9' && *value < UINT32_MAX; (*text)++)
        *value = *value * 10 + (uint64_t)(**text - '0');
    return *text != start;
}

static bool same_device(const char *text, dev_t device) {
    uint64_t high, low;

    return number(&text, &high) && *text++ == ':' && number(&text, &low) && !*text && high == major(device) &&
           low == minor(device);
}

/* `user_id=` names the mounting user. Root and the process's own user could do anything to the process anyway. */
static bool trusted_user(const char *text) {
    uid_t real, effective, saved;
    uint64_t user;

    if (!number(&text, &user) || *text)
        return false;
    return !user || (!pl_call(SYS_getresuid, &real, &effective, &saved) && user == real && user == effective &&
                     user == saved);
}

static bool find(struct words *words, dev_t device) {
    static const char user[] = "user_id=";
    bool same = false, daxfs = false, owned = false;
    int dash = 0; /* the field before the type */

    while (next_word(words)) {
        if (words->field == 0)
            same = daxfs = owned = false, dash = 0;
        if (words->field == 2)
            same = same_device(words->word, device);
        if (dash && words->field == dash + 1)
            daxfs = words->whole && !strcmp(words->word, DAXFS_FILESYSTEM_TYPE);
        if (!dash && words->field > 5 && words->whole && !strcmp(words->word, "-"))
            dash = words->field;
        if (same && daxfs && words->field == dash + 3 && !strncmp(words->word, user, sizeof(user) - 1)) {
            owned = trusted_user(words->word + sizeof(user) - 1);
            if (!owned)
                return false;
        }
        if (owned && words->end == '\n')
            return true;
    }
    return false;
}

bool pl_trusted(dev_t device) {
    struct words words = {.end = '\n'};
    struct statfs system;
    bool found;

    words.fd = (int)pl_call(SYS_openat, AT_FDCWD, "/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    if (words.fd < 0)
        return false;
    found = !pl_call(SYS_fstatfs, words.fd, &system) && system.f_type == PROC_MAGIC && find(&words, device);
    pl_call(SYS_close, words.fd);
    return found;
}

uint64_t pl_mount_id(int fd) {
    struct {
        uint32_t mask;
        char before[140];
        uint64_t id;
        char after[104];
    } status;

    if (pl_call(SYS_statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, MNT_ID_UNIQUE, &status))
        return 0;
    return status.mask & MNT_ID_UNIQUE ? status.id : 0;
}

/* Whether this is the file or device that the daemon named. */
static bool is_pool(const struct daxfs_pool *pool, const struct stat *status) {
    if (status->st_dev != pool->device || status->st_ino != pool->inode)
        return false;
    if (S_ISREG(status->st_mode))
        return (uint64_t)status->st_size >= pool->size;
    return (S_ISBLK(status->st_mode) || S_ISCHR(status->st_mode)) && status->st_rdev == pool->rdevice;
}

/* Opening some devices has effects, so the path is checked first. If another file replaces it in between, the flags
 * keep open(2) from following a link, from waiting and from taking a terminal. */
int pl_open_pool(const struct daxfs_pool *pool, int flags) {
    struct stat status;
    int fd;

    if (pool->size < DAXFS_LEAST_POOL || pl_call(SYS_newfstatat, AT_FDCWD, pool->path, &status, AT_SYMLINK_NOFOLLOW) ||
        !is_pool(pool, &status))
        return -1;
    fd = (int)pl_call(SYS_openat, AT_FDCWD, pool->path, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0 && (pl_call(SYS_fstat, fd, &status) || !is_pool(pool, &status))) {
        pl_call(SYS_close, fd);
        return -1;
    }
    return fd;
}

bool pl_has_superblock(const struct daxfs_pool *pool, const char *base) {
    return !memcmp(base + DAXFS_MAGIC_AT, DAXFS_MAGIC, sizeof(DAXFS_MAGIC) - 1) &&
           !memcmp(base + DAXFS_UUID_AT, pool->uuid, sizeof(pool->uuid));
}
