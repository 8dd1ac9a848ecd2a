/* What the parts of the preload library share: mounts, files, the table of descriptors, the calls of the C library.
 *
 * Nothing declared here takes memory from malloc, waits for another thread without a limit, or changes errno unless
 * it says so: all of it may be called from a signal handler. When anything can't be done, the answer says so and the
 * caller does the plain system call, which is always right.
 *
 * pool.c   mounts and their pools, copies, flushing
 * trust.c  which mounts and pools are to be believed
 * answers.c  what the daemon answers, looked at first
 * lease.c  open files: what is known of their memory, pins
 * table.c  which descriptor is which open file
 * io.c     open, close, read, write and their kin
 * append.c writes at the end of the file
 * copy.c   copies and the write-back of cache lines
 * limits.c the limit of file sizes
 * sync.c   sync(2) and syncfs(2)
 * filter.c system calls that a program has forbidden itself
 * rights.c user and group ids, capabilities
 * calls.c  what programs ask for by syscall(2)
 * start.c  the constructor
 */
#ifndef DAXFS_PRELOAD_H
#define DAXFS_PRELOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../daxfs.h"

#define PUBLIC __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define PL_THREAD __thread __attribute__((tls_model("initial-exec")))

#pragma GCC visibility push(hidden)

/* ---- system calls of the library's own: raw, since syscall(2) is one of the functions that it takes the place of */

#if defined(__x86_64__)
#define PL_RAW_CALLS
static inline long pl_kernel(long number, long a, long b, long c, long d, long e, long f) {
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    register long sixth __asm__("r9") = f;
    long answer;

    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return answer;
}
#elif defined(__aarch64__)
#define PL_RAW_CALLS
static inline long pl_kernel(long number, long a, long b, long c, long d, long e, long f) {
    register long which __asm__("x8") = number;
    register long answer __asm__("x0") = a;
    register long second __asm__("x1") = b, third __asm__("x2") = c, fourth __asm__("x3") = d;
    register long fifth __asm__("x4") = e, sixth __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(answer)
                     : "r"(which), "r"(second), "r"(third), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "memory");
    return answer;
}
#endif

#ifdef PL_RAW_CALLS
static inline long pl_checked(long answer) {
    if (likely((unsigned long)answer < -4095UL))
        return answer;
    errno = (int)-answer;
    return -1;
}

#define PL_SIX(number, a, b, c, d, e, f, ...)                                                                          \
    pl_checked(pl_kernel((long)(number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)))
#define pl_call(...) PL_SIX(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#else
#define pl_call syscall
#endif

/* ---- pool.c */

/* A FUSE mount that files were opened on. Its pool is mapped from the first need to the last close: the daemon takes
 * whoever holds the lock that the mapping keeps for a user of memory, even after it was unmounted. */
struct pl_mount {
    dev_t device;            /* st_dev of its files */
    _Atomic int state;       /* PL_FREE, ... */
    _Atomic int users;       /* file objects */
    _Atomic bool stays;      /* mapped even while no file is open: files come and go */
    _Atomic bool doubtful;   /* no file was open: another mount may have this st_dev now */
    _Atomic uint64_t id;     /* pl_mount_id of what was trusted last */
    unsigned attached;       /* times that it was mapped */
    bool writable;           /* the pool could be opened for writing; true until then */
    bool denied;             /* PL_NOT_DAXFS: not trusted, or not to be opened, with the rights of then */
    unsigned mappings;       /* of files, by the program; changed below the book's lock */
    char *anchor;            /* a page without rights: keeps the lock while only mappings of files are left; or NULL */
    char *base;              /* PL_READY: the pool, all of it, shared; there is no descriptor to be lost */
    uint8_t token[DAXFS_TOKEN]; /* PL_READY: what lease requests quote */
    struct daxfs_pool pool;  /* PL_READY: pool.persistence, pool.size, pool.block_size */
};

enum { PL_FREE, PL_NEW, PL_NOT_DAXFS, PL_STALE, PL_KNOWN, PL_BUSY, PL_READY };

