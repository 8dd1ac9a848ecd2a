"""A pool with storage for the seams: both members are on one disk, and what is written to storage can be taken back."""

from __future__ import annotations

import os
from typing import cast

from explorer.disk import Disk
from explorer.tiers import MEMORY
from tiered_recorder import MemoryStorage, SplitPool

from daxfs.pmem.persist import Buffer
from daxfs.pmem.storage import Label, Storage
from daxfs.runs import ByteRange
from failing.seams import FailingPool, Trigger


class DiskStorage(MemoryStorage):
    """The end of a disk, from ``begin`` on."""

    def __init__(self, disk: Disk, begin: int) -> None:
        super().__init__(b"", begin, lambda _: None)
        self._disk = disk
        self.room = len(disk.content) - begin
        self.place = ByteRange(begin, len(disk.content))
        self.status = os.stat_result(range(10))

    def label(self) -> Label:
        return Label(bytes(16), self._begin, self.room)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._disk.content[self._begin + offset : self._begin + offset + length])

    def write(self, offset: int, content: Buffer) -> None:
        self._disk.put(self._begin + offset, content)

    def sync(self) -> None:
        """Nothing is volatile here."""


class FailingTieredPool(SplitPool, FailingPool):
    """A `FailingPool` with storage, which does not fail."""

    def __init__(self, disk: Disk, seam: str, trigger: Trigger) -> None:
        super().__init__(disk, seam, trigger)
        self.split(b"", MEMORY, lambda _: None)
        self.slow = DiskStorage(disk, MEMORY)
        self.storages = (cast(Storage, self.slow),)
