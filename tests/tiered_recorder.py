"""A recording pool with storage, both in this process's memory, whose record and images are of both members.

The bytes are those of both members, one after the other, as e2fsck and the kernel see them. A write to storage is in
the record as a store, and its synchronisation as a flush: it is durable with the next fence of the memory, or earlier
by chance. So an order of both members that no fence keeps shows in the images. In the pool's own memory lies rubbish
where storage is: code that loads from there reads that, and a store fails the test.

Calls on storage return when somebody waits for them, or when the test lets them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from recorder import Event, Flush, RecordingPool, Store

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem import storagequeue
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.persist import Buffer, Operations
from daxfs.pmem.storage import Label, Storage
from daxfs.runs import ByteRange

RUBBISH = b"\xe5"


class MemoryStorage:
    """What `daxfs.pmem.storage.Storage` is, in memory.

    Attributes:
        content: the bytes.
        failing: every call ends with EIO; a write has written a part.
    """

    path = "<storage>"
    read_only = False

    def __init__(self, content: bytes, begin: int, record: Callable[[Event], object]) -> None:
        self.content = bytearray(content)
        self.place = ByteRange(begin, begin + len(content))
        self.room = len(content)
        self.failing = False
        self.status = os.stat_result(range(10))
        self._begin = begin
        self._record = record
        self._written: list[Flush] = []

    def label(self) -> Label:
        return Label(bytes(16), self._begin, len(self.content))

    def measure(self) -> None:
        """It has as much room as it had."""

    def read(self, offset: int, length: int) -> bytes:
        self._refuse()
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, content: Buffer) -> None:
        data = bytes(content)[: len(content) // 2 if self.failing else None]
        self.content[offset : offset + len(data)] = data
        self._record(Store(self._begin + offset, data))
        self._written.append(Flush(self._begin + offset, len(data)))
        self._refuse()

    def write_all(self, parts: Mapping[int, bytes]) -> None:
        for offset, content in parts.items():
            self.write(offset, content)
        self.sync()

    def sync(self) -> None:
        self._refuse()
        for flush in self._written:
            self._record(flush)
        self._written.clear()

    def close(self) -> None:
        pass

    def _refuse(self) -> None:
        if self.failing:
            raise FsError(errno.EIO, "the test lets storage fail")


class Ticket(storagequeue.Ticket):
    """A call that is made by whoever waits for it."""

    __slots__ = ()

    def wait(self) -> None:
        if not self.due:
            self.make()


class Queue(storagequeue.StorageQueue):
    """Calls without threads."""

    def ask(self, call: Callable[[], Any]) -> storagequeue.Ticket:
        if self.failed:
            raise self.failure()
        return Ticket(self, call)


class SplitPool(MemoryPool):
    """A pool with storage; a subclass says how its content is split."""

    def split(self, content: bytes, memory: int, record: Callable[[Event], object]) -> None:
        """Let storage follow the memory."""
        self.slow = MemoryStorage(content[memory:], memory, record)
        self.storages = (cast(Storage, self.slow),)
        self.memory_size = memory

    def attach(self, memory: int, length: int, storages: Sequence[Storage] = ()) -> None:
        """Follow a file system that has become smaller, now or before the power failed: these pools get no other."""
        assert (memory, tuple(storages)) == (self.memory_size, self.storages)
        assert length <= self.size - memory
        self.size = memory + length
        self.memory = self.memory[: self.size]


class TieredPool(SplitPool, RecordingPool):
    """A recording pool with storage; ``memory`` bytes of the content are memory."""

    def __init__(self, content: bytes | bytearray, memory: int) -> None:
        self._border = memory
        self._bytes = content[:memory] + RUBBISH * (len(content) - memory)
        super().__init__(self._bytes)
        self.base = bytes(content)
        self.split(content, memory, self.events.append)

    def _operations(self, memory: memoryview) -> Operations:
        plain = super()._operations(memory)

        def write(offset: int, data: Buffer) -> None:
            assert offset + len(data) <= self._border, "a store to storage"
            plain.write(offset, data)

        def zero(offset: int, length: int) -> None:
            assert offset + length <= self._border, "a store to storage"
            plain.zero(offset, length)

        return plain._replace(write=write, zero=zero)

    def restart(self) -> None:
        super().restart()
        self.slow._written.clear()

    def image(self) -> bytes:
        """Return the bytes of both members, also after the end of the mount."""
        if not hasattr(self, "slow"):  # the recorder asks before there is storage
            return b""
        return bytes(self._store[: self._border]) + bytes(self.slow.content)


def opened(pool: MemoryPool, options: Options) -> FileSystem:
    """Mount a pool; its calls on storage have no threads."""
    fs = FileSystem.open(pool, options)
    tiers = fs.volume.tiers
    assert tiers is not None
    tiers.queues = [Queue(queue.storage) for queue in tiers.queues]
    return fs