/* The mount that an open file is of, with one user more; NULL if it is certainly not one of daxfs. */
struct pl_mount *pl_mount_of(int fd, dev_t device);
/* Whether an answer is about the pool that is mapped, and can be used. */
bool pl_same_pool(struct pl_mount *mount, const struct daxfs_lease *lease);
/* Its pool, mapped now if it wasn't. False: not possible, or not now. The caller has a file of it. */
bool pl_attach(int fd, struct pl_mount *mount);
/* One user less; the last one takes the mapping away. */
void pl_leave(struct pl_mount *mount);
/* After a change of user, group or capabilities: a pool that could not be mapped so any more is unmapped. */
void pl_check_rights(void);
/* A mapping of a file more or less (below the book's lock). */
void pl_count_mapping(struct pl_mount *mount, int change);
/* Pools stay mapped from now on. */
void pl_keep_pools(void);
/* Map a part of the pool a second time, at `address` (over what is there). MAP_FAILED with errno. */
void *pl_map(const struct pl_mount *mount, uint64_t pool_offset, size_t length, int protection, void *address);
/* Copies out of and into the pool. DAXFS_LINES: what was stored is durable; DAXFS_MSYNC: it needs pl_flush. */
void pl_load(void *to, const char *from, size_t length);
void pl_store(const struct pl_mount *mount, char *to, const void *from, size_t length);
/* Whether this machine's cache lines can be written back; write them back, and fence. */
bool pl_lines_known(void);
void pl_find_lines(void);
void pl_write_back(const char *address, size_t length);
/* Write back what was stored by other means (a mapping): lines (and fence), msync, or nothing. 0 or an errno. */
int pl_flush(const struct pl_mount *mount, const char *address, size_t length);

/* ---- trust.c */

/* Whether the mount with this st_dev is one of daxfs, by root or by this process's own user. */
bool pl_trusted(dev_t device);
/* A number that only this mount has, and no later one; 0 where the kernel has none (before 6.8). */
uint64_t pl_mount_id(int fd);
/* Open it with O_RDWR or O_RDONLY; -1: it isn't what was named, or can't be opened. */
int pl_open_pool(const struct daxfs_pool *pool, int flags);
/* Whether the file system that was named lies in what was mapped. */
bool pl_has_superblock(const struct daxfs_pool *pool, const char *base);

/* ---- answers.c */

/* Whether an answer describes a pool at all. */
bool pl_sound_pool(const struct daxfs_pool *pool);
/* Whether an answer fits the question, and its extents each other. */
bool pl_sound_lease(const struct daxfs_lease *lease, uint64_t offset, uint64_t length, uint32_t flags);

/* ---- lease.c */

/* A part of a file, as pl_extents keeps it: sorted by start, no overlaps, perhaps gaps (unknown parts). */
struct pl_extent {
    uint64_t start, end;  /* in the file, bytes */
    uint64_t pool;        /* DAXFS_MEMORY: where `start` lies in the pool */
    uint32_t kind;        /* DAXFS_HOLE, DAXFS_MEMORY, DAXFS_KERNEL */
    uint32_t unused;
};

#define PL_STRIPES 4

enum { PL_UNKNOWN, PL_SPARSE, PL_ALLOCATED };

/* What is known of writes at the end of a file. All but `untold` belongs to the thread that has set `busy`. */
struct pl_appends {
    _Atomic int busy;
    _Atomic bool untold;  /* something was appended that no DAXFS_DURABLE came after */
    uint64_t appended;    /* bytes */
    uint64_t changes;     /* settled: what the slot said then */
    uint32_t patience;    /* system calls to be done before memory is asked for again */
    uint32_t penalty;
    uint32_t used;        /* appends since memory was asked for */
    uint8_t seen;         /* appends in a row */
    uint8_t pairs;        /* of them, the last ones that were synchronised at once */
    bool waiting;         /* the last one was not, so far */
    bool data_only;       /* they are by fdatasync(2) */
    bool settled;         /* all is durable as long as slot->changes is the same and nothing is stored */
    bool settled_data;    /* as after fdatasync(2) */
};

/* Threads at work in the memory of a file: several counters so that threads don't share a cache line. */
struct pl_stripe {
    _Alignas(64) _Atomic int pins;
};

/* An open file description of the kernel's, shared by its duplicates. Never given back to the system: a thread that
 * comes late finds an object of the same type, and notices (pl_pin checks the table again). */
