"""Staged content: what batches will write, in DRAM, until they are committed or dropped.

This module only keeps bytes and counts them; `batches.py` has the operations. A file has at most one batch.
Content is kept in pages, and a page counts whole even if a single byte of it is staged, so the bounds on pages also
bound what the daemon spends on many small writes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from daxfs.errors import FsError

PAGE = 4096
MOST_PAGES = (16 << 20) // PAGE
"""The most pages of one batch: as many bytes as the longest atomic write."""
MOST_PAGES_OF_USER = (64 << 20) // PAGE
"""The most pages of all batches of one user."""
WHOLE = (1 << PAGE) - 1
"""`Page.staged` of a page that is staged from the first byte to the last."""


class Page:
    """A page of a file; bit n of ``staged`` says that byte n is staged."""

    __slots__ = ("content", "staged")

    def __init__(self) -> None:
        self.content = bytearray(PAGE)
        self.staged = 0

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the staged ranges [begin, end), in order."""
        rest, position = self.staged, 0
        while rest:
            skipped = (rest & -rest).bit_length() - 1
            rest >>= skipped
            length = (~rest & rest + 1).bit_length() - 1
            rest >>= length
            position += skipped
            yield position, position + length
            position += length


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
        stop = offset + len(content)
        for number in range(offset // PAGE, -(-stop // PAGE)):
            page = self.pages.get(number)
            if page is None:
                continue
            base = number * PAGE
            for begin, end in page.ranges():
                low, high = max(base + begin, offset), min(base + end, stop)
                if low < high:
                    content[low - offset : high - offset] = page.content[low - base : high - base]

    def pieces(self) -> list[tuple[int, memoryview]]:
        """Return what is staged, in order: (offset, content)."""
        return [
            (number * PAGE + begin, memoryview(page.content)[begin:end])
            for number, page in sorted(self.pages.items())
            for begin, end in page.ranges()
        ]


class Staging:
    """The staged content of one volume.

    Attributes:
        by_ino: inode number -> staged content, of the files with a batch.
        pages: user -> the pages that are staged for that user.
    """

    def __init__(self) -> None:
        self.by_ino: dict[int, Staged] = {}
        self.pages: dict[int, int] = {}

    def begin(self, ino: int, opened: object, uid: int) -> Staged:
        """Begin to stage content of a file; EBUSY: a batch does already."""
        if ino in self.by_ino:
            raise FsError(errno.EBUSY, f"inode {ino}: there is a batch already")
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
        if used:
            self.pages[staged.uid] = used
        pages.update((number, Page()) for number in new)
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

    def check(self) -> None:
        """Compare the counts with what is staged; for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        counted: dict[int, int] = {}
        for staged in self.by_ino.values():
            assert len(staged.pages) <= MOST_PAGES
            if staged.pages:
                counted[staged.uid] = counted.get(staged.uid, 0) + len(staged.pages)
        assert counted == self.pages
