"""``daxfs check`` and ``fsck.daxfs``: run e2fsck on a pool that is not in use, with e2fsck's output and exit code."""

from __future__ import annotations

import contextlib
import getopt
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

from daxfs.errors import FsError, UserError
from daxfs.fs import mounting, opening
from daxfs.fs.tiers import members
from daxfs.pmem import exclusive, kinds
from daxfs.pmem.opening import open_pool
from daxfs.tools.e2fsprogs import find_tool

OPERATIONAL_ERROR = 8  # fsck(8)
USAGE = 16  # fsck(8)

UNASKED = frozenset(("-p", "-a", "-y"))
"""Options with which e2fsck repairs without asking."""
_E2FSCK_OPTIONS = "panyrcdfvtFVkDb:B:C:E:j:l:L:N:P:z:ST:AMRs"


def check(path: str, options: Sequence[str]) -> int:
    """Run e2fsck and return its exit code (fsck(8): 0 clean, 1 corrected, 4 left uncorrected, 8 failed, ...).

    Raises:
        UserError: the pool is in use or can't be opened, or it can't be served to e2fsck (`mappedcheck`).
    """
    program = find_tool("e2fsck")
    path = kinds.lasting_path(path)
    try:
        target = kinds.identify(path)
        mended = bool(UNASKED.intersection(options)) and _mend(path)
        code = _runner(target, path)(program, options, path)
    except UserError as error:
        raise UserError(str(error), OPERATIONAL_ERROR) from None
    return code | mended if code >= 0 else OPERATIONAL_ERROR


def _runner(target: kinds.Target, path: str) -> Callable[[str, Sequence[str], str], int]:
    """Return the function that runs e2fsck on this pool."""
    if not target.only_mapped and not _has_storage(path):
        return _run
    from daxfs.tools import mappedcheck

    return mappedcheck.run


def _has_storage(path: str) -> bool:
    with open_pool(path, read_only=True, exclusively=False) as pool:
        return members.has_storage(pool)


def _run(program: str, options: Sequence[str], path: str) -> int:
    """Run e2fsck on a file or block device, which it reads and writes itself."""
    with _held(kinds.identify(path), read_only="-n" in options):
        return subprocess.run([program, *options, "--", path], check=False).returncode


def _mend(path: str) -> bool:
    """Recover what e2fsck can't; return whether a superblock torn by a power cut was repaired (docs/CRASH.md).

    ``e2fsck -p`` stops at such a superblock. Fast commits it replays in part.
    """
    try:
        with open_pool(path, read_only=True, exclusively=False) as pool, pool.faults.checked():
            fast = mounting.may_have_fast_commits(pool)
            if not fast and not mounting.read_superblock(pool).is_torn():
                return False
        with opening.open_pool(path) as pool:
            pool.refuse_clients()
            mended = mounting.mend_superblock(pool)
            if fast and not mended:
                mounting.recover_in_place(pool)
    except FsError:
        return False  # e2fsck reports the fault
    if fast:
        print(f"{path}: recovered from the journal, which may have fast commits")
    if mended:
        print(f"{path}: the superblock was torn by a power cut; recovered from the journal")
    return mended


@contextlib.contextmanager
def _held(target: kinds.Target, *, read_only: bool) -> Iterator[None]:
    """Keep other users out of the pool. A block device is only tested: e2fsck itself opens it with O_EXCL."""
    guard = exclusive.claim(target, read_only=read_only)
    try:
        if not read_only:
            # e2fsck could give blocks to other files that stale clients may still store to; a mount does not.
            exclusive.refuse_clients(guard, target.path)
        if target.kind != kinds.BLOCK:
            yield
    finally:
        os.close(guard)
    if target.kind == kinds.BLOCK:
        yield


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
