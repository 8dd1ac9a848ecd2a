"""Run e2fsck on a pool that no file shows whole: ``/dev/dax`` and hugetlbfs, which only a mapping can read and write,
and pools with storage (docs/TIERS.md).

e2fsck sees the pool as a regular file under the pool's own path (`daxfs.fuse.alone`), served from the mapping
(`daxfs.fuse.kernel.poolfile`): no copy is made, whatever the size of the device, and repairs go to the pool itself, in
e2fsck's order, durable at each of its fsync calls.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from daxfs.fs import opening
from daxfs.fuse import alone
from daxfs.fuse.kernel import poolfile

READ_AHEAD_OFF = ("-E", "readahead_kb=0")
"""e2fsck would have the page cache filled (posix_fadvise(2)), which its reads then bypass."""
OPERATIONAL_ERROR = 8  # fsck(8)


def run(program: str, options: Sequence[str], path: str) -> int:
    """Claim the pool, run e2fsck, and return its exit code (negative: minus the signal that ended it).

    Where memory of the pool was missing, a line says so, and the exit code has the bit of an operational error.

    Raises:
        UserError: the pool is in use or can't be opened (PoolError), or no FUSE mount can be made here.
        FsError: EIO, the last fence failed.
    """
    missing = 0

    def serve(descriptor: int) -> None:
        nonlocal missing
        missing = poolfile.serve(pool, descriptor)

    with opening.open_pool(path, read_only="-n" in options) as pool:
        if not pool.read_only:
            # e2fsck could give blocks to other files that stale clients may still store to.
            pool.refuse_clients()
        code = alone.run([program, *READ_AHEAD_OFF, *options, "--", path], path, serve)
    if missing and code >= 0:
        print(f"daxfs: {path}: memory of the pool is missing; {missing} accesses of e2fsck failed", file=sys.stderr)
        code |= OPERATIONAL_ERROR
    return code
