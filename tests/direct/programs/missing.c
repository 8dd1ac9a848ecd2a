/* A pool that is cut below a program: system calls fail, and SIGBUS is the program's own.
 *
 * missing FILE POOL PLAIN   FILE lies in POOL, which is cut to 64 KiB; PLAIN is a file elsewhere
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define SIZE (1 << 20)

static char content[SIZE], buffer[SIZE];
static sigjmp_buf back;
static volatile sig_atomic_t faults, sent;
static void *volatile where;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    faults += number == SIGBUS;
    where = info->si_addr;
    siglongjmp(back, 1);
}

static void on_signal(int number) {
    sent += number == SIGBUS;
}

static bool touches(volatile char *place) {
    if (sigsetjmp(back, 1))
        return false;
    *place = 1;
    return true;
}

static int child_touches(volatile char *place) {
    pid_t child = fork();
    int status;

    if (!child) {
        *place = 1;
        _exit(0);
    }
    EXPECT(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static bool fails(ssize_t done) {
    return done == -1 && errno == EIO;
}

/* Overwrites by several threads: each either succeeds as a whole or fails with EIO. */
static void *overwrite(void *argument) {
    const char *path = argument;
    int fd = open(path, O_RDWR), failed = 0;

    EXPECT(fd >= 0);
    for (int i = 0; i < 100000 && failed < 3; i++) {
        ssize_t done = pwrite(fd, content, 65536, (i % 16) * 65536L);

        EXPECT(done == 65536 || fails(done));
        failed += done != 65536;
        done = pread(fd, buffer, 65536, (i % 16) * 65536L);
        EXPECT(done == 65536 || fails(done));
    }
    EXPECT(failed == 3);
    close(fd);
    return NULL;
}

int main(int count, char **arguments) {
    const char *path = arguments[1], *pool = arguments[2];
    struct sigaction wanted = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, got;
    int fd = open(path, O_RDWR), plain = open(arguments[3], O_RDWR);
    pthread_t threads[3];
    char *own, *other;

    EXPECT(count == 4 && fd >= 0 && plain >= 0);
    EXPECT(!sigaction(SIGBUS, &wanted, NULL));
    memset(content, 'c', SIZE);
    for (int i = 0; i < 4; i++) {
        EXPECT(pwrite(fd, content, SIZE, 0) == SIZE);
        EXPECT(pread(fd, buffer, SIZE, 0) == SIZE && !memcmp(buffer, content, SIZE));
    }
    own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 0);
    EXPECT(own != MAP_FAILED && other != MAP_FAILED && touches(own));
    EXPECT(!sigaction(SIGBUS, NULL, &got) && got.sa_sigaction == on_fault && got.sa_flags & SA_SIGINFO);
    for (int i = 0; i < 3; i++)
        EXPECT(!pthread_create(&threads[i], NULL, overwrite, (void *)path));
    usleep(100000);

    EXPECT(!truncate(pool, 65536));
    EXPECT(fails(pread(fd, buffer, 4096, 0)) && fails(pread(fd, buffer, SIZE, 0)));
    EXPECT(fails(pwrite(fd, content, 4096, 0)) && fails(pwrite(fd, content, SIZE, 0)));
    fsync(fd); /* an error where the pool has a medium */
    for (int i = 0; i < 3; i++)
        EXPECT(!pthread_join(threads[i], NULL));
    EXPECT(!faults);

    /* The program's own loads and stores, in the pool and elsewhere, are its own affair. */
    EXPECT(!touches(own + SIZE / 2) && faults == 1 && where == own + SIZE / 2);
    msync(own, SIZE, MS_SYNC);
    EXPECT(faults == 1);
    EXPECT(!ftruncate(plain, 0) && !touches(other) && faults == 2 && where == other);
    EXPECT(signal(SIGBUS, on_signal) == wanted.sa_handler && !raise(SIGBUS) && sent == 1);
    EXPECT(signal(SIGBUS, SIG_IGN) == on_signal && !raise(SIGBUS) && sent == 1);
    EXPECT(signal(SIGBUS, SIG_DFL) == SIG_IGN);
    EXPECT(child_touches(other) == SIGBUS);
    EXPECT(!munmap(own, SIZE));
    puts("good");
    return 0;
}
