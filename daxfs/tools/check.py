"""``daxfs check`` and ``fsck.daxfs``: run e2fsck on a pool that is not in use, with e2fsck's output and exit code."""

from __future__ import annotations

import contextlib
import getopt
import os
import subprocess
from collections.abc import Iterator, Sequence

from daxfs.errors import FsError, PoolError, UserError
from daxfs.fs import mounting
from daxfs.pmem import exclusive, kinds
from daxfs.pmem.pool import open_pool
from daxfs.tools.e2fsprogs import find_tool

OPERATIONAL_ERROR = 8  # fsck(8)
USAGE = 16  # fsck(8)

UNASKED = frozenset(("-p", "-a", "-y"))
"""Options with which e2fsck repairs without asking."""
_E2FSCK_OPTIONS = "panyrcdfvtFVkDb:B:C:E:j:l:L:N:P:z:ST:AMRs"


def check(path: str, options: Sequence[str]) -> int:
    """Run e2fsck and return its exit code (fsck(8): 0 clean, 1 corrected, 4 left uncorrected, 8 failed, ...).

    Raises:
        UserError: the pool is in use, can't be opened, or is neither a file nor a block device.
    """
    program = find_tool("e2fsck")
    path = kinds.lasting_path(path)
    target = _target(path)
    mended = bool(UNASKED.intersection(options)) and _mend(path)
    with _held(target, read_only="-n" in options):
        done = subprocess.run([program, *options, "--", path], check=False)
    return done.returncode | mended if done.returncode >= 0 else OPERATIONAL_ERROR


def _mend(path: str) -> bool:
    """Repair a superblock torn by a power cut, at which ``e2fsck -p`` stops; return whether it was (docs/CRASH.md)."""
    try:
        with open_pool(path, read_only=True, exclusively=False) as pool:
            if not mounting.read_superblock(pool).is_torn():
                return False
        with open_pool(path) as pool:
            pool.refuse_clients()
            mended = mounting.mend_superblock(pool)
    except PoolError as error:
        raise PoolError(str(error), OPERATIONAL_ERROR) from None
    except FsError:
        return False  # e2fsck reports the fault
    if mended:
        print(f"{path}: the superblock was torn by a power cut; recovered from the journal")
    return mended


def _target(path: str) -> kinds.Target:
    try:
        target = kinds.identify(path)
    except PoolError as error:
        raise PoolError(str(error), OPERATIONAL_ERROR) from None
    if target.kind == kinds.DEVDAX:
        raise UserError(
            f"{path} is a character device, which e2fsck can't read; check a copy of its content", OPERATIONAL_ERROR
        )
    return target


@contextlib.contextmanager
def _held(target: kinds.Target, *, read_only: bool) -> Iterator[None]:
    """Keep other users out of the pool. A block device is only tested: e2fsck itself opens it with O_EXCL."""
    try:
        guard = exclusive.claim(target, read_only=read_only)
        try:
            if not read_only:
                # e2fsck could give blocks to other files that stale clients may still store to; a mount does not.
                exclusive.refuse_clients(guard, target.path)
        except PoolError:
            os.close(guard)
            raise
    except PoolError as error:
        raise PoolError(str(error), OPERATIONAL_ERROR) from None
    if target.kind == kinds.BLOCK:
        os.close(guard)
        yield
        return
    try:
        yield
    finally:
        os.close(guard)


def check_arguments(arguments: Sequence[str]) -> int:
    """Run ``fsck.daxfs [options] POOL``, as fsck(8) calls it, with e2fsck's options.

    Raises:
        UserError: as `check`, or a wrong argument.
    """
    try:
        pairs, places = getopt.gnu_getopt(list(arguments), _E2FSCK_OPTIONS)
    except getopt.GetoptError as error:
        raise UserError(f"fsck.daxfs: {error}; usage: fsck.daxfs [-panyfv] POOL", USAGE) from None
    if len(places) != 1:
        raise UserError("usage: fsck.daxfs [-panyfv] POOL", USAGE)
    return check(places[0], [name + value for name, value in pairs])
