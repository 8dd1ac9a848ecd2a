"""A pool without a file: anonymous memory or the caller's bytearray, for tests and tools.

The pool ends with the process. Tests of any layer may use it in place of ``opening.open_pool``.
"""

from __future__ import annotations

import mmap

from daxfs.pmem import kinds, persist
from daxfs.pmem.pool import Pool


class MemoryPool(Pool):
    """A volatile pool in this process's memory.

    Args:
        content: a number of bytes to start as zeros (a sparse anonymous mapping), an image to copy
            (``bytes``), or a ``bytearray`` to work on in place.
        read_only: whether stores raise EROFS.
        path: the pool's name in messages.
    """

    def __init__(self, content: int | bytes | bytearray, *, read_only: bool = False, path: str = "<memory>") -> None:
        length = content if isinstance(content, int) else len(content)
        size = length - length % kinds.SMALLEST
        if size <= 0:
            raise ValueError(f"a pool of {length} bytes is too small: give it {kinds.SMALLEST} or more")
        if isinstance(content, int):
            self._store: mmap.mmap | bytearray = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._store = content if isinstance(content, bytearray) else bytearray(content)
        writable = memoryview(self._store)[:size]
        operations = persist.refusing(persist.VOLATILE) if read_only else self._operations(writable)
        memory = self._visible(writable, read_only)
        super().__init__(path, kinds.MEMORY, memory, operations, read_only=read_only, file_size=length)

    def image(self) -> bytes:
        """Return a copy of the whole pool."""
        return bytes(self.memory)

    def discard(self, offset: int, length: int) -> None:
        """Zero the range: readers of a discarded range see zeros."""
        self.zero(offset, length)

    def _operations(self, memory: memoryview) -> persist.Operations:
        return persist.volatile(memory)

    def _visible(self, memory: memoryview, read_only: bool) -> memoryview:
        return memory.toreadonly() if read_only else memory
