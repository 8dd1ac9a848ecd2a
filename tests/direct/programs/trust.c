/* Print whether the preload library trusts a mount, or opens a pool that a mount has named.
 *
 *   trust mount PATH             whether the mount of the path is trusted
 *   trust pool PATH NAMED FLAGS  whether PATH is opened if the identity of the pool is that of the file NAMED
 *   trust superblock PATH        whether the file has the superblock of the UUID 00 01 02 ... 0f
 */
#include "../../../daxfs/direct/preload/trust.c"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static const char *superblock(const char *path) {
    struct daxfs_pool pool = {.size = 4096};
    int fd = open(path, O_RDONLY);
    char *base = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);

    for (int i = 0; i < 16; i++)
        pool.uuid[i] = (uint8_t)i;
    return base != MAP_FAILED && pl_has_superblock(&pool, base) ? "yes" : "no";
}

int main(int count, char **given) {
    struct daxfs_pool pool = {.size = 4096};
    struct stat status;

    if (count == 3 && !strcmp(given[1], "mount") && !stat(given[2], &status))
        puts(pl_trusted(status.st_dev) ? "yes" : "no");
    else if (count == 5 && !strcmp(given[1], "pool") && !stat(given[3], &status)) {
        pool.device = status.st_dev;
        pool.inode = status.st_ino;
        pool.rdevice = status.st_rdev;
        strncpy(pool.path, given[2], sizeof(pool.path) - 1);
        puts(pl_open_pool(&pool, atoi(given[4])) >= 0 ? "yes" : "no");
    } else if (count == 3 && !strcmp(given[1], "superblock"))
        puts(superblock(given[2]));
    else
        return 2;
    return 0;
}
