/* What a program says to daxfs when it wants the memory of a file: ioctls on an open file, and the
 * lease status page.
 *
 * docs/DIRECT.md has the rules. daxfs/protocol.py is the same in Python; a test compares the two field by field.
 * Python's StatusEntry is `struct daxfs_slot` here, and its Lease.entry is `slot`: programs were written to these names.
 * All numbers are of the machine's own byte order: nothing here is stored or sent to another machine.
 */
#ifndef DAXFS_H
#define DAXFS_H

#include <stdint.h>
#include <sys/ioctl.h>

#define DAXFS_VERSION 2 /* 1 had no token: its clients are refused, and go through the kernel */

#define DAXFS_FILESYSTEM_TYPE "fuse.daxfs" /* of a mount in /proc/self/mountinfo: believe no other */

#define DAXFS_PATH_SIZE 952 /* bytes of a pool's path, with the NUL that ends it */

/* Which pool: open `path`, compare with fstat(2) (`device` and `inode`; `rdevice` for a device), map `size` bytes. */
struct daxfs_pool {
    uint32_t version;           /* DAXFS_VERSION */
    uint32_t persistence;       /* enum daxfs_persistence */
    uint64_t device;            /* st_dev of the pool */
    uint64_t inode;             /* st_ino */
    uint64_t rdevice;           /* st_rdev */
    uint64_t size;              /* bytes that can be mapped */
    uint32_t block_size;        /* bytes */
    uint32_t lock;              /* while you map it, lock its byte DAXFS_LOCKS + lock, shared (F_OFD_SETLK) */
    uint8_t uuid[16];           /* of the file system */
    char path[DAXFS_PATH_SIZE]; /* absolute */
    uint64_t token;             /* pool offset of the DAXFS_TOKEN bytes that lease requests quote; 0: none is needed */
};

#define DAXFS_TOKEN 16 /* bytes: random, new with each mount, and in no file. Who can read them can open the pool. */

#define DAXFS_LOCKS (1ULL << 62)        /* far past the pool's end */
#define DAXFS_LOCK_NUMBERS (1ULL << 31) /* `lock` is less */
#define DAXFS_READER_LOCKS (1ULL << 30) /* `lock` is at least this on read-only mounts, whose end no pool shows */

#define DAXFS_FURTHEST (1ULL << 62) /* no file, pool or range ends past this byte: sums of two do not overflow */
#define DAXFS_LEAST_POOL 2048       /* bytes of the smallest pool: the superblock ends there */
#define DAXFS_MAGIC "\x53\xef"      /* the bytes of s_magic in ext4's superblock, */
#define DAXFS_MAGIC_AT 1080         /* where they lie in the pool, */
#define DAXFS_UUID_AT 1128          /* and where s_uuid does: compare both */
#define DAXFS_LEAST_BLOCK 1024      /* bytes that `block_size` may be: a power of two from this */
#define DAXFS_MOST_BLOCK 65536      /* to this */

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

/* What a part of a file is. */
enum daxfs_kind {
    DAXFS_HOLE = 0,   /* reads as zeros */
    DAXFS_MEMORY = 1, /* lies in the pool */
    DAXFS_KERNEL = 2, /* somebody maps these bytes through the kernel: use the file itself */
};

/* What a lease request asks for. */
enum daxfs_flag {
    DAXFS_WRITE = 1,  /* to store; the file must be open for writing */
    DAXFS_FILL = 2,   /* with WRITE: give holes blocks of zeros up to EOF */
    DAXFS_GROW = 4,   /* with WRITE and FILL: also past EOF, which DAXFS_IOC_STORED or DAXFS_IOC_APPENDED moves; one
                       * holder at a time (EAGAIN). It ends, and what was stored there and not told is lost, when
                       * the file is made longer in any other way. */
    DAXFS_MAP = 8,    /* for mmap(2): what is no memory is answered, and from now on kept, as DAXFS_KERNEL */
    DAXFS_RENEW = 16, /* this holder no longer uses anything that was granted to it before this request */
};

/* Bytes past EOF that a client asks for at once with GROW: the first time, and at most. Zeroing more in one request would
 * keep every other user of the mount waiting. */
