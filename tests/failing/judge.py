"""e2fsck's word on a disk that hardly differs from what it said something about before.

Most errors leave one of a few states, and a state differs from the disk's beginning in some blocks. So a state is
looked at once, and only those blocks are written to the file that e2fsck reads.
"""

from __future__ import annotations

from pathlib import Path

from explorer.disk import Disk

from support import fsck


class Judge:
    """e2fsck in a file of its own."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sound: dict[int, set[bytes]] = {}
        self._base = b""
        self._written: set[int] = set()

    def __call__(self, disk: Disk, block_size: int) -> None:
        """e2fsck finds nothing.

        Raises:
            AssertionError: it does.
        """
        sound = self._sound.setdefault(hash(disk.base), set())
        digest = disk.digest()
        if digest not in sound:
            self._write(disk, block_size)
            fsck(self._file)
            sound.add(digest)

    def _write(self, disk: Disk, block_size: int) -> None:
        if disk.base is not self._base:
            self._file.write_bytes(disk.base)
            self._base, self._written = disk.base, set()
        content = memoryview(disk.content)
        with self._file.open("r+b", buffering=0) as file:
            for block in disk.changed | self._written:
                file.seek(block * block_size)
                file.write(content[block * block_size : (block + 1) * block_size])
        self._written = set(disk.changed)
