/* The protocol of direct access, by which a program gets the memory of a file: ioctls on an open file, and the lease
 * status page.
 *
 * docs/DIRECT.md has the rules. daxfs/protocol.py has the same declarations in Python; a test compares both field by
 * field. Python's StatusEntry is `struct daxfs_slot` here, and its Lease.entry is `slot`: existing programs use these
 * names. All numbers have the machine's own byte order: they are neither stored nor sent to another machine.
 */
#ifndef DAXFS_H
#define DAXFS_H

#include <stdint.h>
#include <sys/ioctl.h>

#define DAXFS_VERSION 2 /* version 1 had no token: its clients are refused, and go through the kernel */

#define DAXFS_FILESYSTEM_TYPE "fuse.daxfs" /* the type of a mount in /proc/self/mountinfo: trust no other */

#define DAXFS_PATH_SIZE 944 /* bytes of a pool's path, with the NUL that ends it */

/* The identity of a pool: open `path`, compare with fstat(2) (`device` and `inode`; `rdevice` for a device), and map
 * `size` bytes. */
struct daxfs_pool {
    uint32_t version;           /* DAXFS_VERSION */
    uint32_t persistence;       /* enum daxfs_persistence */
    uint64_t device;            /* st_dev of the pool */
    uint64_t inode;             /* st_ino */
    uint64_t rdevice;           /* st_rdev */
    uint64_t size;              /* bytes that can be mapped */
    uint32_t block_size;        /* bytes */
    uint32_t lock;              /* while the pool is mapped, lock its byte DAXFS_LOCKS + lock, shared (F_OFD_SETLK) */
    uint8_t uuid[16];           /* of the file system */
    char path[DAXFS_PATH_SIZE]; /* absolute */
    uint64_t align;             /* bytes: the unit in which the pool can be mapped, a power of two; 0: a page */
    uint64_t token;             /* pool offset of the DAXFS_TOKEN bytes that lease requests contain; 0: not needed */
};

#define DAXFS_TOKEN 16 /* bytes: random, new with each mount, and in no file. Only a process that can open the pool
                        * can read them. */

#define DAXFS_LOCKS (1ULL << 62)        /* offset of the lock bytes, far past the pool's end */
#define DAXFS_LOCK_NUMBERS (1ULL << 31) /* `lock` is less than this */
#define DAXFS_READER_LOCKS (1ULL << 30) /* `lock` is at least this on read-only mounts, which leave no trace */

#define DAXFS_FURTHEST (1ULL << 62) /* no file, pool or range ends past this byte: sums of two do not overflow */
#define DAXFS_LEAST_POOL 2048       /* bytes of the smallest pool: the superblock ends there */
#define DAXFS_MAGIC "\x53\xef"      /* the bytes of s_magic in ext4's superblock; compare them */
#define DAXFS_MAGIC_AT 1080         /* pool offset of s_magic */
#define DAXFS_UUID_AT 1128          /* pool offset of s_uuid; compare it too */
#define DAXFS_LEAST_BLOCK 1024      /* bytes: the smallest `block_size`, which is a power of two */
#define DAXFS_MOST_BLOCK 65536      /* bytes: the largest `block_size` */

/* How stores become durable. */
enum daxfs_persistence {
    DAXFS_VOLATILE = 0, /* never: the pool is ordinary memory */
    DAXFS_MSYNC = 1,    /* msync(2) of the mapping */
    DAXFS_LINES = 2,    /* write back cache lines and fence (libpmem) */
};

/* A part of a file. */
struct daxfs_extent {
    uint64_t offset;      /* in the file, bytes */
    uint64_t pool_offset; /* DAXFS_MEMORY: in the pool, bytes */
    uint64_t length;      /* bytes */
    uint32_t kind;        /* enum daxfs_kind */
    uint32_t reserved;
};

/* The kind of a part of a file. */
enum daxfs_kind {
    DAXFS_HOLE = 0,   /* reads as zeros */
    DAXFS_MEMORY = 1, /* is in the pool */
    DAXFS_KERNEL = 2, /* page-cache mapped: a program maps these bytes through the kernel, so use the file itself */
};

