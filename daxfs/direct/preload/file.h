/* Open files: the objects, their references, and the table that says which descriptor is which file.
 *
 * The table is read without a lock, by every call of the program. Objects are never given back to the system: a thread
 * that comes late finds an object of the same type, and notices by another look at the table. What stands below `gate`
 * in struct pl_file changes only while the gate is shut (pins.h).
 */
#ifndef DAXFS_FILE_H
#define DAXFS_FILE_H

#include "extents.h"
#include "pool.h"

#pragma GCC visibility push(hidden)

#define PL_STRIPES 4

enum { PL_UNKNOWN, PL_SPARSE, PL_ALLOCATED };

/* What is known of writes at the end of a file. All but `unsynced` belongs to the thread that has set `busy`. */
struct pl_appends {
    _Atomic int busy;
    _Atomic bool unsynced; /* something was appended that no DAXFS_DURABLE came after */
    uint64_t appended;     /* bytes */
    uint64_t changes;      /* durable: what the status entry said then */
    uint32_t patience;     /* system calls to be made before memory is requested again */
    uint32_t penalty;
    uint32_t used;         /* appends since memory was requested */
    uint8_t seen;          /* appends in a row */
    uint8_t pairs;         /* the last ones of them that were each synchronised at once */
    bool waiting;          /* the last append was not synchronised yet */
    bool data_only;        /* they are synchronised by fdatasync(2) */
    bool durable;          /* all is durable while entry->changes is the same and nothing is stored */
    bool durable_data;     /* as after fdatasync(2) */
};

/* Threads at work in the memory of a file: several counters, so that threads don't share a cache line. */
struct pl_stripe {
    _Alignas(64) _Atomic int pins;
};

/* An open file description of the kernel's, shared by its duplicates. */
struct pl_file {
    struct pl_stripe stripes[PL_STRIPES];
    _Alignas(64) _Atomic int gate;          /* 1: somebody changes what stands below, nobody may pin */
    _Atomic int references;                 /* descriptors, and mappings (pl_hold); 0: free */
    _Atomic int descriptors;
    struct pl_mount *mount;
    const struct daxfs_slot *entry;         /* NULL: no lease yet, or nothing will change (fixed) */
    uint64_t epoch;                         /* the extents hold while entry->epoch is the same */
    uint64_t size;                          /* of the file if it is fixed */
    struct pl_extents extents;
    bool leased;                            /* the extents mean something */
    bool fixed;                             /* leased and nothing will change */
    bool stores;                            /* the lease is for writing */
    bool readable, writable;                /* as opened */
    bool shut_out;                          /* the gate was shut by rights.c */
    _Atomic bool slow_writes;               /* O_SYNC, O_DSYNC: writes take the system call */
    _Atomic bool at_end;                    /* O_APPEND: only pl_append does them */
    _Atomic bool unstorable;                /* no lease for writing is to be had */
    _Atomic bool stored;                    /* memory was stored to since the last DAXFS_IOC_STORED */
    _Atomic bool shared;                    /* a child has mappings of this lease: never renew */
    _Atomic bool refused;                   /* no lease is to be had */
    _Atomic uint8_t allocated;              /* PL_UNKNOWN, ...: whether filling holes costs space */
    _Atomic uint8_t growing;                /* next writes that go to the kernel: they probably make the file longer */
    _Atomic uint64_t hole_end;              /* where the last write to a hole ended */
    _Atomic int mappings;                   /* live mappings in this process: don't renew */
    _Atomic uint32_t patience;              /* system calls to be made before the next request */
    _Atomic uint32_t penalty;               /* the patience after a request that did not pay: grows */
    _Atomic uint64_t used;                  /* accesses since the last answer (roughly) */
    _Atomic uint64_t dirty_low, dirty_high; /* DAXFS_MSYNC: pool range stored to */
    _Atomic int spare;                      /* a descriptor to close when the last pin goes; -1 */
    uint64_t inode;                         /* st_ino of the file */
    uint64_t granted;                       /* 0, or where the memory ends that was granted to make the file longer */
    struct pl_appends appends;
    struct pl_extent few[PL_FEW];           /* the extents until they are more */
};

#define PL_DESCRIPTORS 65536 /* higher numbers take the system calls */
#define PL_FILES 1024

extern struct pl_file *_Atomic pl_table[PL_DESCRIPTORS];
extern struct pl_file pl_files[PL_FILES]; /* references != 0: in use */
extern _Atomic int pl_highest;            /* the highest descriptor that was ever in the table, -1: none */

/* The open file of a descriptor, NULL if it is no file of daxfs: this is all that other files cost. */
static inline struct pl_file *pl_file_of(int fd) {
    if (unlikely((unsigned)fd >= PL_DESCRIPTORS))
        return NULL;
    return atomic_load_explicit(&pl_table[fd], memory_order_acquire);
}

/* Whether the extents still hold. Called pinned and after a copy, true also proves that the copy is good. */
static inline bool pl_holds(const struct pl_file *file) {
    const struct daxfs_slot *entry = __atomic_load_n(&file->entry, __ATOMIC_RELAXED);

    return file->fixed || (entry && __atomic_load_n(&entry->epoch, __ATOMIC_ACQUIRE) == file->epoch);
}

/* The size of a file that has a lease (call it pinned). */
static inline uint64_t pl_size(const struct pl_file *file) {
    return file->fixed ? file->size : __atomic_load_n(&file->entry->size, __ATOMIC_ACQUIRE);
}

/* A new object with one reference and one descriptor, for a file opened with these flags; NULL: all are in use. */
struct pl_file *pl_new_file(struct pl_mount *mount, uint64_t inode, int flags);
/* The flags of the description, from open(2) or F_GETFL. */
void pl_flags_are(struct pl_file *file, int flags);
/* Let the table say that the descriptor is this file. */
void pl_enter(int fd, struct pl_file *file);
/* A reference for longer than a call (a mapping outlives close). NULL: not in the table. */
struct pl_file *pl_hold(int fd);
/* The same for an object of pl_files; false: it is free. */
bool pl_hold_object(struct pl_file *file);
void pl_drop(struct pl_file *file);
/* Device and inode of a regular file as the kernel knows them, without a request to the daemon; false: none. */
bool pl_identify(int fd, dev_t *device, uint64_t *inode);
/* Forget where the file lies, and what is known of its appends. */
void pl_forget_extents(struct pl_file *file);
void pl_forget_appends(struct pl_file *file);

#pragma GCC visibility pop

#endif
