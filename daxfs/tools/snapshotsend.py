"""``daxfs snapshot send`` and ``receive``: a snapshot, or what has changed since another one, in one stream.

A stream (`daxfs.snapshots.stream`) is written to a pipe or a file, and received into a file or another pool that nobody
uses. What was received is the moment itself, as a reader of the snapshot sees it: the base of the next stream must be
unchanged. Its record (`daxfs.snapshots.received`) says what it holds; while a stream is being received it has no
superblock, so that an interrupted one is no file system, and goes on where it has stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from daxfs.errors import FsError, UserError
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import imaging
from daxfs.pmem import kinds
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.snapshots import received
from daxfs.snapshots.received import INCOMPLETE, WHOLE, Received
from daxfs.snapshots.stream import (
    DATA,
    END,
    HEADER_BYTES,
    NO_BASE,
    Begin,
    DamagedStream,
    Position,
    Record,
    begin_of,
    first_number,
    records,
    written,
)
from daxfs.tools import exporting, importing, snapshotsource, targets
from daxfs.tools.ending import unwinding
from daxfs.tools.sizes import format_size
from daxfs.tools.snapshotsource import FAILED, Source

STREAM = "-"
NOTED_BYTES = 64 << 20
"""How many bytes of a stream an interruption may cost."""


def send(place: str, name: str, file: str = STREAM, *, since: str = "", start: int = 0, force: bool = False) -> None:
    """Write the stream of a snapshot.

    Args:
        place: a mountpoint or pool.
        name: of the snapshot.
        file: a new file, or ``-`` for standard output.
        since: another snapshot; then only what has changed since then.
        start: leave out so many bytes, which were received before.
        force: replace the file.

    Raises:
        UserError: there is no such snapshot, it is lost, or not newer than ``since``; the file exists.
        FsError: EIO, a snapshot is lost or deleted meanwhile, or the mount is gone.
    """
    if file == STREAM and sys.stdout.isatty():
        raise UserError(
            "a stream can't be written to a terminal; give a file, or redirect standard output", os.EX_USAGE
        )
    with snapshotsource.opened(place) as source, unwinding():
        made = _stream(source, name, since)
        if file == STREAM:
            _write(sys.stdout.fileno(), made, start)
            return
        exporting.refuse_existing(source.pool.path, file, force=force)
        with exporting.naming(file), exporting.appearing(file, replace=force) as descriptor:
            _write(descriptor, made, start)
            os.fsync(descriptor)


def _stream(source: Source, name: str, since: str) -> Iterator[bytes]:
    """Return the stream of a snapshot, whose arguments are checked already."""
    newer = snapshotsource.valid(source, name)
    past = source.past(newer)
    numbers = imaging.chunks(source.pool, past)
    base = NO_BASE
    if since:
        older = snapshotsource.valid(source, since)
        order = [each.uuid for each in source.listing()]
        if older.uuid == newer.uuid or order.index(older.uuid) > order.index(newer.uuid):
            raise UserError(f"{source.name}: snapshot {name} is not newer than {since}", FAILED)
        base = older.uuid
        before = imaging.chunks(source.pool, source.past(older))
        overwritten = np.fromiter(source.overwritten(older, newer), np.intp)
        numbers = np.union1d(np.setdiff1d(numbers, before), np.intersect1d(numbers, overwritten))
    first = SUPERBLOCK_OFFSET >> past.chunk_bits
    numbers = numbers[numbers != first]
    size = source.pool.size
    last = size - 1 >> past.chunk_bits
    cut = (last + 1 << past.chunk_bits) - size if len(numbers) and numbers[-1] == last else 0
    data = (len(numbers) + 1 << past.chunk_bits) - cut

    def contents() -> Iterator[tuple[int, bytes]]:
        if len(numbers):
            yield from imaging.parts(source.pool, past, numbers)
        yield first << past.chunk_bits, past.read(first << past.chunk_bits, 1 << past.chunk_bits)

    return written(Begin(past.chunk_bits, size, data, newer.uuid, base), contents())


def _write(descriptor: int, made: Iterator[bytes], start: int) -> None:
    at = 0
    for part in made:
        view = memoryview(part)[max(start - at, 0) :]
        at += len(part)
        while view:
            view = view[os.write(descriptor, view) :]
    if start > at:
        raise UserError(f"the stream has {at} bytes, fewer than the {start} that are left out", os.EX_USAGE)


def receive(path: str, file: str = STREAM, *, force: bool = False) -> None:
    """Store a stream in an image or pool that nobody uses.

    Args:
        path: the target; a file that does not exist is created.
        file: the stream, or ``-`` for standard input.
        force: overwrite what the target holds, if the stream needs no base.

    Raises:
        UserError: the stream is damaged, or does not suit the target; the target is unchanged or `INCOMPLETE`.
        PoolError: the target is in use or can't be opened.
        MissingMemory: it has no room, or memory of it is missing.
    """
    with _input(file) as read, unwinding():
        head = read(HEADER_BYTES)
        try:
            whole = first_number(head) == 0
        except DamagedStream as error:
            raise UserError(error.strerror or "", os.EX_DATAERR) from None
        given = _again(head, read)
        if whole:
            _receive_whole(path, given, force=force)
        else:
            _receive_rest(path, given)


def _receive_whole(path: str, read: Callable[[int], bytes], *, force: bool) -> None:
    """Receive a stream from its beginning."""
    found = records(read, Position())
    try:
        opening = next(found)
        begin = begin_of(opening)
    except DamagedStream as error:
        raise UserError(f"{error.strerror}; {path} is unchanged", os.EX_DATAERR) from None
    made = not os.path.lexists(path)
    if made:
        if begin.base != NO_BASE:
            raise UserError(f"{path} does not exist, and the stream needs a base", FAILED)
        _create(path, begin.size)
    try:
        opened_pool = open_pool(path)
    except BaseException:
        if made:  # a size that no pool can have
            os.unlink(path)
        raise
    with opened_pool as pool:
        pool.refuse_clients()
        held = received.found(pool)
        _refuse(pool, held, begin, force=force)
        _store(pool, Received(INCOMPLETE, held.generation + 1 if held else 0, begin, opening.after), found)


def _receive_rest(path: str, read: Callable[[int], bytes]) -> None:
    """Go on with a stream of which the target has the beginning."""
    with open_pool(path) as pool:
        pool.refuse_clients()
        held = received.found(pool)
        if held is None or held.state != INCOMPLETE:
            raise UserError(f"{path} does not hold the beginning of this stream; send it without --from", FAILED)
        _store(pool, held._replace(generation=held.generation + 1), records(read, held.position))


def _refuse(pool: Pool, held: Received | None, begin: Begin, *, force: bool) -> None:
    """Refuse a target that is too small, has content, or is not the base."""
    path = pool.path
    if begin.size > pool.size:
        raise UserError(f"{path} has {format_size(pool.size)}, the stream {format_size(begin.size)}", FAILED)
    if held is not None and held.state == INCOMPLETE:
        if begin.base not in (NO_BASE, held.begin.base) or (begin.base != NO_BASE and held.begin.uuid != begin.uuid):
            raise UserError(f"{path} holds a part of another stream; only that one, or one without a base", FAILED)
        return
    if begin.base == NO_BASE:
        if not force:
            targets.refuse_content(path, lambda at, count: bytes(pool.memory[at : at + count]), "add --force")
        return
    if held is None or held.begin.uuid != begin.base:
        raise UserError(f"{path} does not hold the snapshot that the stream goes on from", FAILED)
    if held.superblock != received.superblock_of(pool):
        raise UserError(f"{path} was changed since it was received; the stream goes on from what it was", FAILED)


def _store(pool: Pool, note: Received, found: Iterator[Record]) -> None:
    """Store records; from the first note on the target is incomplete, to the last one."""
    begin, path = note.begin, pool.path
    received.store(pool, note)
    pool.zero(SUPERBLOCK_OFFSET, Superblock.SIZE)
    superblock: bytes | None = None

    def noted(position: Position, state: int = INCOMPLETE, checksum: int = 0) -> Received:
        made = Received(state, note.generation + 1, begin, position, checksum)
        received.store(pool, made)
        return made

    good = note.position
    try:
        for kind, offset, payload, after in found:
            if kind == DATA:
                _check_place(begin, offset, len(payload), last=superblock is not None)
                pool.make_room(offset, len(payload))
                if offset == 0:
                    superblock = payload
                    continue  # it is stored at the end, and asked for again by whoever goes on before that
                pool.write(offset, payload)
                good = after
                if good.offset - note.position.offset >= NOTED_BYTES:
                    note = noted(good)
            elif kind == END:
                if superblock is None or after.data != begin.data:
                    raise DamagedStream("the stream lacks what it says it holds")
                _clear_unused(pool, begin, superblock)
                pool.fence()
                pool.write(0, superblock[: received.PLACES[0]])
                pool.write(received.END, superblock[received.END :])
                noted(after, WHOLE, received.superblock_of(pool))
                print(f"{path}: {format_size(after.data)} received", file=sys.stderr)
            else:
                raise DamagedStream("the stream begins a second time")
    except BaseException as error:
        noted(good)
        if not isinstance(error, DamagedStream):
            raise
        raise UserError(
            f"{error.strerror}; {path} is incomplete; go on with: daxfs snapshot send ... --from {good.offset}",
            os.EX_DATAERR,
        ) from None


def _clear_unused(pool: Pool, begin: Begin, superblock: bytes) -> None:
    """Give back the memory of a file that the image does not use. Of a device only the log is cleared.

    What the target held before must not be in the log: transactions of an earlier life have numbers that come again.
    """
    past = imaging.Unfinished(pool, begin.chunk_bits, superblock)
    try:
        if pool.kind in (kinds.FILE, kinds.TMPFS, kinds.FSDAX):
            for begin_at, end in list(imaging.unused(pool, past, begin.size)):
                pool.discard(begin_at, end - begin_at)
        else:
            for begin_at, end in list(imaging.log_of(pool, past)):
                pool.zero(begin_at, end - begin_at)
    except FsError as error:
        print(f"{pool.path}: what the image does not use is kept: {error.strerror}", file=sys.stderr)


def _check_place(begin: Begin, offset: int, length: int, *, last: bool) -> None:
    """Refuse what was made by no sender: a checksum can be made for anything."""
    chunk = (1 << begin.chunk_bits) - 1
    end = offset + length
    cut = end == begin.size
    if last or not length or offset & chunk or end > begin.size or (end & chunk and not cut):
        raise DamagedStream("the stream has data in an impossible place")
    if offset == 0 and length != chunk + 1:
        raise DamagedStream("the stream has more than the superblock in its place")


def _create(path: str, size: int) -> None:
    """Make an empty sparse file for an image, which only its owner may read: it will hold the files of all users."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        targets.resize(path, descriptor, size)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    targets.sync_folder(path)


@contextmanager
def _input(file: str) -> Iterator[Callable[[int], bytes]]:
    """Open a stream for reading."""
    if file == STREAM:
        yield importing.standard_input()
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", os.EX_NOINPUT) from None
    with opened:
        yield opened.read


def _again(head: bytes, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a function that reads what was read already, and then on."""
    rest = head

    def both(count: int) -> bytes:
        nonlocal rest
        if rest:
            first, rest = rest[:count], rest[count:]
            return first if len(first) == count else first + read(count - len(first))
        return read(count)

    return both
