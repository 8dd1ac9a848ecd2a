/* On x86-64 this file copies and writes lines back by its own instructions. Other machines copy with memcpy and write
 * lines back through libpmem.
 */
#include "copy.h"

#include <string.h>

#define LINE 64UL

/* Stores of at least STREAM bytes bypass the caches: they are twice as fast, because the lines are not read before.
 * Smaller stores go through the caches, since they are likely to be read or written again soon. If the lines must be
 * written back in any case, the limit is STREAM_LINES. */
#define STREAM 16384UL
#define STREAM_LINES 256UL

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

/* Copy whole lines, bypassing the caches. */
__attribute__((target("avx512f"))) static void stream_wide(char *to, const char *from, size_t length) {
    for (; length >= 4 * LINE; length -= 4 * LINE, to += 4 * LINE, from += 4 * LINE) {
        __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + LINE);
        __m512i c = _mm512_loadu_si512(from + 2 * LINE), d = _mm512_loadu_si512(from + 3 * LINE);

        _mm512_stream_si512((void *)to, a);
        _mm512_stream_si512((void *)(to + LINE), b);
        _mm512_stream_si512((void *)(to + 2 * LINE), c);
        _mm512_stream_si512((void *)(to + 3 * LINE), d);
    }
    for (; length; length -= LINE, to += LINE, from += LINE)
        _mm512_stream_si512((void *)to, _mm512_loadu_si512(from));
}

static void stream_narrow(char *to, const char *from, size_t length) {
    for (; length; length -= LINE, to += LINE, from += LINE) {
        const __m128i *part = (const __m128i *)from;
        __m128i a = _mm_loadu_si128(part), b = _mm_loadu_si128(part + 1);
        __m128i c = _mm_loadu_si128(part + 2), d = _mm_loadu_si128(part + 3);

        _mm_stream_si128((__m128i *)to, a);
        _mm_stream_si128((__m128i *)to + 1, b);
        _mm_stream_si128((__m128i *)to + 2, c);
        _mm_stream_si128((__m128i *)to + 3, d);
    }
}

/* Copy, bypassing the caches; the two ends, which are parts of lines, go through the caches. */
static void stream(char *to, const char *from, size_t length, bool lines) {
    size_t head = -(uintptr_t)to & (LINE - 1), tail = (length - head) & (LINE - 1), middle = length - head - tail;

    memcpy(to, from, head);
    if (__builtin_cpu_supports("avx512f"))
        stream_wide(to + head, from + head, middle);
    else
        stream_narrow(to + head, from + head, middle);
    memcpy(to + head + middle, from + head + middle, tail);
    if (lines && head)
        pl_write_back(to, head);
    if (lines && tail)
        pl_write_back(to + head + middle, tail);
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

static void stream(char *to, const char *from, size_t length, bool lines) {
    memcpy(to, from, length);
    if (lines)
        pl_write_back(to, length);
}

#endif

void pl_store(char *to, const void *from, size_t length, bool lines) {
    if (length >= (lines ? STREAM_LINES : STREAM)) {
        stream(to, from, length, lines);
        return;
    }
    memcpy(to, from, length);
    if (lines)
        pl_write_back(to, length);
}
