/* A program that opens a file, reads and writes it, then forbids itself all but a few system calls, and goes on.
 *
 *   filter HOW FILE     HOW: prctl, syscall (both a filter of the calls that it makes), strict (read, write, exit)
 *
 * A forbidden call ends the program by SIGSYS, or SIGKILL (strict). Otherwise it prints "good".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PART 4096
#define PARTS 16

static const int allowed[] = {
    SYS_read,  SYS_write,      SYS_pread64,      SYS_pwrite64,        SYS_lseek,       SYS_close, SYS_fsync,
    SYS_exit,  SYS_exit_group, SYS_rt_sigreturn, SYS_fdatasync,       SYS_ftruncate,   SYS_munmap, SYS_msync,
    SYS_clone, SYS_wait4,      SYS_dup,          SYS_set_robust_list,
};
enum { CALLS = sizeof(allowed) / sizeof(allowed[0]) };

static char *content, *got, *mapped;

static void fail(const char *what) {
    dprintf(2, "%s failed\n", what);
    syscall(SYS_exit, 1);
}

#define MUST(what)                                                                                                     \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            fail(#what);                                                                                               \
    } while (0)

static void forbid(const char *how) {
    struct sock_filter filter[2 * CALLS + 2];
    struct sock_fprog program = {2 * CALLS + 2, filter};

    filter[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < CALLS; i++) {
        filter[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1);
        filter[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    filter[2 * CALLS + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (!strcmp(how, "prctl"))
        MUST(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    else if (!strcmp(how, "syscall"))
        MUST(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    else
        MUST(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
}

static void strictly(int fd) {
    MUST(read(fd, got, PART) == PART && !memcmp(got, content, PART));
    MUST(write(fd, content, 100) == 100);
    MUST(read(fd, got, 100) == 100 && !memcmp(got, content + PART + 100, 100));
    MUST(write(1, "good\n", 5) == 5);
    syscall(SYS_exit, 0);
}

static void child(int fd) {
    int status = -1, pid = fork();

    if (!pid) {
        MUST(pread(fd, got, PART, 0) == PART && !memcmp(got, content, PART));
        MUST(pwrite(fd, content, 10, 20 * PART) == 10);
        MUST(!close(fd));
        _exit(0);
    }
    MUST(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    MUST(pread(fd, got, 10, 20 * PART) == 10 && !memcmp(got, content, 10));
}

int main(int count, char **given) {
    int fd, other, copy;

    if (count != 3)
        return 2;
    content = malloc(PARTS * PART);
    got = malloc(PARTS * PART);
    for (int i = 0; i < PARTS * PART; i++)
        content[i] = (char)(i * 7 + i / PART);
    fd = open(given[2], O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0 && write(fd, content, PARTS * PART) == PARTS * PART);
    other = open(given[2], O_RDONLY);
    for (int i = 0; i < 8; i++) {
        MUST(pread(fd, got, PARTS * PART, 0) == PARTS * PART && !memcmp(got, content, PARTS * PART));
        MUST(pwrite(fd, content, PARTS * PART, 0) == PARTS * PART);
        MUST(pread(other, got, PART, 0) == PART);
    }
    mapped = mmap(NULL, PARTS * PART, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    MUST(mapped != MAP_FAILED && !memcmp(mapped, content, PARTS * PART));
    MUST(lseek(fd, 0, SEEK_SET) == 0);
    forbid(given[1]);
    if (!strcmp(given[1], "strict"))
        strictly(fd);
    for (int i = 0; i < PARTS; i++) {
        MUST(pread(fd, got, PART, i * PART) == PART && !memcmp(got, content + i * PART, PART));
        MUST(pwrite(fd, content + i * PART, PART, i * PART) == PART);
        MUST(read(fd, got, PART) == PART && !memcmp(got, content + i * PART, PART));
        MUST(pread(other, got, 100, i * PART) == 100 && !memcmp(got, content + i * PART, 100));
    }
    for (int i = 0; i < 20; i++) {
        MUST(write(fd, content, 250) == 250);
        MUST(!fdatasync(fd));
    }
    for (int i = 0; i < 20; i++)
        MUST(write(fd, content, PART) == PART);
    MUST(!fsync(fd) && lseek(fd, 0, SEEK_CUR) == PARTS * PART + 20 * 250 + 20 * PART);
    child(fd);
    memcpy(mapped, "mapped", 6);
    MUST(pread(fd, got, 6, 0) == 6 && !memcmp(got, "mapped", 6));
    MUST(!msync(mapped, PARTS * PART, MS_SYNC));
    MUST(!fsync(fd));
    MUST(!ftruncate(fd, 3 * PART));
    MUST(pread(fd, got, PARTS * PART, 0) == 3 * PART && !memcmp(got + 6, content + 6, 3 * PART - 6));
    MUST(!munmap(mapped, PARTS * PART));
    copy = dup(fd);
    MUST(copy >= 0 && pread(copy, got, PART, PART) == PART && !memcmp(got, content + PART, PART));
    MUST(!close(copy) && !close(fd) && !close(other));
    MUST(write(1, "good\n", 5) == 5);
    return 0;
}
