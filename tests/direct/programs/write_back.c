/* With persistence by cache lines the lines of every store, and no others, are written back before a fence; msync(2)
 * covers all stores since the last one.
 *
 * The program compiles the library's own sources, and replaces the write-back instructions by functions that record
 * their arguments. It does not depend on the machine's caches, so each instruction is tested on every machine.
 */
#include "../../../daxfs/direct/preload/base.h"

#include <immintrin.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOM (1UL << 17)
#define LINES (ROOM / 64)

enum { CLEAN, DIRTY, LEAVING, DURABLE };

static char pool[ROOM] __attribute__((aligned(4096)));
static unsigned char state[LINES];
static unsigned long synced_low, synced_length, syncs;

static bool in_pool(const void *address) {
    return (const char *)address >= pool && (const char *)address < pool + ROOM;
}

static void becomes(const void *address, size_t length, int how) {
    size_t first = (size_t)((const char *)address - pool);

    for (size_t line = first / 64; length && line <= (first + length - 1) / 64; line++)
        state[line] = (unsigned char)how;
}

static void *noted_copy(void *to, const void *from, size_t length) {
    if (in_pool(to))
        becomes(to, length, DIRTY);
    return memmove(to, from, length);
}

static void noted_line(const void *address) {
    size_t line = (size_t)((const char *)address - pool) / 64;

    /* Lines without a store are recorded too, since they must not be written back. */
    if (in_pool(address) && state[line] != DURABLE)
        state[line] = LEAVING;
}

static void noted_fence(void) {
    for (size_t line = 0; line < LINES; line++)
        if (state[line] == LEAVING)
            state[line] = DURABLE;
}

static long noted_call(long number, ...) {
    va_list rest;

    va_start(rest, number);
    if (number == SYS_msync) {
        synced_low = va_arg(rest, unsigned long) - (unsigned long)pool;
        synced_length = va_arg(rest, unsigned long);
        syncs++;
    }
    va_end(rest);
    return 0;
}

#define memcpy noted_copy
#define _mm_clwb(line) noted_line(line)
#define _mm_clflushopt(line) noted_line(line)
#define _mm_clflush(line) noted_line(line)
#define _mm_sfence() noted_fence()
#define _mm_stream_si128(to, value) (becomes(to, 16, LEAVING), (_mm_stream_si128)(to, value))
#define _mm512_stream_si512(to, value) (becomes(to, 64, LEAVING), (_mm512_stream_si512)(to, value))
#undef pl_call
#define pl_call(...) noted_call(__VA_ARGS__)
#include "../../../daxfs/direct/preload/copy.c"
#include "../../../daxfs/direct/preload/durable.c"
#include "../../../daxfs/direct/preload/extents.c"
#include "../../../daxfs/direct/preload/guard.c"
#include "../../../daxfs/direct/preload/ioctls.c"
#include "../../../daxfs/direct/preload/memory.c"
#include "../../../daxfs/direct/preload/pins.c"
#include "../../../daxfs/direct/preload/pool.c"
#include "../../../daxfs/direct/preload/stores.c"
#undef memcpy

/* Definitions for the linker; this program does not call them. */
_Atomic bool pl_filtered;

void pl_drop(struct pl_file *file) {
    (void)file;
}

static struct pl_mount mount = {.base = pool};

static void expect(bool good, const char *what, size_t begin, size_t length) {
    if (good)
        return;
    printf("%s, persistence %u: %zu bytes at %zu\n", what, mount.pool.persistence, length, begin);
    exit(1);
}

/* Check that exactly the lines of [begin, begin + length) have the expected state. */
static void expect_lines(int inside, const char *what, size_t begin, size_t length) {
    for (size_t line = 0; line < LINES; line++) {
        bool within = length && line >= begin / 64 && line <= (begin + length - 1) / 64;

        expect(state[line] == (within ? inside : CLEAN), what, begin, length);
    }
}

static const size_t begins[] = {0, 1, 8, 60, 63, 64, 100, 4090, 4096};
static const size_t lengths[] = {1, 7, 8, 63, 64, 65, 128, 200, 255, 256, 257, 300, 511, 4096, 16383, 16384, 16500, 70000};

static void each(void (*test)(size_t begin, size_t length)) {
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++)
        for (size_t j = 0; j < sizeof(lengths) / sizeof(lengths[0]); j++) {
            memset(state, CLEAN, sizeof(state));
            syncs = 0;
            test(begins[i], lengths[j]);
        }
}

static void put_bytes(size_t begin, size_t length) {
    static char from[ROOM];
    struct pl_extent whole = {.end = ROOM, .kind = DAXFS_MEMORY};
    struct pl_file file = {.mount = &mount, .extents = {.list = &whole, .count = 1}};
    size_t streamed = 0;

    expect(!pl_put(&file, &(struct iovec){from, length}, length, begin), "not stored", begin, length);
    if (mount.pool.persistence == DAXFS_LINES) {
        expect_lines(DURABLE, "stored, not durable", begin, length);
        return;
    }
    for (size_t line = 0; line < LINES; line++)
        streamed += state[line] == LEAVING;
    expect(!streamed, "streamed without a fence", begin, length);
    expect(!syncs, "a store synced", begin, length);
}

static void flush_range(size_t begin, size_t length) {
    becomes(pool + begin, length, DIRTY);
    expect(!pl_flush(&mount, pool + begin, length), "flush failed", begin, length);
    if (mount.pool.persistence == DAXFS_LINES)
        expect_lines(DURABLE, "flushed, not durable", begin, length);
    else
        expect_lines(DIRTY, "lines written back", begin, length);
    expect(syncs == (mount.pool.persistence == DAXFS_MSYNC), "msync calls", begin, length);
    if (syncs)
        expect(synced_low == (begin & ~4095UL) && synced_low + synced_length == begin + length, "msync of another range",
               begin, length);
}

/* Check that the dirty range of a file spans all its stores, in any order. */
static void hull(size_t begin, size_t length) {
    static const size_t others[] = {0, 5000, 40000, 100000};

    for (size_t i = 0; i < 2 * sizeof(others) / sizeof(others[0]); i++) {
        struct pl_file file = {.mount = &mount, .dirty_low = UINT64_MAX, .spare = -1};
        size_t other = others[i / 2], low = begin < other ? begin : other;
        size_t end = begin + length > other + 10 ? begin + length : other + 10;

        pl_stored(&file, i % 2 ? begin : other, i % 2 ? length : 10);
        pl_stored(&file, i % 2 ? other : begin, i % 2 ? 10 : length);
        syncs = 0;
        expect(!flush(&file) && atomic_load(&file.stored), "flush of the stores failed", begin, length);
        expect(syncs == 1 && synced_low == (low & ~4095UL) && synced_low + synced_length == end, "not all was synced",
               begin, length);
        expect(!flush(&file) && syncs == 1, "synced once more", begin, length);
    }
}

int main(void) {
    for (unsigned persistence = DAXFS_VOLATILE; persistence <= DAXFS_LINES; persistence++) {
        mount.pool.persistence = persistence;
        for (int best = CLFLUSH; best <= CLWB; best++) {
            atomic_store(&instruction, best);
            each(put_bytes);
            each(flush_range);
        }
    }
    mount.pool.persistence = DAXFS_MSYNC;
    each(hull);
    printf("good\n");
    return 0;
}
