"""``daxfs import``: copy a whole file system from a file, a device or a pipe into a pool.

The source is mapped like a pool, so it may be one: any kind can be copied to any kind. The superblock of the target is
wiped first and stored last, after a fence, so that an interrupted import is not a file system.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daxfs.errors import UserError
from daxfs.ext4.superblock import EXT4_SUPER_MAGIC, SUPERBLOCK_OFFSET, Superblock
from daxfs.pmem import kinds
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.tools import pieces, room, targets
from daxfs.tools.ending import unwinding
from daxfs.tools.imagecopy import Progress
from daxfs.tools.pieces import HEAD, Piece
from daxfs.tools.progress import progress_bar
from daxfs.tools.sizes import format_size

STREAM = "-"
_FAILED = 1


@dataclass(frozen=True, slots=True)
class Source:
    """What is imported.

    Attributes:
        name: for messages.
        head: the first `HEAD` bytes.
        size: bytes; of a stream those that its superblock announces, 0 if it has none.
        pieces: the content, in order; of a stream without the head. Can be read once.
    """

    name: str
    head: bytes
    size: int
    pieces: Iterator[Piece]


@dataclass(frozen=True, slots=True)
class Options:
    """How to import.

    Attributes:
        force: overwrite recognisable content, and copy what is not a whole ext4.
        sparse: leave the holes of a file; otherwise all of it is allocated.
        keep_mode: an existing file keeps its mode; otherwise it gets 0600.
        trust_owner: accept a pool that users besides root and this user can change.
    """

    force: bool = False
    sparse: bool = False
    keep_mode: bool = False
    trust_owner: bool = False


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `import_pool`; sizes are in bytes.

    Attributes:
        kind: of the pool, as ``daxfs info`` names it.
        size: of the pool.
        copied: bytes of the source.
    """

    kind: str
    size: int
    copied: int


def run(file: str, path: str, options: Options = DEFAULTS) -> None:
    """Copy ``file`` (``-``: standard input) into the pool ``path``, show the progress, and print what was done."""
    started = time.monotonic()
    with unwinding(), progress_bar() as progress:
        report = import_pool(file, path, options, progress)
    seconds = time.monotonic() - started
    print(f"{path}: {format_size(report.copied)} copied to {report.kind}, {seconds:.2f} s")
    if report.copied < report.size:
        print(f"{path} has {format_size(report.size)}; the file system in it keeps its size")


def import_pool(file: str, path: str, options: Options = DEFAULTS, progress: Progress | None = None) -> Report:
    """Copy a file system into a pool that is not in use.

    Args:
        file: a file or device, or ``-`` for standard input.
        path: the pool. A file that does not exist is created.
        options: what may be overwritten and trusted, and what a file gets.
        progress: reports bytes.

    Raises:
        PoolError: one of the two is in use or can't be opened.
        UserError: the file holds no ext4 or not all of it, or does not fit; the pool has content, or can be changed by
            others; there is no room. A file that was created for the pool is removed again.
        MissingMemory: memory of the file or the pool is missing (EIO), or there is no room for the pool (ENOSPC).
    """
    if os.path.exists(path) and file != STREAM and os.path.exists(file) and os.path.samefile(file, path):
        raise UserError(f"{file} is the pool itself", _FAILED)
    with _opened(file) as source:
        if not options.force:
            _refuse_incomplete(source)
        created = not os.path.lexists(path)
        if created and not source.size:
            text = f"{source.name} does not say how large it is, and {path} does not exist; truncate -s SIZE makes it"
            raise UserError(text, _FAILED)
        with targets.file_of_size(path, source.size, trust_owner=options.trust_owner) as descriptor:
            with open_pool(path) as pool:
                _refuse(pool, source, force=options.force)
                is_file = pool.kind not in (kinds.BLOCK, kinds.DEVDAX)
                if is_file and not options.sparse:
                    room.require(path, descriptor, pool.size)
                    room.fill(path, descriptor, pool.size, pool.kind)
                if is_file and not options.keep_mode:
                    targets.restrict(path, descriptor)
                copied = _fill(pool, source, progress)
            if is_file:
                os.fsync(descriptor)
        if created:
            targets.sync_folder(path)
        return Report(pool.kind, pool.size, copied)


def _refuse(pool: Pool, source: Source, *, force: bool) -> None:
    """Refuse a pool that is too small, still has clients, or has content."""
    if source.size > pool.size:
        raise UserError(
            f"{pool.path} has {format_size(pool.size)}, less than the {format_size(source.size)} of {source.name}",
            _FAILED,
        )
    pool.refuse_clients()
    if not force:
        targets.refuse_content(
            pool.path, lambda offset, length: bytes(pool.memory[offset : offset + length]), "add --force"
        )
        pool.faults.check()


def _fill(pool: Pool, source: Source, progress: Progress | None) -> int:
    """Store the source in the pool; return its bytes."""
    copied = HEAD

    def fitting() -> Iterator[Piece]:
        nonlocal copied
        for piece in source.pieces:
            copied = max(copied, piece.offset + piece.length)
            if copied > pool.size:
                raise UserError(f"{source.name} does not fit into the {format_size(pool.size)} of {pool.path}", _FAILED)
            yield piece
        if copied < source.size:
            raise UserError(f"{source.name} ended after {copied} of {source.size} bytes", _FAILED)

    def report(_piece: Piece, _done: int) -> None:
        if progress is not None:
            progress("importing", copied, max(copied, source.size))

    pieces.into_pool(pool, source.head, pieces.reported(fitting(), report))
    return copied


def standard_input() -> Callable[[int], bytes]:
    """Return what reads standard input.

    Raises:
        UserError: it is a terminal.
    """
    if sys.stdin.isatty():
        raise UserError("standard input is a terminal; give a file, or redirect standard input", os.EX_USAGE)
    return sys.stdin.buffer.read


@contextmanager
def _opened(file: str) -> Iterator[Source]:
    """Open the source of an import.

    Raises:
        UserError: there is no such file, or standard input is a terminal.
    """
    if file == STREAM:
        yield _of_stream("standard input", standard_input())
        return
    try:
        status = os.stat(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", os.EX_NOINPUT) from None
    if stat.S_ISFIFO(status.st_mode):
        with open(file, "rb") as stream:
            yield _of_stream(file, stream.read)
        return
    with open_pool(file, read_only=True) as pool:
        pool.refuse_clients()
        head = bytes(pool.memory[:HEAD])
        pool.faults.check()
        yield Source(file, head, pool.size, pieces.of_pool(pool))


def _of_stream(name: str, read: Callable[[int], bytes]) -> Source:
    head = read(HEAD)
    if len(head) < HEAD:
        raise UserError(f"{name} has {len(head)} bytes, too few for a file system", _FAILED)
    return Source(name, head, _ext4_size(head), pieces.of_stream(read, HEAD))


def _refuse_incomplete(source: Source) -> None:
    """Refuse a source that has no ext4, or not all of it."""
    size = _ext4_size(source.head)
    if not size:
        raise UserError(f"{source.name} holds no ext4 file system; to copy it in any case add --force", _FAILED)
    if size > source.size:
        raise UserError(f"{source.name} has {source.size} bytes, and its file system {size}: it was cut short", _FAILED)


def _ext4_size(head: bytes) -> int:
    """Return the bytes of the ext4 that begins with ``head``; 0 if it is none. The checksum may be torn."""
    sb = Superblock(memoryview(bytearray(head[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + Superblock.SIZE])))
    return sb.blocks_count * sb.block_size if sb.s_magic == EXT4_SUPER_MAGIC else 0
