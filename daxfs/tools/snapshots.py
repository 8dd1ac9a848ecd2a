"""``daxfs snapshot``: make, list, delete and export snapshots.

The daemon of a mount makes and deletes them (`daxfs.fuse.kernel.snapshots`). They are listed and exported beside the
daemon, which goes on meanwhile, or from a pool that is not mounted (`snapshotsource`).
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from itertools import chain as joined

from daxfs.fs import imaging
from daxfs.fs.types import MappedFile, Snapshot
from daxfs.fuse.kernel.snapshots import CREATE, DELETE, SKIP_MAPPED, row
from daxfs.tools import exporting, mountpoints, pieces, snapshotsource, sync
from daxfs.tools.ending import unwinding
from daxfs.tools.sizes import format_size


def create(mountpoint: str, name: str, *, skip_mapped: bool = False, as_json: bool = False) -> None:
    """Make a snapshot of a mount. Say what was copied at once, or left out, since programs might store there.

    Args:
        mountpoint: of the mount.
        name: of the snapshot.
        skip_mapped: leave it out.
        as_json: print all about it as JSON.

    Raises:
        UserError: no daxfs is mounted there, or the daemon refuses.
    """
    top = mountpoints.require(mountpoint)
    with mountpoints.root(top.mountpoint) as descriptor:
        snapshotsource.listed(descriptor, mountpoint)  # before anything is written back for it
        sync.sync(mountpoint)  # what the kernel's page cache holds belongs to the snapshot
        flags = SKIP_MAPPED if skip_mapped else 0
        answer = json.loads(snapshotsource.ask(descriptor, mountpoint, CREATE, os.fsencode(name), flags))
    made, files = snapshotsource.of_row(answer["snapshot"]), [MappedFile(*each) for each in answer["files"]]
    if as_json:
        print(json.dumps(row(made) | {"files": [each._asdict() for each in files]}, indent=2))
        return
    if not (made.mapped or made.skipped):
        return
    if made.skipped:
        print(f"not in the snapshot, since programs may store there at any time: {format_size(made.skipped)}")
    else:
        print(f"copied at once, since programs may store there at any time: {format_size(made.mapped)}")
    for each in files:
        print(f"  inode {each.ino}: {format_size(each.size)}, opened by process {each.pid}")
    if answer["count"] > len(files):
        print(f"  and {answer['count'] - len(files)} more")


def delete(mountpoint: str, name: str) -> None:
    """Delete a snapshot of a mount.

    Raises:
        UserError: no daxfs is mounted there, or the daemon refuses.
    """
    top = mountpoints.require(mountpoint)
    with mountpoints.root(top.mountpoint) as descriptor:
        snapshotsource.ask(descriptor, mountpoint, DELETE, os.fsencode(name))


def show(place: str, *, as_json: bool = False) -> None:
    """Print the snapshots of a mountpoint or pool, the oldest first.

    Raises:
        UserError, PoolError, FsError: as `snapshotsource.opened`.
    """
    with snapshotsource.opened(place) as source:
        found = source.listing()
    if as_json:
        print(json.dumps([row(each) for each in found], indent=2))
        return
    for each in found:
        print(_line(each))


def _line(snapshot: Snapshot) -> str:
    made = datetime.fromtimestamp(snapshot.created_ns / 1e9).astimezone().isoformat(" ", "seconds")
    state = f"lost: {snapshot.lost}" if snapshot.lost else f"{format_size(snapshot.copied)} copied"
    if snapshot.mapped:
        state += f", {format_size(snapshot.mapped)} of them at its making"
    if snapshot.skipped:
        state += f", without {format_size(snapshot.skipped)} of mapped files"
    return f"{made}  {format_size(snapshot.size):>10}  {os.fsdecode(snapshot.name)}  {state}"


def export(place: str, name: str, file: str, *, force: bool = False) -> None:
    """Write the image of a snapshot, sparse and clean, to a file that appears when it is complete.

    Raises:
        UserError: there is no such snapshot, or it is lost; FILE exists.
        FsError: EIO, it is lost or deleted meanwhile, or the mount is gone; as `snapshotsource.opened`.
        OSError: the file can't be written.
    """
    with snapshotsource.opened(place) as source:
        pool = source.pool
        exporting.refuse_existing(pool.path, file, force=force)
        past = source.past(snapshotsource.valid(source, name))
        with unwinding(), exporting.naming(file), exporting.appearing(file, replace=force) as descriptor:
            os.ftruncate(descriptor, pool.size)
            found = (pieces.split(memoryview(content), offset) for offset, content in imaging.pieces(pool, past))
            pieces.into_file(descriptor, joined.from_iterable(found))
            imaging.clean(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.fsync(descriptor)
            size, stored = pool.size, os.fstat(descriptor).st_blocks * 512
    print(f"{file}: {format_size(size)}, {format_size(stored)} of them stored")