/* The flags of a lease request. */
enum daxfs_flag {
    DAXFS_WRITE = 1,  /* a lease for stores; the file must be open for writing */
    DAXFS_FILL = 2,   /* with WRITE: give holes up to EOF blocks of zeros */
    DAXFS_EXTEND = 4,   /* with WRITE and FILL: also past EOF, for extending writes, which DAXFS_IOC_STORED or
                       * DAXFS_IOC_APPENDED makes part of the file. One holder at a time (EAGAIN). If the file is
                       * extended in any other way, the grant ends, and stores there without a notification are lost. */
    DAXFS_MAP = 8,    /* for mmap(2): what is not memory is granted as DAXFS_KERNEL, and stays page-cache mapped */
    DAXFS_RENEW = 16, /* this holder no longer uses anything that was granted to it before this request */
    DAXFS_PAGES = 32, /* with MAP: the client maps the whole range through the kernel, also where it is memory: all of
                       * it is granted as DAXFS_KERNEL, and stays page-cache mapped */
};

/* Bytes past EOF that a client requests at once with EXTEND: the first time, and at most. Zeroing more in one request
 * would keep every other user of the mount waiting. */
#define DAXFS_FIRST_STEP (256 << 10)
#define DAXFS_LAST_STEP (4 << 20)

/* The most bytes of holes that one request fills with blocks of zeros; the next request begins there. A client leaves
 * the holes of a mapping that has more of them to the kernel. */
#define DAXFS_MOST_FILLED (64 << 20)

/* The most extents of an answer, and of a short answer. */
#define DAXFS_EXTENTS 124
#define DAXFS_SHORT_EXTENTS 4

/* A lease: request and answer. Extents come in order, without gaps, from `offset` to `next`; the next request begins
 * there. */
struct daxfs_lease {
    uint64_t holder;      /* in: any number that no other process uses for the same open file */
    uint64_t offset;      /* in: first byte */
    uint64_t length;      /* in: bytes; 0 with DAXFS_RENEW: grant nothing, only take all grants back */
    uint32_t flags;       /* in: enum daxfs_flag */
    uint32_t count;       /* out: extents in the answer */
    uint64_t next;        /* out: the extents' end: offset + length, or the end of the file's last block, or earlier */
    uint64_t size;        /* out: of the file, bytes */
    uint64_t slot;        /* out: pool offset of the file's status entry; 0: nothing will change (read-only) */
    uint64_t epoch;       /* out: the lease holds as long as the status entry has this epoch */
    uint64_t device;      /* out: of the pool, as in struct daxfs_pool */
    uint64_t inode;       /* out: of the pool, as in struct daxfs_pool */
    uint64_t lock;        /* out: as in struct daxfs_pool; if it differs, there is a new mount: map the pool again */
    uint8_t token[DAXFS_TOKEN]; /* in: from the pool; EOPNOTSUPP if it is wrong */
    uint64_t reserved[3];
    struct daxfs_extent extents[DAXFS_EXTENTS];
};

/* A lease with room for four extents: the kernel copies one page less. */
struct daxfs_short_lease {
    uint64_t head[16];
    struct daxfs_extent extents[DAXFS_SHORT_EXTENTS];
};

/* Notification of a write: a holder has stored to this open file. The file's times change, and its size becomes `size`
 * if it was less. */
struct daxfs_stored {
    uint64_t size;  /* 0: the size does not change */
    uint32_t flags; /* enum daxfs_durability; the client must have flushed its stores before */
    uint32_t reserved;
};

/* Notification of an extending write. If another writer has changed EOF meanwhile, it fails with EAGAIN and changes
 * nothing; the stores past EOF are lost. */
struct daxfs_appended {
    uint64_t base;    /* in: the size in the status entry before the write */
    uint64_t size;    /* in: the size after the write */
    uint64_t holder;  /* in: to which the memory past EOF was granted */
    uint32_t flags;   /* in: enum daxfs_durability, as above */
    uint32_t reserved;
    uint64_t changes; /* out: `changes` of the status entry after this; with DAXFS_DURABLE these changes are durable */
};

