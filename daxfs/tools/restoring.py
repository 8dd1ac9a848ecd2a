"""``daxfs snapshot restore``: a pool that is not mounted becomes again what a snapshot shows (`daxfs.fs.restoring`)."""

from __future__ import annotations

import errno
import os

from daxfs.errors import FsError, UserError
from daxfs.fs import restoring
from daxfs.pmem.opening import open_pool

FAILED = 1


def run(path: str, name: str, *, force: bool = False) -> None:
    """Restore a snapshot and say what is gone.

    Raises:
        UserError: there is no such snapshot, it is lost, or others would be deleted.
        PoolError: the pool is in use, or can't be opened.
        FsError, Corrupt: as `restoring.restore`.
    """
    with open_pool(path) as pool:
        pool.refuse_clients()
        try:
            with pool.faults.checked():
                gone = restoring.restore(pool, os.fsencode(name), force=force)
        except FsError as error:
            if error.errno == errno.EEXIST:
                raise UserError(f"{path}: {error.strerror}; --force deletes them", FAILED) from None
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EBUSY):
                raise UserError(f"{path}: {error.strerror}", FAILED) from None
            raise
    deleted = ", ".join(os.fsdecode(each) for each in gone)
    print(f"{path} is what the snapshot {name} has shown; deleted: {deleted}")
