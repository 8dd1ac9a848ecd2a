"""``daxfs snapshot``: make, list, delete and export the snapshots of a mount.

The daemon makes and deletes them (`daxfs.fuse.kernel.snapshots`). An export reads the pool beside the daemon, through
the stores, and takes as long as it takes: the file system goes on meanwhile. If a snapshot is made or deleted during an
export, what was read may be wrong, and the export fails.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from itertools import chain as joined
from typing import Any, TypeVar

from daxfs.errors import Corrupt, FsError, UserError
from daxfs.ext4.geometry import Geometry
from daxfs.fs import imaging
from daxfs.fs.mounting import read_superblock
from daxfs.fs.snapshots import files
from daxfs.fuse.kernel.snapshots import CREATE, DELETE, LIST, QUESTION, SIZE, SNAPSHOTS
from daxfs.journal.view import PoolView
from daxfs.pmem.pool import Pool, open_pool
from daxfs.snapshots.format import NotAStore
from daxfs.snapshots.reading import Chain
from daxfs.snapshots.store import Store
from daxfs.tools import exporting, mountpoints, pieces, sync
from daxfs.tools.ending import unwinding
from daxfs.tools.sizes import format_size

USAGE = 64  # EX_USAGE, sysexits.h
FAILED = 1
TRIES = 50
"""How often metadata is read that a commit is just storing."""
PAUSE_SECONDS = 0.02
ACTIONS = ("create", "list", "delete", "export")
REASONS = {
    errno.EEXIST: "there is a snapshot of this name",
    errno.ENOENT: "there is no snapshot of this name",
    errno.EINVAL: "a name must not be empty and must not contain a slash",
    errno.ENAMETOOLONG: "the name is longer than 255 bytes",
    errno.EROFS: "the mount is read-only",
    errno.ENOSPC: "the pool has no room for it",
    errno.EBUSY: "another snapshot is being deleted, or programs of an earlier mount still map the pool",
    errno.EOPNOTSUPP: "the pool has no journal",
    errno.EPERM: "only root may do this",
    errno.ENOTTY: "its session has no snapshots; mount it with session=kernel",
}
T = TypeVar("T")


def run(action: str, mountpoint: str, name: str, file: str, *, force: bool = False, as_json: bool = False) -> None:
    """Run one command.

    Raises:
        UserError: wrong arguments, no daxfs is mounted there, or the daemon refuses.
    """
    if action not in ACTIONS:
        raise UserError(f"{action} is no command of snapshot; use {', '.join(ACTIONS)}", USAGE)
    if (action == "list") == bool(name) or (action == "export") != bool(file):
        raise UserError(f"snapshot {action} needs {_arguments(action)}", USAGE)
    top = mountpoints.require(mountpoint)
    if action == "create":
        sync.sync(mountpoint)  # what the kernel's page cache holds belongs to the snapshot
        _ask(top.mountpoint, CREATE, name)
    elif action == "delete":
        _ask(top.mountpoint, DELETE, name)
    elif action == "list":
        show(listing(top.mountpoint), as_json=as_json)
    else:
        export(top.mountpoint, top.source, name, file, force=force)


def _arguments(action: str) -> str:
    return {"list": "a mountpoint", "export": "a mountpoint, a name and a file"}.get(action, "a mountpoint and a name")


def listing(mountpoint: str) -> list[dict[str, Any]]:
    """Return the snapshots of a mount, the oldest first, as `daxfs.fs.types.Snapshot` has them.

    Raises:
        UserError: the daemon refuses.
    """
    found: list[dict[str, Any]] = []
    while True:
        more = json.loads(_ask(mountpoint, LIST, "", len(found)))
        if not more:
            return found
        found += more


def show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print a list."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        made = datetime.fromtimestamp(row["created_ns"] / 1e9).astimezone().isoformat(" ", "seconds")
        state = f"lost: {row['lost']}" if row["lost"] else f"{format_size(row['copied'])} copied"
        print(f"{made}  {format_size(row['size']):>10}  {row['name']}  {state}")


def _ask(mountpoint: str, what: int, name: str, first: int = 0) -> bytes:
    given = os.fsencode(name)
    if len(given) > 255:
        raise _refusal(mountpoint, name, errno.ENAMETOOLONG)
    argument = bytearray(QUESTION.pack(what, first, given).ljust(SIZE, b"\0"))
    try:
        with mountpoints.root(mountpoint) as descriptor:
            fcntl.ioctl(descriptor, SNAPSHOTS, argument)
    except OSError as error:
        raise _refusal(mountpoint, name, error.errno or errno.EIO) from None
    return bytes(argument).rstrip(b"\0")


def _refusal(mountpoint: str, name: str, number: int) -> UserError:
    thing = f"{mountpoint}: snapshot {name}" if name else mountpoint
    return UserError(f"{thing}: {REASONS.get(number, os.strerror(number))}", FAILED)


# Exports


def export(mountpoint: str, path: str, name: str, file: str, *, force: bool = False) -> None:
    """Write the image of a snapshot, sparse and clean, to a file that appears when it is complete.

    Raises:
        UserError: there is no such snapshot, it is lost, or snapshots were made or deleted meanwhile; FILE exists.
        PoolError: the pool can't be read.
        OSError: the file can't be written.
    """
    exporting.refuse_existing(path, file, force=force)
    before = _newer(mountpoint, name)
    with (
        unwinding(),
        exporting.naming(file),
        open_pool(path, read_only=True, exclusively=False) as pool,
        exporting.appearing(file, replace=force) as descriptor,
    ):
        os.ftruncate(descriptor, pool.size)
        try:
            chain = _chain(pool, [os.fsencode(row["name"]) for row in before])
            found = (pieces.split(memoryview(content), offset) for offset, content in imaging.pieces(pool, chain))
            pieces.into_file(descriptor, joined.from_iterable(found))
        except (Corrupt, NotAStore):
            if _identities(_newer(mountpoint, name)) == _identities(before):
                raise
        if _identities(_newer(mountpoint, name)) != _identities(before):
            raise UserError(f"{mountpoint}: snapshots were made or deleted during the export; try again", FAILED)
        imaging.clean(os.readlink(f"/proc/self/fd/{descriptor}"))
        os.fsync(descriptor)
        stored = os.fstat(descriptor).st_blocks * 512
        size = pool.size
    print(f"{file}: {format_size(size)}, {format_size(stored)} of them stored")


def _newer(mountpoint: str, name: str) -> list[dict[str, Any]]:
    """Return the snapshot of this name and all newer ones.

    Raises:
        UserError: there is none, or it is lost.
    """
    found = listing(mountpoint)
    at = next((at for at, row in enumerate(found) if row["name"] == name), None)
    if at is None:
        raise _refusal(mountpoint, name, errno.ENOENT)
    if found[at]["lost"]:
        raise UserError(f"{mountpoint}: snapshot {name} is lost: {found[at]['lost']}", FAILED)
    return [row for row in found[at:] if not row["lost"]]


def _identities(found: list[dict[str, Any]]) -> list[str]:
    return [row["uuid"] for row in found]


def _chain(pool: Pool, names: list[bytes]) -> Chain:
    """Return what a snapshot shows, read beside the daemon; ``names``: its own, and those of all newer ones."""
    geometry = Geometry.of(read_superblock(pool))
    stores = _patiently(lambda: _stores(pool, geometry, names))

    def enlarge() -> None:
        newest = stores[-1]
        try:
            newest.table(newest.count)
        except NotAStore:  # the table goes on in chunks that the store has got meanwhile
            newest.set_runs(_patiently(lambda: _stores(pool, geometry, names[-1:]))[0].runs)

    return Chain(pool, stores, enlarge)


def _stores(pool: Pool, geometry: Geometry, names: list[bytes]) -> list[Store]:
    view = PoolView(pool, geometry)
    try:
        found = {name: files.runs_of(view, inode) for name, inode in files.found(view)}
        bits = files.chunk_bits(view)
    finally:
        view.release()
    missing = [name for name in names if name not in found]
    if missing:
        raise NotAStore(f"there is no store of {missing[0]!r}")
    stores = [Store(pool, bits, found[name]) for name in names]
    for store in stores:
        store.open()
    return stores


def _patiently(read: Callable[[], T]) -> T:
    """Read metadata that a commit may just be storing: until it can be read."""
    tried = 0
    while True:
        try:
            return read()
        except (Corrupt, FsError):
            tried += 1
            if tried == TRIES:
                raise
            time.sleep(PAUSE_SECONDS)
