/* The holder, and vfork(2). The kernel wipes a page with MADV_WIPEONFORK in a child, so the library notices a fork that
 * bypasses the C library, without a system call.
 */
#include "process.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

bool pl_disabled;
_Atomic bool pl_filtered;
PL_THREAD bool pl_vforked;

static uint64_t holder;
static pid_t owner;        /* the process of `holder` */
static _Atomic int *alive; /* 1 in the holder, 0 in a child; NULL: the kernel has no MADV_WIPEONFORK (before 4.14) */

static void watch_forks(void) {
    void *page = (void *)pl_call(SYS_mmap, NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return;
    if (pl_call(SYS_madvise, page, PAGE, MADV_WIPEONFORK))
        pl_call(SYS_munmap, page, PAGE);
    else
        alive = page;
}

void pl_new_holder(void) {
    struct timespec now;

    if (pl_filtered)
        return; /* a child with the filter, which makes no requests either */
    if (!alive)
        watch_forks();
    if (alive)
        atomic_store(alive, 1);
    owner = (pid_t)pl_call(SYS_getpid);
    if (pl_call(SYS_getrandom, &holder, sizeof(holder), GRND_NONBLOCK) == sizeof(holder))
        return;
    pl_call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    holder = ((uint64_t)owner << 40) ^ ((uint64_t)now.tv_sec << 30) ^ (uint64_t)now.tv_nsec;
}

uint64_t pl_holder(void) {
    return holder;
}

pid_t pl_process(void) {
    return owner;
}

bool pl_is_holder(void) {
    return likely(alive ? atomic_load_explicit(alive, memory_order_relaxed) : pl_call(SYS_getpid) == owner);
}

/* vfork(2): child and parent use the same stack one after the other, so a register keeps the return address. When the
 * parent goes on, the thread may use its memory again. */

#ifdef __x86_64__
__attribute__((used)) static void before_vfork(void) {
    pl_vforked = true;
}

__attribute__((used)) static long failed_vfork(long number) {
    errno = (int)-number;
    return -1;
}

__asm__(".text\n"
        ".globl vfork\n"
        ".globl __vfork\n"
        ".type vfork, @function\n"
        ".type __vfork, @function\n"
        "vfork:\n"
        "__vfork:\n"
        "    sub $8, %rsp\n"
        "    call before_vfork\n"
        "    add $8, %rsp\n"
        "    pop %rdi\n"
        "    mov $58, %eax\n" /* SYS_vfork */
        "    syscall\n"
        "    push %rdi\n"
        "    test %rax, %rax\n"
        "    jz 1f\n"
        "    mov pl_vforked@gottpoff(%rip), %rcx\n"
        "    movb $0, %fs:(%rcx)\n"
        "    js 2f\n"
        "1:  ret\n"
        "2:  mov %rax, %rdi\n"
        "    sub $8, %rsp\n"
        "    call failed_vfork\n"
        "    add $8, %rsp\n"
        "    ret\n"
        ".size vfork, . - vfork\n"
        ".size __vfork, . - __vfork\n");
#else
PUBLIC pid_t vfork(void) {
    return fork();
}
#endif
