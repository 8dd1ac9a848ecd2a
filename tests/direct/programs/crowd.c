/* Threads read and write a file while others truncate it: every word is the file's own or 0, never another file's.
 *
 * crowd work FILE TAG SECONDS   threads; each block's words are TAG + block number; reads check that
 * crowd cut FILE SECONDS        truncates, punches and extends the file
 * crowd keep FILE TAG SECONDS   writes new files, which get freed blocks, and checks that nobody changes them
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define BLOCKS 512
#define WORDS (BLOCK / 8)
#define THREADS 3

static const char *path;
static uint64_t tag;
static double until;
static _Atomic unsigned long done;

static double now(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void make(uint64_t *words, uint64_t block) {
    for (int i = 0; i < WORDS; i++)
        words[i] = tag + block;
}

static void check(const uint64_t *words, ssize_t length, uint64_t block, int zeros) {
    for (ssize_t i = 0; i < length / 8; i++)
        if (words[i] != tag + block && !(zeros && !words[i])) {
            fprintf(stderr, "%s: block %lu word %zd is %lx, not %lx\n", path, block, i, words[i], tag + block);
            exit(1);
        }
}

static void *work(void *argument) {
    unsigned seed = (unsigned)(uintptr_t)argument;
    uint64_t words[WORDS];
    int fd = open(path, O_RDWR);

    if (fd < 0)
        fail(path);
    while (now() < until) {
        for (int i = 0; i < 200; i++) {
            uint64_t block = (uint64_t)rand_r(&seed) % BLOCKS;

            if (rand_r(&seed) % 3) {
                ssize_t got = pread(fd, words, BLOCK, (off_t)block * BLOCK);

                if (got < 0)
                    fail("pread");
                check(words, got, block, 1);
            } else {
                make(words, block);
                if (pwrite(fd, words, BLOCK, (off_t)block * BLOCK) != BLOCK)
                    fail("pwrite");
            }
            done++;
        }
        if (rand_r(&seed) % 50 == 0) {
            int other = dup(fd);

            close(fd);
            fd = other;
        }
        if (rand_r(&seed) % 50 == 0) {
            close(fd);
            fd = open(path, O_RDWR);
        }
    }
    close(fd);
    return NULL;
}

static void cut(void) {
    int fd = open(path, O_RDWR);
    unsigned seed = 7;

    if (fd < 0)
        fail(path);
    while (now() < until) {
        off_t block = rand_r(&seed) % BLOCKS;

        if (rand_r(&seed) % 2 ? ftruncate(fd, block * BLOCK)
                              : fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block * BLOCK, 40 * BLOCK))
            fail("cut");
        if (ftruncate(fd, BLOCKS * BLOCK))
            fail("ftruncate");
        usleep(1000);
        done++;
    }
}

static void keep(void) {
    uint64_t words[WORDS];

    while (now() < until) {
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

        for (uint64_t i = 0; i < BLOCKS; i++) {
            make(words, i);
            if (pwrite(fd, words, BLOCK, (off_t)i * BLOCK) != BLOCK)
                fail("pwrite");
        }
        for (int round = 0; round < 3; round++)
            for (uint64_t i = 0; i < BLOCKS; i++) {
                if (pread(fd, words, BLOCK, (off_t)i * BLOCK) != BLOCK)
                    fail("pread");
                check(words, BLOCK, i, 0);
            }
        close(fd);
        unlink(path);
        done++;
    }
}

int main(int count, char **arguments) {
    pthread_t threads[THREADS];

    path = arguments[2];
    until = now() + atof(arguments[count - 1]);
    if (!strcmp(arguments[1], "cut")) {
        cut();
    } else {
        tag = strtoul(arguments[3], NULL, 0);
        if (!strcmp(arguments[1], "keep")) {
            keep();
        } else {
            for (uintptr_t i = 0; i < THREADS; i++)
                pthread_create(&threads[i], NULL, work, (void *)(i + 1));
            for (int i = 0; i < THREADS; i++)
                pthread_join(threads[i], NULL);
        }
    }
    printf("%lu\n", done);
    return 0;
}
