/* Copies between a program's memory and the pool, and the write-back of cache lines.
 *
 * x86-64 does it with its own instructions; other machines copy with memcpy and write lines back through libpmem,
 * looked for by the constructor. Nothing here may take memory or a lock.
 */
#include "preload.h"

#include <string.h>

#define LINE 64UL

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

enum { UNKNOWN, CLFLUSH, CLFLUSHOPT, CLWB };

static _Atomic int instruction;

static int best_instruction(void) {
    unsigned a, b = 0, c, d;
    int best = CLFLUSH;

    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (b & 1U << 24)
            best = CLWB;
        else if (b & 1U << 23)
            best = CLFLUSHOPT;
    }
    atomic_store_explicit(&instruction, best, memory_order_relaxed);
    return best;
}

bool pl_lines_known(void) {
    return true;
}

void pl_find_lines(void) {
}

__attribute__((target("clwb"))) static void clwb(uintptr_t line, uintptr_t end) {
    for (; line < end; line += LINE)
        _mm_clwb((void *)line);
}

__attribute__((target("clflushopt"))) static void clflushopt(uintptr_t line, uintptr_t end) {
    for (; line < end; line += LINE)
        _mm_clflushopt((void *)line);
}

void pl_write_back(const char *address, size_t length) {
    uintptr_t line = (uintptr_t)address & ~(LINE - 1), end = (uintptr_t)address + length;
    int best = atomic_load_explicit(&instruction, memory_order_relaxed);

    if (unlikely(best == UNKNOWN))
        best = best_instruction();
    if (best == CLWB)
        clwb(line, end);
    else if (best == CLFLUSHOPT)
        clflushopt(line, end);
    else
        for (; line < end; line += LINE)
            _mm_clflush((void *)line);
    _mm_sfence();
}

#else

#include <dlfcn.h>

static void (*persist)(const void *, size_t);

bool pl_lines_known(void) {
    return persist != NULL;
}

void pl_find_lines(void) {
    void *library = dlopen("libpmem.so.1", RTLD_NOW | RTLD_LOCAL);

    if (library)
        *(void **)&persist = dlsym(library, "pmem_persist");
}

void pl_write_back(const char *address, size_t length) {
    persist(address, length);
}

#endif

void pl_load(void *to, const char *from, size_t length) {
    memcpy(to, from, length);
}

void pl_store(const struct pl_mount *mount, char *to, const void *from, size_t length) {
    memcpy(to, from, length);
    if (mount->pool.persistence == DAXFS_LINES)
        pl_write_back(to, length);
}
