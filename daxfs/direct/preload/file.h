/* Open files: the objects, their references, and the table of descriptors.
 *
 * Every call of the program reads the table without a lock. The memory of an object is never freed: a thread that comes
 * late finds an object of the same type, and notices by reading the table again. The fields after `gate` in struct
 * pl_file change only while the gate is shut (pins.h), except the atomic ones.
 */
#ifndef DAXFS_FILE_H
#define DAXFS_FILE_H

#include "extents.h"
#include "pool.h"

#pragma GCC visibility push(hidden)

#define PL_STRIPES 4

enum { PL_UNKNOWN, PL_SPARSE, PL_ALLOCATED };

/* Appends that the daemon has armed (armed.c), in order. */
struct pl_armed {
    uint64_t step;     /* bytes of each */
    uint64_t size;     /* of the file before the next one */
    uint64_t changes;  /* entry->changes as long as nobody has taken over */
    uint64_t expires;  /* when no more are used (pl_now) */
    uint32_t next;     /* the next one */
    uint32_t count;    /* how many can be used */
    uint32_t given;    /* how many there were */
    uint32_t wanted;   /* how many were asked for */
    uint32_t refused;  /* the last answers that had none */
    uint32_t patience; /* appends by requests before more are asked for */
    uint32_t penalty;  /* the patience after armed appends that were not used */
    struct daxfs_commit_word words[DAXFS_COMMIT_WORDS];
};

/* The state of extending writes to a file. All but `unsynced` belongs to the thread that has set `busy`. */
struct pl_appends {
    _Atomic int busy;
    _Atomic bool unsynced; /* bytes were appended since the last DAXFS_DURABLE */
    uint64_t appended;     /* bytes */
    uint64_t changes;      /* if `durable`: entry->changes after the last append */
    uint32_t patience;     /* system calls to be made before memory is requested again */
    uint32_t penalty;      /* the patience after a request that did not pay */
    uint32_t used;         /* appends since memory was requested */
    uint8_t seen;          /* appends by system calls, counted up to IN_A_ROW */
    uint8_t pairs;         /* the last appends that were each followed by an fsync */
    bool waiting;          /* no fsync has followed the last append yet */
    bool data_only;        /* the fsyncs are fdatasync(2) */
    bool durable;          /* all is durable while entry->changes is the same and nothing is stored */
    bool durable_data;     /* `durable` in the sense of fdatasync(2) */
    bool unarmed;          /* this daemon arms no appends */
    struct pl_armed armed;
};

/* A counter of threads at work in the memory of a file; several of them, so that threads rarely share a cache line. */
struct pl_stripe {
    _Alignas(64) _Atomic int pins;
};

/* An open file description of the kernel, shared by duplicated descriptors. */
struct pl_file {
    struct pl_stripe stripes[PL_STRIPES];
    _Alignas(64) _Atomic int gate;          /* 1: a thread changes the fields below, and no thread may pin */
    _Atomic int references;                 /* descriptors, and mappings (pl_hold); 0: free */
    _Atomic int descriptors;
    struct pl_mount *mount;
    const struct daxfs_slot *entry;         /* NULL: no lease yet, or nothing will change (fixed) */
    uint64_t epoch;                         /* the extents hold while entry->epoch is the same */
    uint64_t size;                          /* of the file if it is fixed */
    struct pl_extents extents;
    bool leased;                            /* there is a lease: the extents are valid */
    bool fixed;                             /* there is a lease, and nothing will change (read-only mount) */
    bool stores;                            /* the lease is for writing */
    bool readable, writable;                /* as opened */
    bool shut_out;                          /* the gate was shut by rights.c */
    _Atomic bool slow_writes;               /* O_SYNC, O_DSYNC: writes take the system call */
    _Atomic bool at_end;                    /* O_APPEND: only pl_append does them */
    _Atomic bool unstorable;                /* the daemon grants no lease for writing */
    _Atomic bool stored;                    /* memory was stored to since the last DAXFS_IOC_STORED */
    _Atomic uint64_t reported;              /* when DAXFS_IOC_STORED was sent last, in ms (stores.c) */
    _Atomic uint64_t durable;               /* the state (durable.c) of which all content is durable; 0: none */
    _Atomic bool shared;                    /* a child has mappings of this lease: never renew */
    _Atomic bool announced;                 /* the daemon keeps others from what is memory, but mapped by the kernel */
    _Atomic bool refused;                   /* the daemon grants no lease */
    _Atomic uint8_t allocated;              /* PL_UNKNOWN, ...: whether filling holes costs space */
    _Atomic uint8_t extending;              /* next writes that go to the kernel: they probably extend the file */
    _Atomic uint64_t hole_end;              /* where the last write to a hole ended */
    _Atomic int mappings;                   /* live mappings in this process: don't renew */
    _Atomic uint32_t patience;              /* system calls to be made before the next request */
    _Atomic uint32_t penalty;               /* the patience after a request that did not pay; doubles each time */
    _Atomic uint64_t used;                  /* accesses since the last answer (roughly) */
    _Atomic uint64_t dirty_low, dirty_high; /* DAXFS_MSYNC: pool range stored to */
    _Atomic int spare;                      /* a descriptor to close when the last pin goes, or -1 */
    _Atomic int kept;                       /* a descriptor to map parts of mappings again through the kernel, or -1 */
    uint64_t inode;                         /* st_ino of the file */
    _Atomic uint64_t fired;                 /* size of the file by armed appends (armed.c), or 0 */
    uint64_t fired_changes;                 /* `fired` is the size as long as entry->changes is this */
    uint64_t granted;                       /* the end of the memory granted for extending writes, or 0 */
    struct pl_appends appends;
    struct pl_extent few[PL_FEW];           /* the list of extents until it needs more room */
};