struct pl_file {
    struct pl_stripe stripes[PL_STRIPES];
    _Alignas(64) _Atomic int gate;  /* 1: somebody changes what stands below, nobody may pin */
    _Atomic int references;         /* descriptors, and mappings (pl_hold); 0: free */
    _Atomic int descriptors;
    struct pl_mount *mount;
    const struct daxfs_slot *slot;  /* NULL: no lease yet, or nothing will change (fixed) */
    uint64_t epoch;                 /* the extents hold while slot->epoch is the same */
    uint64_t size;                  /* of the file if it is fixed */
    struct pl_extent *extents;
    uint32_t count, room;           /* of extents */
    bool leased;                    /* the extents mean something */
    bool fixed;                     /* leased and nothing will change */
    bool stores;                    /* the lease is for writing */
    bool readable, writable;        /* as opened */
    bool shut_out;                  /* the gate was shut by pl_shut_out */
    _Atomic bool slow_writes;       /* O_SYNC, O_DSYNC: writes take the system call */
    _Atomic bool at_end;            /* O_APPEND: only pl_append does them */
    _Atomic bool unstorable;        /* no lease for writing to be had */
    _Atomic bool stored;            /* memory was stored to since the last DAXFS_IOC_STORED */
    _Atomic bool shared;            /* a child has mappings of this lease: never renew */
    _Atomic bool refused;           /* no lease to be had */
    _Atomic uint8_t allocated;      /* PL_UNKNOWN, PL_SPARSE, PL_ALLOCATED: whether filling holes costs space */
    _Atomic uint8_t growing;        /* so many writes go to the kernel: they probably make the file longer */
    _Atomic uint64_t hole_end;      /* where the last write to a hole ended */
    _Atomic int mappings;           /* live mappings in this process: don't renew */
    _Atomic uint32_t patience;      /* system calls to be done before the next request */
    _Atomic uint32_t penalty;       /* and how many next time: grows while leases don't last */
    _Atomic uint64_t used;          /* accesses since the last answer (roughly) */
    _Atomic uint64_t dirty_low, dirty_high; /* DAXFS_MSYNC: pool range stored to */
    _Atomic int spare;              /* a descriptor to close when the last pin goes; -1 */
    uint64_t inode;                 /* st_ino of the file */
    uint64_t granted;               /* 0, or where the memory ends that was given to make the file longer */
    struct pl_appends appends;
    struct pl_extent few[8];        /* room for extents before any is mapped */
};

/* Enter the memory of the file: from here to pl_unpin nothing of it is given back. False: do the system call. */
bool pl_pin(int fd, struct pl_file *file);
void pl_unpin(struct pl_file *file);

/* The file's own memory (call it pinned). The epoch still holds? True also proves that all copied so far was good. */
static inline bool pl_holds(const struct pl_file *file);
static inline uint64_t pl_size(const struct pl_file *file);
/* The known part that has `offset`, NULL if it isn't known. */
const struct pl_extent *pl_find(const struct pl_file *file, uint64_t offset);

/* Learn of [offset, offset + length) (not pinned); flags: DAXFS_WRITE, DAXFS_FILL. False: not now, do the system
 * call. */
bool pl_learn(int fd, struct pl_file *file, uint64_t offset, uint64_t length, uint32_t flags);

/* Learn of [offset, offset + length) behind the end of the file, to make it longer: `granted`. 0 or an errno. */
int pl_grow(int fd, struct pl_file *file, uint64_t offset, uint64_t length);

/* DAXFS_IOC_LEASE with this process's holder filled in; no DAXFS_RENEW here, that is pl_learn's. 0 or an errno; EPROTO:
 * the answer makes no sense, so no more is asked about this file.
 * What map.c asks with (DAXFS_MAP). The answer holds while mappings > 0: call pl_mapping(file, 1) before asking,
 * pl_mapping(file, -1) after munmap or if it failed. */
