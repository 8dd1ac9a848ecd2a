"""Memory of a client's pool that is not there: the system calls take over, and return an error where there is one.

A load or store is SIGBUS where the pool's file was cut, where its medium failed, and where a full file system can't
fill a hole. The handler (`daxfs.pmem.guard`) then puts private zeros in the place of the pool's mapping. From then on
nothing is stored to the pool, and all status entries read as 0, which is no epoch: the fast path of ``files``, which
compares the epoch after each copy, needs no check of its own.

A program's own mappings (``maps``) are not guarded: SIGBUS there is the program's, as with any mapped file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

from daxfs.direct.trust import Refused
from daxfs.pmem import guard
from daxfs.pmem.address import address_of

_SIZES = 8192


class _Words(ctypes.Structure):
    """A watch, which begins with the number of faults, and file sizes in the same buffer."""

    _fields_ = (("watch", guard.Watch), ("sizes", ctypes.c_uint64 * _SIZES))


class Guard:
    """The guard of a pool's mapping; it ends with the mapping.

    Args:
        mapping: None: memory that is never missing.

    Attributes:
        faults: ``faults[0]`` is 0 as long as no memory was missing.

    Raises:
        Refused: SIGBUS can't be handled.
    """

    def __init__(self, mapping: mmap.mmap | None) -> None:
        self._record = _Words()
        self._words = memoryview(self._record).cast("B").cast("Q")
        self._places: dict[int, int] = {}
        self.faults = self._words[:1]
        if mapping is None:
            return
        handler = guard.handler()
        watch = self._record.watch
        watch.unit = len(mapping)
        watch.begin = address_of(memoryview(mapping))
        watch.end = watch.begin + watch.unit
        number = handler.watch(watch)
        if number:
            raise Refused(f"faults of the pool's memory can't be handled: {os.strerror(number)}")
        weakref.finalize(mapping, handler.unwatch, watch).atexit = False

    def constant_words(self, size: int) -> memoryview:
        """Return the words of a status entry on a read-only mount: epoch 0 until memory is missing, and the file size.

        Raises:
            Refused: there is no room for another file size.
        """
        place = self._places.get(size)
        if place is None:
            if len(self._places) == _SIZES:
                raise Refused("files of too many sizes are open")
            index = len(self._places)
            self._record.sizes[index] = size
            place = self._places[size] = _Words.sizes.offset // 8 + index
        return self._words[: place + 1 : place]