#define PL_DESCRIPTORS 65536 /* higher descriptors are left to the kernel */
#define PL_FILES 1024

extern struct pl_file *_Atomic pl_table[PL_DESCRIPTORS];
extern struct pl_file pl_files[PL_FILES]; /* references != 0: in use */
extern _Atomic int pl_highest;            /* the highest descriptor that was ever in the table, -1: none */

/* Return the open file of a descriptor, NULL for a descriptor of another file system. Other files cost only this. */
static inline struct pl_file *pl_file_of(int fd) {
    if (unlikely((unsigned)fd >= PL_DESCRIPTORS))
        return NULL;
    return atomic_load_explicit(&pl_table[fd], memory_order_acquire);
}

/* Whether the extents still hold. If the caller is pinned and has copied before, true proves that the copy is valid. */
static inline bool pl_holds(const struct pl_file *file) {
    const struct daxfs_slot *entry = __atomic_load_n(&file->entry, __ATOMIC_RELAXED);

    if (unlikely(file->fixed))
        return !atomic_load(&file->mount->missing);
    return entry && __atomic_load_n(&entry->epoch, __ATOMIC_ACQUIRE) == file->epoch;
}

/* Return the size of a file that has a lease. The caller is pinned.
 *
 * The daemon learns of armed appends when it takes over: then it stores the size, and after that `changes`. */
static inline uint64_t pl_size(const struct pl_file *file) {
    uint64_t fired = atomic_load_explicit(&file->fired, memory_order_acquire), changes, size;

    if (file->fixed)
        return file->size;
    changes = __atomic_load_n(&file->entry->changes, __ATOMIC_ACQUIRE);
    size = __atomic_load_n(&file->entry->size, __ATOMIC_ACQUIRE);
    return unlikely(fired) && changes == file->fired_changes && fired > size ? fired : size;
}

/* Set up an object with one reference and one descriptor, for a file opened with these flags. NULL: all are in use. */
struct pl_file *pl_new_file(struct pl_mount *mount, uint64_t inode, int flags);
/* Record the file status flags of the description, from open(2) or F_GETFL. */
void pl_set_status_flags(struct pl_file *file, int flags);
/* Enter the file into the table under this descriptor. */
void pl_enter(int fd, struct pl_file *file);
/* Take a reference for longer than a call (a mapping outlives close). NULL: the descriptor is not in the table. */
struct pl_file *pl_hold(int fd);
/* Take a reference to an object of pl_files. False: the object is free. */
bool pl_hold_object(struct pl_file *file);
/* Drop a reference. The last one leaves the mount. */
void pl_drop(struct pl_file *file);
/* Whether the descriptor, which need not be in the table, is this file. */
bool pl_is_open_as(int fd, const struct pl_file *file);
/* Find device and inode of a regular file as the kernel knows them, without a request to the daemon. False: none. */
bool pl_identify(int fd, dev_t *device, uint64_t *inode);
/* Forget the cached extents. */
void pl_forget_extents(struct pl_file *file);
/* Forget the state of extending writes. */
void pl_forget_appends(struct pl_file *file);

#pragma GCC visibility pop

#endif
