"""Staged content: what batches will write, in DRAM, until they are committed or dropped.

This module only keeps bytes and counts them; `batches.py` has the operations. A file has at most one batch.
Content is kept in pages, and a page counts whole even if a single byte of it is staged, so the bounds on pages also
bound what the daemon spends on many small writes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from daxfs.errors import FsError

Buffer = bytearray | memoryview

PAGE = 4096
MOST_PAGES = (16 << 20) // PAGE
"""The most pages of one batch: as many bytes as the longest atomic write."""
MOST_PAGES_OF_USER = (64 << 20) // PAGE
"""The most pages of all batches of one user."""
MOST_BATCHES_OF_USER = 256
"""The most batches of one user: what the daemon keeps of each does not depend on its pages alone."""


class Page:
    """A page of a file; bit n of ``staged`` says that byte n is staged."""

    __slots__ = ("content", "staged")

    def __init__(self) -> None:
        self.content = bytearray(PAGE)
        self.staged = 0

    @property
    def span(self) -> tuple[int, int]:
        """Where the first staged byte begins and the last one ends."""
        return (self.staged & -self.staged).bit_length() - 1, self.staged.bit_length()

    @property
    def has_gaps(self) -> bool:
        """Whether bytes between the first and the last staged one are not staged."""
        begin, end = self.span
        return self.staged.bit_count() < end - begin

    def overlay(self, begin: int, target: memoryview) -> None:
        """Put what is staged over ``target``, which are the bytes of the page from ``begin`` on, at most to its end."""
        end = begin + len(target)
        if self.has_gaps:
            # At once, however many gaps there are: nobody else is answered meanwhile.
            bits = np.frombuffer(self.staged.to_bytes(PAGE // 8, "little"), np.uint8)
            mask = np.unpackbits(bits, bitorder="little")[begin:end].view(np.bool_)
            np.frombuffer(target, np.uint8)[mask] = np.frombuffer(self.content, np.uint8)[begin:end][mask]
        else:
            low, high = self.span
            low, high = max(low, begin), min(high, end)
            if low < high:
                target[low - begin : high - begin] = self.content[low:high]


class Staged:
    """The staged content of one file.

    Attributes:
        opened: the open file through which it was written; this module compares only its identity.
        uid: the user for whom the pages count.
        pages: by number.
        end: where the last staged byte ends.
        kill: whether the commit drops set-id bits: as the writes said; None: none of them said anything.
    """

    __slots__ = ("end", "kill", "opened", "pages", "uid")

    def __init__(self, opened: object, uid: int) -> None:
        self.opened = opened
        self.uid = uid
        self.pages: dict[int, Page] = {}
        self.end = 0
        self.kill: bool | None = None

    def overlay(self, offset: int, content: bytearray) -> None:
        """Put what is staged over the bytes ``content`` of the file, which begin at ``offset``."""
        stop, target = offset + len(content), memoryview(content)
        for number in range(offset // PAGE, -(-stop // PAGE)):
            page = self.pages.get(number)
            if page is not None:
                base = number * PAGE
                low, high = max(base, offset), min(base + PAGE, stop)
                page.overlay(low - base, target[low - offset : high - offset])

    def pieces(self, read: Callable[[int, int], bytes]) -> list[tuple[int, Buffer]]:
        """Return what is to be written, in order: (offset, content), one piece for each page.

        Args:
            read: returns the bytes [begin, end) of the file, which fill the gaps of a page.
        """
        found: list[tuple[int, Buffer]] = []
        for number, page in sorted(self.pages.items()):
            base, (begin, end) = number * PAGE, page.span
            if page.has_gaps:
                content = bytearray(read(base + begin, base + end))
                page.overlay(begin, memoryview(content))
                found.append((base + begin, content))
            else:
                found.append((base + begin, memoryview(page.content)[begin:end]))
        return found


class Staging:
    """The staged content of one volume.

    Attributes:
        by_ino: inode number -> staged content, of the files with a batch.
        pages: user -> the pages that are staged for that user.
        counts: user -> the batches of that user.
    """

    def __init__(self) -> None:
        self.by_ino: dict[int, Staged] = {}
        self.pages: dict[int, int] = {}
        self.counts: dict[int, int] = {}

    def begin(self, ino: int, opened: object, uid: int) -> Staged:
        """Begin to stage content of a file; EBUSY: a batch does already; ENOMEM: the user has too many batches."""
        if ino in self.by_ino:
            raise FsError(errno.EBUSY, f"inode {ino}: there is a batch already")
        count = self.counts.get(uid, 0)
        if count >= MOST_BATCHES_OF_USER:
            raise FsError(errno.ENOMEM, f"user {uid} has {count} batches")
        self.counts[uid] = count + 1
        staged = self.by_ino[ino] = Staged(opened, uid)
        return staged

    def put(self, staged: Staged, offset: int, content: memoryview) -> None:
        """Stage all of ``content`` at ``offset``, or nothing.

        Raises:
            FsError: EFBIG, the batch has too many pages; ENOMEM, the user's batches have.
        """
        pages, stop = staged.pages, offset + len(content)
        numbers = range(offset // PAGE, -(-stop // PAGE))
        new = [number for number in numbers if number not in pages]
        if len(pages) + len(new) > MOST_PAGES:
            raise FsError(errno.EFBIG, f"a batch of more than {MOST_PAGES} pages")
        used = self.pages.get(staged.uid, 0) + len(new)
        if used > MOST_PAGES_OF_USER:
            raise FsError(errno.ENOMEM, f"user {staged.uid}: the batches have more than {MOST_PAGES_OF_USER} pages")
        made = {number: Page() for number in new}
        if used:
            self.pages[staged.uid] = used
        pages.update(made)
        for number in numbers:
            page, base = pages[number], number * PAGE
            low, high = max(offset, base), min(stop, base + PAGE)
            page.content[low - base : high - base] = content[low - offset : high - offset]
            page.staged |= (1 << high - low) - 1 << low - base
        staged.end = max(staged.end, stop)

    def end(self, ino: int) -> None:
        """Drop what is staged for a file."""
        staged = self.by_ino.pop(ino)
        left = self.pages.get(staged.uid, 0) - len(staged.pages)
        if left:
            self.pages[staged.uid] = left
        else:
            self.pages.pop(staged.uid, None)
        self.counts[staged.uid] -= 1
        if not self.counts[staged.uid]:
            del self.counts[staged.uid]

    def check(self) -> None:
        """Compare the counts with what is staged; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        counted: dict[int, int] = {}
        batches: dict[int, int] = {}
        for staged in self.by_ino.values():
            assert len(staged.pages) <= MOST_PAGES
            batches[staged.uid] = batches.get(staged.uid, 0) + 1
            if staged.pages:
                counted[staged.uid] = counted.get(staged.uid, 0) + len(staged.pages)
        assert counted == self.pages
        assert batches == self.counts