/* The place where a client makes an append durable: in one atomic instruction it compares the aligned word with `armed`
 * and, if they are equal, replaces it by `valid`. */
struct daxfs_commit_word {
    uint64_t pool_offset; /* in the pool, bytes */
    uint32_t armed;
    uint32_t valid;
};

#define DAXFS_COMMIT_WORDS 64 /* the most in one answer */

/* Notification of an extending write that is made durable, as struct daxfs_appended with DAXFS_DURABLE. It asks for the
 * words of further appends of the same length: each makes the file longer by that length, and is durable at once. They
 * count from the first on, as long as `changes` of the status entry is what the answer says. */
struct daxfs_armed {
    uint64_t base;    /* in: as in struct daxfs_appended */
    uint64_t size;    /* in: likewise */
    uint64_t holder;  /* in: likewise */
    uint32_t flags;   /* in: enum daxfs_durability; it is durable in any case */
    uint32_t count;   /* in: how many words are wanted; out: how many there are, perhaps none */
    uint64_t changes; /* out: as in struct daxfs_appended */
    struct daxfs_commit_word words[DAXFS_COMMIT_WORDS];
};

/* Flags of these notifications. */
enum daxfs_durability {
    DAXFS_DURABLE = 1,   /* as fsync(2) */
    DAXFS_DATA_ONLY = 2, /* with DAXFS_DURABLE: as fdatasync(2) */
};

/* An atomic write to an open file: a power of two of bytes, at a multiple of that. EOPNOTSUPP: the file has none, because
 * the kernel caches it, or the pool has no journal. */
struct daxfs_atomic {
    uint64_t offset; /* in: first byte of the write; 0 without DAXFS_ANNOUNCE and DAXFS_WITHDRAW */
    uint32_t length; /* in: bytes; likewise */
    uint32_t flags;  /* in: enum daxfs_announcement; 0: only report `least` and `most` */
    uint32_t least;  /* out: bytes of the shortest atomic write */
    uint32_t most;   /* out: bytes of the longest one */
};

/* What a client says about an atomic write. */
enum daxfs_announcement {
    DAXFS_ANNOUNCE = 1, /* the next write(2) of these bytes through this open file is atomic. EINVAL: its length or its
                         * offset can't be that of an atomic write. EBUSY: the open file has a batch (docs/ATOMIC.md),
                         * or too many announced writes of the user are to come */
    DAXFS_WITHDRAW = 2, /* that write has failed, or will not come */
};

/* A status entry: the state of a leased file, in the pool itself, one cache line for each file. Only the daemon writes
 * it. */
struct daxfs_slot {
    uint64_t epoch;   /* if it differs from the lease's: forget the extents and request a new lease */
    uint64_t size;    /* of the file, bytes */
    uint64_t ino;     /* of the file */
    uint64_t changes; /* increases with each change of the file by the daemon: content, size, blocks, times, names */
    uint64_t reserved[4];
};

#define DAXFS_ENDED UINT64_MAX /* the last epoch: the daemon has ended, or the entry is another file's now */

#define DAXFS_IOC_POOL _IOR(0xda, 2, struct daxfs_pool)
#define DAXFS_IOC_LEASE _IOWR(0xda, 3, struct daxfs_lease)
#define DAXFS_IOC_SHORT_LEASE _IOWR(0xda, 3, struct daxfs_short_lease)
#define DAXFS_IOC_STORED _IOW(0xda, 4, struct daxfs_stored)
#define DAXFS_IOC_APPENDED _IOWR(0xda, 5, struct daxfs_appended)
#define DAXFS_IOC_ARMED _IOWR(0xda, 5, struct daxfs_armed)
#define DAXFS_IOC_SYNC _IO(0xda, 6) /* as syncfs(2), through any open file or directory of the mount */
#define DAXFS_IOC_ATOMIC _IOWR(0xda, 9, struct daxfs_atomic)

#endif