#define DAXFS_FIRST_STEP (256 << 10)
#define DAXFS_LAST_STEP (4 << 20)

/* Bytes that one request gives blocks of zeros at most; ask again from there. A client leaves the holes of a mapping
 * that has more of them to the kernel. */
#define DAXFS_MOST_FILLED (64 << 20)

/* Extents that an answer has room for, and a short one. */
#define DAXFS_EXTENTS 124
#define DAXFS_SHORT_EXTENTS 4

/* Question and answer. Extents come in order, without gaps, from `offset` to `next`; ask again from there. */
struct daxfs_lease {
    uint64_t holder;      /* in: any number that no other process uses for the same open file */
    uint64_t offset;      /* in: first byte */
    uint64_t length;      /* in: bytes; 0 with DAXFS_RENEW: tell me nothing, just take it all back */
    uint32_t flags;       /* in: enum daxfs_flag */
    uint32_t count;       /* out: extents in the answer */
    uint64_t next;        /* out: where they end: at offset + length, or the end of the file's last block, or sooner */
    uint64_t size;        /* out: of the file, bytes */
    uint64_t slot;        /* out: pool offset of the file's status entry; 0: nothing will change (read-only) */
    uint64_t epoch;       /* out: the answer holds as long as the status entry has this epoch */
    uint64_t device;      /* out: of the pool, as in struct daxfs_pool */
    uint64_t inode;       /* out */
    uint64_t lock;        /* out: as in struct daxfs_pool; another one: it was mounted anew, map the pool again */
    uint8_t token[DAXFS_TOKEN]; /* in: from the pool; EOPNOTSUPP without it */
    uint64_t reserved[3];
    struct daxfs_extent extents[DAXFS_EXTENTS];
};

/* The same with room for four extents: one page less to carry. */
struct daxfs_short_lease {
    uint64_t head[16];
    struct daxfs_extent extents[DAXFS_SHORT_EXTENTS];
};

/* Tell that this open file's holder has stored: times move, and the file reaches `size` if it was shorter. */
struct daxfs_stored {
    uint64_t size;  /* 0: as it is */
    uint32_t flags; /* enum daxfs_durability; the stores themselves must be flushed before */
    uint32_t reserved;
};

/* The same of what was stored past EOF, if nobody else has moved EOF meanwhile: else EAGAIN, and nothing has
 * changed; what was stored there is lost. */
struct daxfs_appended {
    uint64_t base;    /* in: the size as the status entry said it */
    uint64_t size;    /* in: the size now */
    uint64_t holder;  /* in: to whom the memory there was granted */
    uint32_t flags;   /* in: as above */
    uint32_t reserved;
    uint64_t changes; /* out: those of the status entry after this; with DAXFS_DURABLE all until then are durable */
};

/* Flags of both. */
enum daxfs_durability {
    DAXFS_DURABLE = 1,   /* as fsync(2) */
    DAXFS_DATA_ONLY = 2, /* with DAXFS_DURABLE: as fdatasync(2) */
};

/* A status entry: what changes while a file is leased, in the pool itself, one cache line for each file. The daemon
 * alone writes. */
struct daxfs_slot {
    uint64_t epoch;   /* another one than the answer's: forget the extents and ask again */
    uint64_t size;    /* of the file, bytes */
    uint64_t ino;     /* of the file */
    uint64_t changes; /* goes up with all that the daemon changes of the file: content, size, blocks, times, names */
    uint64_t reserved[4];
};

#define DAXFS_ENDED UINT64_MAX /* the last epoch: the daemon has gone, or the entry is another file's */

#define DAXFS_IOC_POOL _IOR(0xda, 2, struct daxfs_pool)
#define DAXFS_IOC_LEASE _IOWR(0xda, 3, struct daxfs_lease)
#define DAXFS_IOC_SHORT_LEASE _IOWR(0xda, 3, struct daxfs_short_lease)
#define DAXFS_IOC_STORED _IOW(0xda, 4, struct daxfs_stored)
#define DAXFS_IOC_APPENDED _IOWR(0xda, 5, struct daxfs_appended)
#define DAXFS_IOC_SYNC _IO(0xda, 6) /* as syncfs(2), by any open file or directory of the mount */

#endif
