"""Pools on the guest's devices: made, mounted and checked in forks of the test process, which has everything loaded.

Starting an interpreter takes ten seconds and more in the guest, a fork none.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mount_rig
from mount_rig import mountpoint
from tree_rig import KernelSide

from daxfs.pmem import kinds
from daxfs.tools import check as _loaded_before_the_fork  # noqa: F401
from daxfs.tools import cli
from daxfs.tools import info as _info  # noqa: F401
from daxfs.tools import make as _make  # noqa: F401
from support import fsck, run

with contextlib.redirect_stdout(None):
    cli.app(["info", "--help"], standalone_mode=False)  # loads what each fork would load anew, in seconds

mount_rig.LIMIT = 500.0
"""Seconds that one mount may live: the guest is some 16 times slower than the machine."""
mounted = mount_rig.mounted_unchecked
"""e2fsck can't read every device; `checked` has it checked."""

KINDS = ("fsdax", "devdax-2M", "devdax-4K", "sector", "ext4-dax", "xfs-dax")
"""What a pool can lie on: the namespaces of scripts/guest/inside.py, and files on a host file system with dax."""
DEVDAX = ("devdax-2M", "devdax-4K")
BLOCK = ("fsdax", "sector")

MIB = 1 << 20
POOL_MIB = 96
"""The size of a pool that is a file."""


def said(action: Callable[[], object], code: int = 0) -> str:
    """Call ``action`` in a fork, expect its exit code, and return what it and its children print."""
    with tempfile.TemporaryFile("w+") as output:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            ended = 255
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout = sys.stderr = os.fdopen(os.dup(1), "w", buffering=1)
                logging.getLogger().handlers.clear()  # pytest's own, whose files a daemon closes
                action()
                ended = 0
            except SystemExit as error:
                ended = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
            except BaseException as error:
                print(f"{type(error).__name__}: {error}")
            finally:
                sys.stdout.flush()
                os._exit(ended)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        text = output.read()
    assert found == code, f"exit {found}, expected {code}:\n{text}"
    return text


def daxfs(*arguments: str | Path, code: int = 0) -> str:
    """Run the command line in a fork, expect its exit code, and return what it prints."""

    def action() -> None:
        sys.argv = ["daxfs", *map(str, arguments)]
        cli.main()

    return said(action, code)


def mkfs(pool: Path, *options: str) -> Path:
    """Make a pool: on the whole device, whatever it holds, or a file of `POOL_MIB`."""
    device = stat.S_ISBLK(_mode(pool)) or stat.S_ISCHR(_mode(pool))
    daxfs("mkfs", pool, *(("-F",) if device else ("--size", f"{POOL_MIB}M")), *options)
    return pool


def _mode(path: Path) -> int:
    return path.stat().st_mode if path.exists() else 0


@contextlib.contextmanager
def kernel_mounted(device: Path, *options: str, kind: str = "ext4") -> Iterator[Path]:
    """Mount a device with the guest's kernel; unmount it at the end."""
    with mountpoint() as place:
        run("mount", "-t", kind, *(("-o", ",".join(options)) if options else ()), device, place)
        yield place
        run("umount", place)


@contextlib.contextmanager
def contents(pool: Path) -> Iterator[Path]:
    """A file with the pool's bytes: a sparse copy of a devdax, which can't be read(2), or the pool itself."""
    if not stat.S_ISCHR(_mode(pool)):
        yield pool
        return
    target = kinds.identify(str(pool))
    descriptor = os.open(pool, os.O_RDONLY)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as copy:
        with mmap.mmap(descriptor, target.size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            copy.truncate(target.size)
            zeros = bytes(MIB)
            for offset in range(0, target.size, MIB):
                piece = memory[offset : offset + MIB]
                if piece != zeros[: len(piece)]:
                    os.pwrite(copy.fileno(), piece, offset)
        os.close(descriptor)
        yield Path(copy.name)


def checked(pool: Path) -> None:
    """``e2fsck -fn`` finds nothing in the pool."""
    with contents(pool) as file:
        fsck(file)


def plant(root: Path) -> None:
    """Make a small tree with every type of inode and every kind of file: a request takes 10 to 30 ms in the guest."""
    side = KernelSide(root)
    for directory in (b"files", b"many", b"deep", b"deep/deeper"):
        side.mkdir(directory)
    side.write(b"files/empty", 0, b"")
    for size in (1, 59, 4096, 5000, 70_000, 2 * MIB, 3 * MIB + 17):
        side.write(b"files/%d" % size, 0, os.urandom(size))
    for offset in (0, 100_000, 6 * MIB):  # no larger: pyfuse3 has no SEEK_DATA, and reads each 64 KiB of a hole
        side.write(b"files/sparse", offset, os.urandom(5000))
    side.truncate(b"files/70000", 66_001)
    for number in range(30):
        side.write(b"many/" + b"n%03d" % number * 10, 0, b"%d" % number)
    for number in range(0, 30, 2):
        side.unlink(b"many/" + b"n%03d" % number * 10)
    side.symlink(b"files/1", b"deep/short")
    side.symlink(b"t" * 1000, b"deep/long")
    side.link(b"files/5000", b"deep/deeper/link")
    side.mknod(b"deep/fifo", stat.S_IFIFO | 0o600)
    side.setxattr(b"files/59", b"user.small", b"value")
    side.setxattr(b"files/59", b"user.large", os.urandom(3000))
    side.chmod(b"files/1", 0o4751)
    side.chown(b"files/1", 1000, 70_000)
    side.rename(b"files/4096", b"deep/deeper/moved")