int pl_ask(int fd, struct daxfs_lease *lease);
/* False: a renewal is under way, so no new mapping now. */
bool pl_mapping(struct pl_file *file, int change);
/* Memory of the file was stored to (a mapping, pl_store): fsync and close tell the daemon. */
void pl_stored(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* The same of what is not the file's yet. */
void pl_dirtied(struct pl_file *file, uint64_t pool_offset, uint64_t length);
/* Make durable all that was stored directly: flush, then DAXFS_IOC_STORED. 0, or -1 with errno. */
int pl_sync(int fd, bool data_only, bool *done);
/* Tell the daemon that something was stored, if so: before the last close. */
void pl_tell(int fd, struct pl_file *file);

static inline bool pl_holds(const struct pl_file *file) {
    const struct daxfs_slot *slot = __atomic_load_n(&file->slot, __ATOMIC_RELAXED);

    return file->fixed || (slot && __atomic_load_n(&slot->epoch, __ATOMIC_ACQUIRE) == file->epoch);
}

static inline uint64_t pl_size(const struct pl_file *file) {
    return file->fixed ? file->size : __atomic_load_n(&file->slot->size, __ATOMIC_ACQUIRE);
}

/* For table.c: what must be done with a file when its last descriptor goes, or its last pin after that. */
void pl_last_close(int fd, struct pl_file *file);
void pl_let_go(struct pl_file *file);
void pl_free_extents(struct pl_file *file);
/* For start.c: a new holder, forks, the end of the program. */
void pl_new_holder(void);
uint64_t pl_holder(void);
/* False: forked without the C library's knowledge; noticed now. */
bool pl_own_process(void);
void pl_before_fork(void);
void pl_after_fork_parent(void);
void pl_after_fork_child(void);
void pl_tell_all(void);
pid_t pl_process(void);
/* What this process has stored in files of the mount with this st_dev (0: of all), by mappings too, is flushed where it
 * must be, and told. 0 or an errno: a flush failed. */
int pl_settle_mount(dev_t device);
/* The same of all, before system calls of the library's own are forbidden. */
void pl_settle_all(void);
/* Shut the gates of a mount's files, wait until nobody is inside, give the leases back. False: somebody stays inside. */
bool pl_shut_out(struct pl_mount *mount);
/* Open the gates; whether the files go to memory again is up to what is asked then, or for_good: they don't. */
void pl_let_in(struct pl_mount *mount, bool for_good);

/* ---- append.c, io.c */

/* Why memory didn't serve; PL_NOT_YET: it may next time. */
enum { PL_NO = -1, PL_UNKNOWN_PLACE = -2, PL_IN_HOLE = -3, PL_BEYOND = -4, PL_NOT_YET = -5 };

/* A write at `base` that reaches past EOF. Its length, or a reason to do the system call. */
ssize_t pl_append(int fd, struct pl_file *file, const struct iovec *vector, size_t total, uint64_t base);
/* For fsync and fdatasync: what was appended is durable already, and nothing has changed since. */
bool pl_append_settled(int fd, struct pl_file *file, bool data_only);
void pl_append_start(struct pl_file *file);
/* Copy to the memory at `offset` of the file (pinned), where there is enough; 0 or a reason. Nobody is told. */
ssize_t pl_put(struct pl_file *file, const struct iovec *vector, size_t total, uint64_t offset);

/* ---- table.c */

#define PL_DESCRIPTORS 65536 /* higher numbers take the system calls */

extern struct pl_file *_Atomic pl_table[PL_DESCRIPTORS];

/* The open file of a descriptor, NULL if it is not ours: all that a foreign file costs. */
static inline struct pl_file *pl_file_of(int fd) {
    if (unlikely((unsigned)fd >= PL_DESCRIPTORS))
        return NULL;
    return atomic_load_explicit(&pl_table[fd], memory_order_acquire);
}

/* A descriptor that open(2) just gave with these flags: ours from now on if it is a file of daxfs. */
void pl_adopt(int fd, int flags);
/* `copy` is a duplicate of `fd`, just made. */
void pl_duplicated(int fd, int copy);
/* Before the kernel closes `fd` (or dup2 overwrites it): nobody uses it directly any more. Also for fclose(3). */
void pl_forget(int fd);
void pl_forget_from(unsigned first, unsigned last);
/* `fd` was closed unseen. */
void pl_gone(int fd);
/* F_SETFL was done. */
void pl_set_flags(int fd);
/* Of a regular file, without asking the daemon; false: none. */
bool pl_identify(int fd, dev_t *device, uint64_t *inode);
extern _Atomic int pl_highest; /* the highest descriptor that was ever ours, -1 */
/* A reference for longer than a call (a mapping that outlives close). NULL: not ours. */
struct pl_file *pl_hold(int fd);
/* The same of an object of pl_files; false: it is free. */
bool pl_hold_object(struct pl_file *file);
void pl_drop(struct pl_file *file);
/* All files there may be; references != 0: in use. */
#define PL_FILES 1024
extern struct pl_file pl_files[PL_FILES];
/* A child of vfork(2) runs in its parent's memory, which it must not change; this thread's flag is the child's too. */
extern PL_THREAD bool pl_vforked;

static inline bool pl_foreign(void) {
    return unlikely(pl_vforked);
}

/* ---- book.c, map.c: mapped files */

/* For fsync: what was stored through mappings of this file counts as stored (pl_stored). True: there are some through
 * the kernel too, so the plain system call is needed as well. */
bool pl_map_settle(struct pl_file *file);
/* Files were cut or punched, perhaps by way of `fd` (or -1): mappings follow. */
void pl_map_check(int fd);
/* The book's lock, with all signals blocked (without a filter): a handler that maps must not wait for the thread that it
 * interrupted. */
void pl_book_lock(sigset_t *saved);
void pl_book_unlock(const sigset_t *saved);
/* The mappings of a mount's files follow no changes any more (below the lock). */
void pl_book_freeze(const struct pl_mount *mount);
void pl_book_before_fork(void);
void pl_book_after_fork_parent(void);
void pl_book_after_fork_child(void);

/* ---- limits.c */

/* RLIMIT_FSIZE: what a write has past it is the kernel's. */
extern _Atomic uint64_t pl_file_limit;
void pl_learn_limit(void);

static inline bool pl_within_limit(uint64_t offset, size_t total) {
    return likely(offset + total <= atomic_load_explicit(&pl_file_limit, memory_order_relaxed));
}

/* ---- sync.c */

/* As sync(2) and syncfs(2), and the daemons of trusted mounts are asked. */
void pl_sync_mounts(void);
int pl_syncfs(int fd);

/* ---- filter.c */

/* The program has a seccomp filter: the library makes no system call that is not the program's own. */
extern _Atomic bool pl_filtered;
int pl_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
/* Before and after a filter is set; whether it was. */
void pl_filter_comes(void);
void pl_filter_came(bool good);

/* ---- stats.c */

/* Calls on files of mounts whose pool is mapped, since the start or the fork. */
struct pl_counts {
    _Atomic uint64_t reads, writes;     /* from and to memory */
    _Atomic uint64_t passed;            /* reads and writes by system calls */
    _Atomic uint64_t leases;            /* questions to the daemon */
    _Atomic uint64_t maps, plain_maps;  /* of the pool; left to the kernel */
};

extern struct pl_counts pl_counts;
extern bool pl_counting;
void pl_count_start(void);
void pl_count_again(void);
void pl_count_say(void);

#define PL_COUNT(what)                                                                                                 \
    do {                                                                                                               \
        if (unlikely(pl_counting))                                                                                     \
            atomic_fetch_add_explicit(&pl_counts.what, 1, memory_order_relaxed);                                       \
    } while (0)

/* ---- start.c: the C library's own functions, found at the start or at first use */

struct pl_real {
    int (*open)(const char *, int, ...);
    int (*openat)(int, const char *, int, ...);
    int (*close)(int);
    int (*close_range)(unsigned, unsigned, int);
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*dup3)(int, int, int);
    int (*fcntl)(int, int, ...);
    ssize_t (*read)(int, void *, size_t);
    ssize_t (*write)(int, const void *, size_t);
    ssize_t (*pread)(int, void *, size_t, off_t);
    ssize_t (*pwrite)(int, const void *, size_t, off_t);
    ssize_t (*readv)(int, const struct iovec *, int);
    ssize_t (*writev)(int, const struct iovec *, int);
    ssize_t (*preadv)(int, const struct iovec *, int, off_t);
    ssize_t (*pwritev)(int, const struct iovec *, int, off_t);
    ssize_t (*preadv2)(int, const struct iovec *, int, off_t, int);
    ssize_t (*pwritev2)(int, const struct iovec *, int, off_t, int);
    int (*fsync)(int);
    int (*fdatasync)(int);
    int (*sync_file_range)(int, off_t, off_t, unsigned);
    ssize_t (*sendfile)(int, int, off_t *, size_t);
    ssize_t (*splice)(int, off_t *, int, off_t *, size_t, unsigned);
    void (*closefrom)(int);
};

extern struct pl_real pl_real;
extern _Atomic bool pl_started;
extern bool pl_disabled; /* by the environment */

/* Find the functions, read the environment (DAXFS_DIRECT=0: do nothing), prepare for fork. Any number of times. */
void pl_start(void);
/* The C library's function of a name, looked for at its first call: `found` keeps it. For what few programs call. */
void *pl_next(const char *name, void *_Atomic *found);

/* REAL(read)(fd, ...): the C library's function. */
#define REAL(name) ((likely(pl_started) ? (void)0 : pl_start()), pl_real.name)

#pragma GCC visibility pop

#endif
