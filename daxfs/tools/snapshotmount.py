"""``daxfs snapshot mount``: what a snapshot shows, mounted read-only beside the file system that goes on.

Two processes serve it. One reads the snapshot and serves it as one file that lies nowhere (`daxfs.fuse.unnamed`); the
other, which mounts, takes that file as its pool. The first can't be part of the second: a process that waits for a page
of its own mapping can't read it. Each ends with the other.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.fuse import logs, mounts, options, unnamed
from daxfs.fuse.kernel import imagefile
from daxfs.pmem import kinds, ownership
from daxfs.pmem.opening import open_pool
from daxfs.tools import mount as mounting
from daxfs.tools import snapshotsource

if TYPE_CHECKING:
    from daxfs.fuse.mountoptions import MountOptions

ALWAYS = ("ro", "dax=never")
"""A snapshot never changes: the kernel may cache it, and nobody maps its pool."""
END_SECONDS = 5.0


def run(place: str, name: str, directory: str, given: Sequence[str] = (), *, foreground: bool = False) -> None:
    """Mount a snapshot; in the foreground, return when it is unmounted.

    Args:
        place: a mountpoint or pool.
        name: of the snapshot.
        directory: where to mount it.
        given: mount options, comma-separated lists.
        foreground: serve in this process.

    Raises:
        UserError: with a message of one line and mount(8)'s exit code; there is no such snapshot, or it is lost.
        PoolError, FsError: the pool can't be read.
    """
    wanted = options.parse([*ALWAYS, *given])
    if not wanted.read_only or wanted.session != "kernel":
        raise UserError("a snapshot is mounted read-only, with session=kernel", mounts.USAGE)
    place = _lasting(place)
    target = mounts.check_mountpoint(directory)
    with snapshotsource.opened(place) as source:
        snapshotsource.valid(source, name)
        pool = os.path.realpath(source.pool.path)
    if not wanted.trust_owner:
        ownership.refuse(pool, os.stat(pool), "mount it nosuid,nodev with -o trust_owner")
    label = snapshotsource.label(pool, name)
    serving = partial(serve, place, name, label, target, wanted)
    if foreground:
        logs.start(wanted.log, foreground=True)
        serving(lambda: None)
    else:
        mounting.start_daemon(label, target, wanted, serving)


def serve(place: str, name: str, label: str, mountpoint: str, wanted: MountOptions, ready: Callable[[], None]) -> None:
    """Start the process that serves the snapshot, and serve the mount until it is unmounted."""
    with snapshotsource.opened(place) as source:
        past = source.past(snapshotsource.valid(source, name))
        device, image = unnamed.mount(source.pool.path)
        sys.stdout.flush()
        server = os.fork()
        if server == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it is for both; the mount needs this one
                os.close(image)
                imagefile.serve(source.pool, past, label, device)
                code = 0
            finally:
                os._exit(code)
        os.close(device)
    try:
        _serve_image(image, label, mountpoint, wanted, ready)
    finally:
        _await(server)


def _serve_image(image: int, label: str, mountpoint: str, wanted: MountOptions, ready: Callable[[], None]) -> None:
    """Serve the mount from the file that a descriptor names, which is closed."""
    try:
        pool = open_pool(f"/proc/self/fd/{image}", read_only=True, exclusively=False)
    finally:
        os.close(image)
    pool.path = label
    pool.faults.lasting = False
    pool.status = None  # clients can't open it
    mounting.serve_core(FileSystem.open(pool, wanted.of_volume(mountpoint)), label, mountpoint, wanted, ready)


def _await(child: int) -> None:
    """Wait until the process that served the snapshot has let go of its pool: the last mapping of its file is gone."""
    gc.unfreeze()  # what `serving.run` has kept from collections
    gc.collect()
    end = time.monotonic() + END_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(mounting.FIRST_PAUSE_SECONDS)


def _lasting(place: str) -> str:
    """Return a path that is valid in the daemon; of a mountpoint without a look into the mount."""
    return mounts.real_mountpoint(place) if os.path.isdir(place) else kinds.lasting_path(place)
