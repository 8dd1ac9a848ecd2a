"""The ioctls of F2FS by which programs write batches (docs/ATOMIC.md): the daemon answers them, the Python client calls
them, and SQLite knows them.

Source: include/uapi/linux/f2fs.h.
"""

F2FS_IOC_START_ATOMIC_WRITE = 0xF501
F2FS_IOC_COMMIT_ATOMIC_WRITE = 0xF502
F2FS_IOC_ABORT_ATOMIC_WRITE = 0xF505
F2FS_IOC_GET_FEATURES = 0x8004F50C
