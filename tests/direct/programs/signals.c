/* Signal handlers, forks and vforks in the middle of direct reads and writes; fortified calls.
 *
 * signals signals FILE   a timer's handler reads, writes, opens and closes while the program does so
 * signals forks FILE     children of all kinds, some of which close and replace their descriptors
 * signals closes FILE    a thread closes descriptors while another one copies through them
 * signals streams FILE   descriptors that the C library closes itself
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "expect.h"

#define SIZE (1 << 20)
#define PART 65536

extern char **environ;

static const char *path;
static int fd;
static volatile sig_atomic_t ticks;
static char pattern[PART];
static _Atomic int shared_fd;
static _Atomic int stop;

static void same(int from, off_t offset, size_t length) {
    char buffer[PART];

    EXPECT(pread(from, buffer, length, offset) == (ssize_t)length);
    EXPECT(!memcmp(buffer, pattern, length));
}

static void prepare(void) {
    memset(pattern, 'x', PART);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT(fd >= 0);
    for (int i = 0; i < SIZE; i += PART)
        EXPECT(pwrite(fd, pattern, PART, i) == PART);
    same(fd, 0, PART);
}

static void tick(int number) {
    int saved = errno, other;

    (void)number;
    same(fd, PART, 4096);
    EXPECT(pwrite(fd, pattern, 512, 3 * PART) == 512);
    other = open(path, O_RDWR);
    EXPECT(other >= 0);
    same(other, PART, PART);
    EXPECT(close(other) == 0);
    other = dup(fd);
    EXPECT(close(other) == 0);
    if (ticks % 8 == 0) {
        /* Open the file that the interrupted code is copying again, under the same number. */
        other = open(path, O_RDWR);
        EXPECT(dup2(other, fd) == fd && close(other) == 0);
    }
    if (ticks % 16 == 0)
        EXPECT(ftruncate(fd, SIZE - PART) == 0 && ftruncate(fd, SIZE) == 0);
    ticks++;
    errno = saved;
}

static void signals(void) {
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, 500}, {0, 500}};

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    while (ticks < 400) {
        same(fd, 0, PART);
        EXPECT(pwrite(fd, pattern, PART, 4 * PART) == PART);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
}

static void reap(pid_t child) {
    int status;

    EXPECT(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void *copies(void *argument) {
    (void)argument;
    while (!stop)
        same(fd, 0, PART);
    return NULL;
}

static void forks(void) {
    char *nothing[] = {"true", NULL};
    pthread_t thread;
    pid_t child;

    pthread_create(&thread, NULL, copies, NULL);
    for (int i = 0; i < 60; i++) {
        child = fork();
        if (!child) {
            for (int j = 0; j < 10; j++)
                same(fd, PART, PART);
            EXPECT(pwrite(fd, "child", 5, 2 * PART + i * 5) == 5);
            EXPECT(close(fd) == 0);
            _exit(0);
        }
        reap(child);
        child = (pid_t)syscall(SYS_fork);
        if (!child) {
            same(fd, PART, 4096);
            _exit(0);
        }
        reap(child);
        child = vfork();
        if (!child) {
            dup2(2, fd);
            close(fd);
            close_range(3, ~0U, 0);
            _exit(0);
        }
        reap(child);
        EXPECT(posix_spawnp(&child, "true", NULL, NULL, nothing, environ) == 0);
        reap(child);
        same(fd, PART, 4096);
        EXPECT(pwrite(fd, pattern, 4096, 4 * PART) == 4096);
    }
    stop = 1;
    pthread_join(thread, NULL);
    for (int i = 0; i < 60; i++) {
        char word[5];

        EXPECT(pread(fd, word, 5, 2 * PART + i * 5) == 5 && !memcmp(word, "child", 5));
    }
    EXPECT(system("true") == 0);
}

static void *late(void *argument) {
    char buffer[PART];

    (void)argument;
    while (!stop) {
        ssize_t got = pread(shared_fd, buffer, PART, 0);

        EXPECT(got == PART || (got < 0 && errno == EBADF));
        EXPECT(got < 0 || !memcmp(buffer, pattern, PART));
    }
    return NULL;
}

static void closes(void) {
    pthread_t threads[2];

    shared_fd = dup(fd);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, late, NULL);
    for (int i = 0; i < 3000; i++) {
        close(shared_fd);
        shared_fd = open(path, i % 2 ? O_RDWR : O_RDONLY);
        EXPECT(shared_fd >= 0);
        same(shared_fd, 0, PART);
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static void streams(void) {
    char buffer[8] = "";
    int number;
    FILE *stream;

    /* Another descriptor keeps the lease alive, so that only the table shows the close. */
    for (int i = 0; i < 2; i++) {
        number = open(path, O_RDWR);
        EXPECT(number >= 0);
        same(number, 0, PART);
        same(number, PART, PART);
        stream = fdopen(number, "r+");
        EXPECT(stream && fputs("stream", stream) >= 0);
        if (i)
            EXPECT(freopen("/dev/null", "r", stream) && read(fileno(stream), buffer, 8) == 0);
        EXPECT(fclose(stream) == 0);
        EXPECT(pread(fd, buffer, 6, 0) == 6 && !memcmp(buffer, "stream", 6));
        EXPECT(pwrite(fd, pattern, 6, 0) == 6);
        EXPECT(memfd_create("other", 0) == number);
        EXPECT(pwrite(number, "memory", 6, 0) == 6);
        EXPECT(pread(number, buffer, 8, 0) == 6 && !memcmp(buffer, "memory", 6));
        EXPECT(pread(fd, buffer, 6, 0) == 6 && !memcmp(buffer, pattern, 6));
        close(number);
    }
}

int main(int count, char **arguments) {
    (void)count;
    path = arguments[2];
    prepare();
    if (!strcmp(arguments[1], "signals"))
        signals();
    else if (!strcmp(arguments[1], "forks"))
        forks();
    else if (!strcmp(arguments[1], "streams"))
        streams();
    else
        closes();
    same(fd, PART, PART);
    EXPECT(close(fd) == 0);
    printf("good\n");
    return 0;
}
