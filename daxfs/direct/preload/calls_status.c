/* statx(2): the sizes of atomic writes, which the kernel can't learn from a FUSE daemon. */
#include "calls.h"

#include <sys/stat.h>

#include "atomic.h"

PUBLIC int statx(int directory, const char *restrict path, int flags, unsigned mask, struct statx *restrict status) {
    return pl_statx(directory, path, flags, mask, status);
}
