"""The bytes of one crash image at a time, taken back after it was looked at.

An image differs from the one before it in some cache lines, and its recovery stores to some more: copying the pool for
each image would cost more than recovering it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable

from daxfs.pmem import persist
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.persist import Buffer, Operations


class Disk:
    """Bytes with an undo list.

    Attributes:
        base: the bytes that it began with.
        content: the bytes now; `put` and the stores of `UndoPool` change them.
        changed: the blocks that differ, or may differ, from those the disk began with.
    """

    def __init__(self, content: bytes | bytearray, block_size: int) -> None:
        self.base = bytes(content)
        self.content = bytearray(content)
        self.changed: set[int] = set()
        self._block_size = block_size
        self._undo: list[tuple[int, bytes, set[int]]] = []
        self._digests: dict[int, bytes] = {}

    def put(self, offset: int, data: Buffer) -> None:
        """Store, so that `rewind` takes it back."""
        self.note(offset, len(data))
        self.content[offset : offset + len(data)] = data

    def put_all(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """`put` of each piece."""
        for offset, data in pieces:
            self.put(offset, data)

    def note(self, offset: int, length: int) -> None:
        """Remember what lies in a range that is about to be stored to."""
        if length > 0:
            touched = self.blocks(offset, length)
            self._forget(touched)
            blocks = set(touched) - self.changed
            self._undo.append((offset, bytes(self.content[offset : offset + length]), blocks))
            self.changed |= blocks

    def refresh(self, changed: Iterable[int]) -> None:
        """Take in blocks whose content was changed without `put` and `note`, and cannot be taken back."""
        self.changed.update(changed)
        self._digests.clear()

    def _forget(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._digests.pop(block, None)

    def blocks(self, offset: int, length: int) -> range:
        """The blocks that a range of bytes touches."""
        size = self._block_size
        return range(offset // size, -(-(offset + length) // size)) if length else range(0)

    def mark(self) -> int:
        """Where `rewind` may go back to."""
        return len(self._undo)

    def rewind(self, mark: int = 0) -> None:
        """Take back what `put` and `note` have seen since the mark."""
        while len(self._undo) > mark:
            offset, data, blocks = self._undo.pop()
            self.content[offset : offset + len(data)] = data
            self._forget(self.blocks(offset, len(data)))
            self.changed -= blocks

    def digest(self, without: Container[int] = ()) -> bytes:
        """Tells two states of the disk apart, but for the blocks ``without``."""
        found = hashlib.blake2b(digest_size=16)
        known = self._digests
        for block in sorted(self.changed):
            if block not in without:
                digest = known.get(block)
                if digest is None:
                    digest = known[block] = self._digest(block)
                found.update(digest)
        return found.digest()

    def _digest(self, block: int) -> bytes:
        """Tells contents of a block apart; empty for the content that the disk began with."""
        begin, end = block * self._block_size, (block + 1) * self._block_size
        content = memoryview(self.content)[begin:end]
        if content == memoryview(self.base)[begin:end]:
            return b""
        return hashlib.blake2b(content, digest_size=16, salt=block.to_bytes(8, "little")).digest()

    def copy(self) -> Disk:
        """Another disk that began with the same bytes and has the same now; nothing of that can be taken back."""
        made = Disk(self.base, self._block_size)
        made.content[:] = self.content
        made.changed = set(self.changed)
        return made


class UndoPool(MemoryPool):
    """A volatile pool on a disk; each of its stores can be taken back."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__(disk.content)

    def _operations(self, memory: memoryview) -> Operations:
        plain, note = persist.volatile(memory), self._disk.note

        def write(offset: int, data: Buffer) -> None:
            note(offset, len(data))
            plain.write(offset, data)

        def zero(offset: int, length: int) -> None:
            note(offset, length)
            plain.zero(offset, length)

        def store_word(offset: int, value: int, size: int = 4) -> None:
            note(offset, size)
            plain.store_word(offset, value, size)

        return plain._replace(write=write, zero=zero, store_word=store_word)
