"""Workloads of clients, which store into the pool by themselves; their stores are in the record, too.

The client is `daxfs.direct`, in this process: its requests are answered by a file system on a recording pool, without a
mount. What it stores, writes back and waits for is noted as it happens, for both ways in which stores become durable:
``lines`` (libpmem: cache lines are written back, a fence waits) and ``msync`` (the daemon's fence and the client's
flush are calls of msync).

The oracle is `crash_rig.Run`'s, with a moment at each request, and with this about bytes:

* A size that the client notifies after its flush is never durable before the bytes up to it.
* Bytes that were not flushed are what they were before, zeros where blocks were granted, or what was stored since, word
  by word. They are never what a block held before it was the file's.
* What `flush` has returned for stays.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from crash_rig import Moment, Picture, Promise, Run, noise, take_picture, without_stores, words_agree
from lease_rig import token
from recorder import Fence, Flush, RecordingPool, Store
from tree_rig import QUIET

from daxfs import protocol
from daxfs.direct import files, lease_cache, requests
from daxfs.direct import pool as client_pool
from daxfs.direct.files import DirectFile
from daxfs.direct.missing import Guard
from daxfs.fs.filesystem import FileSystem, OpenFile
from daxfs.fs.types import LeaseRequest, SetAttributes, WriteNotification
from daxfs.pmem import persist
from daxfs.pmem.persist import Buffer, Library, Operations

PAGE = 4096
REFUSED = ("pread", "pwrite", "preadv", "fsync", "ftruncate")
"""System calls that would reach a file that is not there: a workload asks for nothing that the kernel must do."""


class LinesPool(RecordingPool):
    """A recorded pool that a client can map: ``mapped`` is the memory that it stores to."""

    persistence_of_clients = protocol.Persistence.LINES

    def __init__(self, content: bytearray) -> None:
        super().__init__(len(content))  # memory that begins on a page
        self.mapped[:] = content
        self.restart()

    def _visible(self, memory: memoryview, read_only: bool) -> memoryview:
        self.mapped = memory
        return super()._visible(memory, read_only)


class MsyncPool(LinesPool):
    """One whose fence is an msync of the pages that the daemon has stored to since the last one.

    `persist.msync` writes back the hull of these pages, and what clients have stored in between; nobody relies on that.
    """

    persistence_of_clients = protocol.Persistence.MSYNC

    def _operations(self, memory: memoryview) -> Operations:
        plain = persist.volatile(memory)
        record = self.events.append
        dirty: set[int] = set()

        def flush(offset: int, length: int) -> None:
            dirty.update(range(offset // PAGE, (offset + length - 1) // PAGE + 1))

        def write(offset: int, data: Buffer) -> None:
            plain.write(offset, data)
            record(Store(offset, bytes(data)))
            flush(offset, len(data))

        def zero(offset: int, length: int) -> None:
            plain.zero(offset, length)
            record(Store(offset, bytes(length)))
            flush(offset, length)

        def store_word(offset: int, value: int, size: int = 4) -> None:
            plain.store_word(offset, value, size)
            record(Store(offset, value.to_bytes(size, "little")))
            flush(offset, size)

        def fence() -> None:
            for page in sorted(dirty):
                record(Flush(page * PAGE, PAGE))
            dirty.clear()
            record(Fence())

        return Operations(persist.VOLATILE, write, zero, store_word, flush, fence, plain.retire, plain.follow_size)


POOLS = {"lines": LinesPool, "msync": MsyncPool}


def pages(offset: int, length: int) -> Flush:
    """Write-back of the pages that a range touches."""
    begin = offset - offset % PAGE
    return Flush(begin, offset + length - begin + -(offset + length) % PAGE)


def mapped(pool: LinesPool, fs: FileSystem) -> client_pool.Pool:
    """The pool as a client has it after `daxfs.direct.pool.attach`; what it stores and flushes goes into the record.

    A fence waits for the write-backs of its own processor. So a client's go into the record with the client's fence,
    and the daemon's fence makes none of them durable.
    """
    fs.grants.page.ensure()
    assert token(fs)
    record = protocol.Pool(
        pool.persistence_of_clients, 1, 2, 0, pool.size, fs.volume.block_size, 0, b"", b"/", token=fs.grants.page.token
    )
    events = pool.events
    first = ctypes.addressof(ctypes.c_char.from_buffer(pool.mapped))

    under_way: list[Flush] = []

    def flush(address: int, length: int) -> None:
        under_way.append(Flush(address - first, length))

    def drain() -> None:
        events.extend(under_way)
        under_way.clear()
        events.append(Fence())

    def copy(target: int, source: Any, length: int, _flags: int) -> None:
        ctypes.memmove(target, source, length)
        flush(target, length)

    def fill(target: int, value: int, length: int, _flags: int) -> None:
        ctypes.memset(target, value, length)
        flush(target, length)

    library = Library(flush=flush, drain=drain, copy=copy, fill=fill)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(persist, "load_libpmem", lambda: library)
        descriptor = os.open(os.devnull, os.O_RDONLY)
        made = client_pool.Pool(record, descriptor, pool.mapped, Guard(None), 0)  # type: ignore[arg-type]
    store = made.store
    assert store is not None

    def recorded(offset: int, data: Buffer) -> None:
        events.append(Store(offset, bytes(data)))
        store(offset, data)

    made.store = recorded
    return made


class Range(NamedTuple):
    """From event ``position`` on, the bytes [begin, end) of an inode are those of moment ``index`` or later ones."""

    position: int
    index: int
    ino: int
    begin: int
    end: int


class Client:
    """One process with open files, and the daemon that answers it."""

    def __init__(self, run: ClientRun) -> None:
        self.run = run
        self.fs = run.fs
        self.pool = mapped(run.pool, run.fs)
        self.serial = 100
        self.model = {ino: bytearray(content) for ino, content in run.moments[0].picture.contents.items()}
        self._files: dict[str, DirectFile] = {}
        self._opened: dict[int, OpenFile] = {}

    def new_bytes(self, size: int) -> bytes:
        """Others each time."""
        self.serial += 1
        return noise(size, self.serial)

    def write(self, name: str, offset: int, size: int) -> None:
        """Store new bytes, as pwrite(2) does."""
        content = self.new_bytes(size)
        self.file(name).pwrite(offset, content)
        self.stored(name, offset, content)

    def stored(self, name: str, offset: int, content: bytes) -> None:
        """Put into the model what was stored."""
        model = self.model[self.fs.tree.resolve(name)]
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + len(content)] = content

    def file(self, name: str) -> DirectFile:
        """An open file; the same one each time."""
        if name not in self._files:
            self._next = self.fs.open_file(self.fs.tree.resolve(name), os.O_RDWR)
            self._files[name] = made = DirectFile(os.devnull, "r+b")
            assert made.direct, made.why
        return self._files[name]

    def attach(self, descriptor: int) -> client_pool.Pool:
        """In place of `daxfs.direct.pool.attach`."""
        self._opened[descriptor] = self._next
        return self.pool

    def control(self, descriptor: int, number: int, record: bytes | bytearray) -> None:
        """In place of ioctl(2)."""
        file, durable = self._opened[descriptor], False
        if number in (protocol.IOC_LEASE, protocol.IOC_SHORT_LEASE):
            asked = protocol.Lease.unpack(record)
            room = protocol.room(len(record))
            request = LeaseRequest(asked.holder, asked.offset, asked.length, asked.flags, room, asked.token)
            found = self.fs.lease(file, request)
            extents = tuple(found.pieces)
            answer = asked._replace(next=found.next, size=found.size, entry=found.entry, epoch=found.epoch)
            answer = answer._replace(device=1, inode=2, extents=extents)
            assert isinstance(record, bytearray)
            answer.pack_into(record)
        elif number == protocol.IOC_APPENDED:
            base, size, holder, flags, _ = protocol.Appended.unpack(record)
            durable = bool(flags & protocol.DURABLE)
            self.fs.notify_stored(
                file, WriteNotification(size, base, durable, bool(flags & protocol.DATA_ONLY), holder)
            )
        else:
            size, flags = protocol.Stored.unpack(record)
            durable = bool(flags & protocol.DURABLE)
            self.fs.notify_stored(file, WriteNotification(size, durable=durable))
        self.run.moment("request")
        if durable:
            self.run.flushed(file.ino)

    def write_back(self, address: int, length: int) -> None:
        """In place of msync(2)."""
        assert address % PAGE == 0
        self.run.pool.events += pages(address - self.pool.address, length), Fence()

    def append(self, name: str, size: int) -> None:
        """Store past EOF, without a write notification."""
        self.write(name, self.file(name).size, size)

    def store(self, name: str, offset: int, size: int) -> None:
        """As through a mapping: plain stores, which nothing writes back."""
        cache = self.file(name)._cache
        assert cache is not None
        found = cache.lookup(offset, offset + size, store=True)
        assert found is not None
        content, done = self.new_bytes(size), 0
        for start, length in found.ranges:
            piece = content[done : done + length]
            self.run.pool.mapped[start : start + length] = piece
            self.run.pool.events.append(Store(start, piece))
            done += length
        self.stored(name, offset, content)

    def flush_range(self, name: str, offset: int, size: int) -> None:
        """Only this range, for which nothing is asked."""
        count = len(self.run.moments)
        self.file(name).flush(offset, size)
        assert len(self.run.moments) == count, "the daemon was asked"
        self.run.kept(self.fs.tree.resolve(name), offset, offset + size)

    def truncate(self, name: str, size: int) -> None:
        """Somebody else cuts the file."""
        ino = self.fs.tree.resolve(name)
        del self.model[ino][size:]
        self.fs.setattr(ino, SetAttributes(size=size))

    def snapshot(self) -> None:
        """Make a snapshot: it shows what was stored by now, and nothing that is stored later."""
        name = b"s%d" % len(self.run.past)
        self.run.past[name] = without_stores(take_picture(self.fs))
        self.fs.create_snapshot(name)
        self.run.durable("snapshot")

    def agree(self, picture: Picture) -> None:
        """Files hold what was stored, and zeros where nothing was."""
        for ino, content in picture.contents.items():
            assert content == self.model[ino][: len(content)].ljust(len(content), b"\0"), f"content of inode {ino}"

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            descriptor = file._descriptor
            file.close()
            self.fs.release(self._opened.pop(descriptor))
            self.run.moment("close")
        self._files.clear()


OPERATIONS: dict[str, Callable[[Client], object]] = {
    "append": lambda c: c.append("f", 2500),
    "append large": lambda c: c.append("g", 9000),
    "append and tell": lambda c: (c.append("f", 1500), c.file("f").size),
    "append and flush": lambda c: (c.append("f", 1800), c.file("f").flush()),
    "append blocks and flush": lambda c: (c.append("d/x", 8192), c.file("d/x").flush()),
    "overwrite": lambda c: c.write("f", 100, 1403),
    "overwrite and flush": lambda c: (c.write("f", 60, 700), c.file("f").flush()),
    "overwrite and flush a range": lambda c: (c.write("big", 900, 900), c.flush_range("big", 900, 900)),
    "fill a hole": lambda c: c.write("big", 12_345, 3000),
    "fill a hole and flush": lambda c: (c.write("big", 14_000, 2000), c.file("big").flush()),
    "store": lambda c: c.store("big", 3000, 1000),
    "store and flush a range": lambda c: (c.store("big", 5000, 900), c.flush_range("big", 5000, 900)),
    "truncate below": lambda c: c.truncate("f", 1000),
    "close": lambda c: c.close(),
    "snapshot": lambda c: c.snapshot(),
}
"""What a client does, and what is done to its files."""


class ClientRun(Run):
    """A client's workload; ``persistence`` is one of `POOLS`.

    Attributes:
        past: what each snapshot must show.
    """

    pool: LinesPool

    def __init__(self, content: bytes, steps: tuple[tuple[str, str], ...], persistence: str) -> None:
        self.recorder = POOLS[persistence]
        self._flushed: dict[int, list[int]] = {}
        self._ranges: list[Range] = []
        self.past: dict[bytes, Picture] = {}
        super().__init__(content, steps)

    def _work(self, *, close: bool) -> None:
        assert not close
        self.fs = FileSystem.open(self.pool, QUIET)
        self.laps = []
        self.moments = [Moment("start", 0, 0, take_picture(self.fs))]
        client = self.client = Client(self)
        with in_place_of_the_kernel(client):
            self.moment("mapped")
            self.start = len(self.pool.events)
            for name, after in self.steps:
                OPERATIONS[name](client)
                self.moment(name)
                if after:
                    self.fs.sync()
                    self._promise(Promise(len(self.pool.events), len(self.moments) - 1))
            client.close()
        self.last = self.pool.image()

    def moment(self, name: str) -> None:
        """Whatever has changed since the last moment may be there from that one on."""
        picture = take_picture(self.fs)
        picture = picture._replace(snapshots={name: self.past[name] for name in picture.snapshots})
        self.client.agree(picture)
        self.moments.append(Moment(name, self.moments[-1].ended, len(self.pool.events), picture))

    def durable(self, name: str) -> None:
        """All that the daemon has changed is durable."""
        self.moment(name)
        self._promise(Promise(len(self.pool.events), len(self.moments) - 1))

    def flushed(self, ino: int) -> None:
        """A request has said that all stores to the inode are durable, and has made the inode so."""
        index = len(self.moments) - 1
        self._flushed.setdefault(ino, []).append(index)
        self._promise(Promise(len(self.pool.events), index, ino))

    def kept(self, ino: int, begin: int, end: int) -> None:
        """A range was flushed."""
        self.moment("flush a range")
        self._ranges.append(Range(len(self.pool.events), len(self.moments) - 1, ino, begin, end))

    def stage(self, position: int) -> tuple[int, int]:
        """As `Run.stage`, with the ranges."""
        kept, last = super().stage(position)
        return kept + sum(found.position <= position for found in self._ranges), last

    def judge(self, found: Picture, position: int) -> list[str]:
        """As `Run.judge`; and flushed ranges are there."""
        return super().judge(found, position) or self._lost(found, position)

    def _lost(self, found: Picture, position: int) -> list[str]:
        wrong = []
        for _, index, ino, begin, end in (kept for kept in self._ranges if kept.position <= position):
            later = self.moments[index : self._last(position) + 1]
            versions = [moment.picture.contents[ino][begin:end] for moment in later if ino in moment.picture.contents]
            if not words_agree(found.contents[ino][begin:end], versions):
                wrong.append(f"bytes {begin} to {end} of inode {ino} were flushed")
        return wrong

    def _versions(self, ino: int, index: int, last: int, kept: list[Promise]) -> list[bytes]:
        """Of the moments since all was flushed; what was granted since then may be zeros."""
        since = [promise.index for promise in kept if promise.ino == ino]
        flushed = max([0, *since, *(at for at in self._flushed.get(ino, ()) if at <= index)])
        moments = [self.moments[index], *self.moments[flushed : last + 1]]
        versions = [moment.picture.contents[ino] for moment in moments if ino in moment.picture.contents]
        old = self.moments[flushed].picture.contents.get(ino, b"")
        return [*versions, old.ljust(len(versions[0]), b"\0")] if versions else []


@contextmanager
def in_place_of_the_kernel(client: Client) -> Iterator[None]:
    """Requests go to the client's daemon; whatever else would go to a mount fails the workload."""

    def refuse(*_: object) -> None:
        raise AssertionError("the client has asked the kernel")

    system = SimpleNamespace(**{**vars(os), **dict.fromkeys(REFUSED, refuse)})
    regular = os.stat_result((0o100644, *range(9)))
    system.fstat = lambda _: regular
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(files, "attach", client.attach)
        patches.setattr(files, "os", system)
        patches.setattr(lease_cache, "os", system)
        patches.setattr(requests, "control", client.control)
        patches.setattr(lease_cache, "_SMALL", 1)
        patches.setattr(client_pool, "write_back", client.write_back)
        yield
