/* A child counts from zero. The line is printed without stdio, which the program may have closed or redirected. */
#include "counts.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "process.h"

bool pl_counting;
struct pl_counts pl_counts;

static int output = -1; /* a duplicate of standard error, which many programs close before their end */

void pl_count_start(void) {
    const char *wanted = getenv("DAXFS_DIRECT_STATS");

    pl_counting = !pl_disabled && wanted && !strcmp(wanted, "1");
    if (pl_counting && output < 0)
        output = (int)pl_call(SYS_fcntl, STDERR_FILENO, F_DUPFD_CLOEXEC, 200);
}

void pl_counts_reset(void) {
    atomic_store(&pl_counts.reads, 0);
    atomic_store(&pl_counts.writes, 0);
    atomic_store(&pl_counts.passed, 0);
    atomic_store(&pl_counts.leases, 0);
    atomic_store(&pl_counts.maps, 0);
    atomic_store(&pl_counts.plain_maps, 0);
}

void pl_counts_print(void) {
    char line[256];
    int length;

    if (!pl_counting || !(pl_counts.reads | pl_counts.writes | pl_counts.passed | pl_counts.maps |
                          pl_counts.plain_maps | pl_counts.leases))
        return;
    length = snprintf(line, sizeof(line),
                      "daxfs: process %d: direct: %llu reads, %llu writes, %llu maps; through the kernel: %llu calls,"
                      " %llu maps; %llu leases asked for\n",
                      (int)pl_process(), (unsigned long long)pl_counts.reads, (unsigned long long)pl_counts.writes,
                      (unsigned long long)pl_counts.maps, (unsigned long long)pl_counts.passed,
                      (unsigned long long)pl_counts.plain_maps, (unsigned long long)pl_counts.leases);
    if (pl_call(SYS_write, output, line, (size_t)length) < 0)
        pl_call(SYS_write, STDERR_FILENO, line, (size_t)length);
}
