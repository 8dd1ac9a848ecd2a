"""``daxfs export``: copy a whole pool into a sparse file, or into a pipe.

The copy is byte-identical, free blocks included: it needs no trust in the bitmaps of a damaged file system, and keeps
what an undelete could find. Holes of the pool and runs of zeros become holes. A file appears under its name only when
it is complete and durable.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from daxfs.errors import FsError, UserError
from daxfs.fs.tiers import members
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange
from daxfs.tools import pieces, targets
from daxfs.tools.ending import unwinding
from daxfs.tools.imagecopy import Progress
from daxfs.tools.pieces import Piece
from daxfs.tools.progress import progress_bar
from daxfs.tools.sizes import format_size

STREAM = "-"
_FAILED = 1
_SECTOR = 512


def run(path: str, file: str, *, force: bool = False, rescue: bool = False) -> None:
    """Copy the pool ``path`` to ``file`` (``-``: standard output), show the progress, and print what was done.

    Raises:
        UserError: as `export`; or memory was missing, and the copy (``rescue``) has zeros in its place.
    """
    started = time.monotonic()
    lost: list[ByteRange] = []
    with unwinding(), progress_bar() as progress:
        written = export(path, file, force=force, lost=lost if rescue else None, progress=progress)
    if written is not None:
        size, stored = written
        seconds = time.monotonic() - started
        print(f"{file}: {format_size(size)}, {format_size(stored)} of them stored, {seconds:.2f} s")
    if lost:
        total = sum(end - begin for begin, end in lost)
        raise UserError(
            f"{path}: {total} bytes from offset {lost[0].begin} on, in {len(lost)} ranges, are missing and zero in the "
            f"copy; see: daxfs badblocks {path}",
            _FAILED,
        )


def export(
    path: str,
    file: str,
    *,
    force: bool = False,
    lost: list[ByteRange] | None = None,
    progress: Progress | None = None,
) -> tuple[int, int] | None:
    """Copy a pool that is not in use.

    Args:
        path: the pool.
        file: a path, or ``-`` for standard output; a FIFO is written as a stream.
        force: replace an existing file.
        lost: gets the ranges of missing memory, which become zeros; None: missing memory is an error.
        progress: reports bytes.

    Returns:
        The bytes of the file, and those that it takes on its file system; None for a stream.

    Raises:
        PoolError: the pool is in use or can't be opened.
        UserError: the file exists or can't be replaced.
        MissingMemory: EIO, memory of the pool is missing; there is no file then.
        OSError: the file can't be written; there is none then.
    """
    if _is_stream(file):
        name = "standard output" if file == STREAM else file
        with naming(name), _stream(file) as descriptor, _opened(path, lost, progress) as (_, found):
            try:
                pieces.into_stream(descriptor, found)
            except BrokenPipeError:
                raise UserError("the reader of the export has ended before the end of the pool", _FAILED) from None
        return None
    refuse_existing(path, file, force=force)
    with naming(file), _opened(path, lost, progress) as (pool, found), appearing(file, replace=force) as descriptor:
        pieces.into_file(descriptor, found)
        os.ftruncate(descriptor, pool.size)
        os.fsync(descriptor)
        return pool.size, os.fstat(descriptor).st_blocks * _SECTOR


@contextmanager
def _opened(
    path: str, lost: list[ByteRange] | None, progress: Progress | None
) -> Iterator[tuple[Pool, Iterator[Piece]]]:
    """Claim and map the pool; provide it and its pieces."""
    with open_pool(path, read_only=True) as pool:
        pool.refuse_clients()
        if members.has_storage(pool):
            raise UserError(f"{path} has storage (docs/TIERS.md); pools with storage can't be exported", _FAILED)

        def report(_piece: Piece, done: int) -> None:
            if progress is not None:
                progress("exporting", done, pool.size)

        yield pool, pieces.reported(pieces.of_pool(pool, lost), report)


def _is_stream(file: str) -> bool:
    if file == STREAM:
        return True
    with suppress(FileNotFoundError):
        return stat.S_ISFIFO(os.stat(file).st_mode)
    return False


@contextmanager
def _stream(file: str) -> Iterator[int]:
    """Provide the descriptor to write a stream to."""
    if file == STREAM:
        if sys.__stdout__ is None:  # `cli.prepare` has put /dev/null in its place
            raise UserError("standard output is closed; give a file, or redirect standard output", os.EX_USAGE)
        if os.isatty(sys.stdout.fileno()):
            raise UserError(
                "a pool can't be written to a terminal; give a file, or redirect standard output", os.EX_USAGE
            )
        yield sys.stdout.fileno()
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refuse_existing(path: str, file: str, *, force: bool) -> None:
    """Refuse (UserError) what can't be replaced by a copy of the pool ``path``, or not without ``force``."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{file} is a directory; name a file in it", _FAILED)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{file} is a device; a copy on it is made by: daxfs import {path} {file}", _FAILED)
    if os.path.exists(path) and os.path.samefile(path, file):
        raise UserError(f"{file} is the pool itself", _FAILED)
    if not force:
        raise UserError(f"{file} exists; to replace it add --force", _FAILED)


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Have the error of a system call name the file that the user gave."""
    try:
        yield
    except FsError:
        raise
    except OSError as error:
        error.filename = file
        raise


@contextmanager
def appearing(file: str, *, replace: bool) -> Iterator[int]:
    """Provide an open file that gets its name when the body has ended, and is removed if that fails."""
    place = os.path.realpath(file)
    folder, name = os.path.split(place)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name[:200]}.", dir=folder)
    try:
        yield descriptor
        if replace:
            os.rename(temporary, place)
        else:
            _name(temporary, place, file)
        targets.sync_folder(place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _name(temporary: str, place: str, file: str) -> None:
    """Give the file its name, unless another file has got that name meanwhile."""
    try:
        os.link(temporary, place)
    except FileExistsError:
        raise UserError(f"{file} exists by now; to replace it add --force", _FAILED) from None
    except OSError:  # a file system without hard links
        os.rename(temporary, place)
        return
    os.unlink(temporary)
