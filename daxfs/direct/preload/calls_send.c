/* sendfile(2) and splice(2): the kernel copies from file to file through its page cache, which does not see stores to
 * memory. So the library drops the pages before.
 */
#include "calls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/sendfile.h>

#include "process.h"

#define MOST 0x7ffff000UL /* the most bytes of one call: MAX_RW_COUNT of the kernel */

static void drop_pages(int fd, const off_t *offset, size_t length) {
    int saved = errno;
    off_t start;

    if (pl_filtered)
        return;
    start = offset ? *offset : pl_call(SYS_lseek, fd, 0L, SEEK_CUR);
    /* fadvise(2) keeps pages that are only partly in the range, so the range is widened to whole pages. */
    if (start >= 0 && length < MOST)
        pl_call(SYS_fadvise64, fd, start & -4096L, (start & 4095) + (off_t)length + 4095, POSIX_FADV_DONTNEED);
    else
        pl_call(SYS_fadvise64, fd, 0L, 0L, POSIX_FADV_DONTNEED);
    errno = saved;
}

PUBLIC ssize_t sendfile(int to, int from, off_t *offset, size_t length) {
    if (pl_file_of(from))
        drop_pages(from, offset, length);
    return REAL(sendfile)(to, from, offset, length);
}

PUBLIC ssize_t splice(int from, off_t *offset, int to, off_t *to_offset, size_t length, unsigned flags) {
    if (pl_file_of(from))
        drop_pages(from, offset, length);
    return REAL(splice)(from, offset, to, to_offset, length, flags);
}

ALSO(sendfile64, sendfile);
