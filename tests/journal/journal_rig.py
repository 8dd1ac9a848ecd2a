"""A small pool with a log for the tests of the journal, and the log as e2fsprogs reads it."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from in_memory import SHARED_MEMORY

from daxfs.ext4 import jbd2
from daxfs.ext4.features import Incompat
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import Superblock
from daxfs.journal.area import LogArea
from daxfs.journal.tail import JournalSuperblockWriter
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool
from daxfs.runs import BlockRun
from support import mke2fs, run, tool

# name -> options, for every layout of tags, revoke blocks and checksums that a log can have.
FORMATS = {
    "v3": ("-b", "1024", "-O", "^resize_inode"),
    "v3 32bit": ("-b", "1024", "-O", "^64bit,^resize_inode"),
    "no checksums": ("-b", "1024", "-O", "^metadata_csum,^resize_inode"),
    "no checksums 32bit": ("-b", "1024", "-O", "^metadata_csum,^64bit,^resize_inode"),
    "4k": ("-b", "4096", "-O", "^resize_inode"),
}
FREE = 40  # blocks at the file system's end that tests write to; they belong to no file


@cache
def _made(options: tuple[str, ...]) -> tuple[bytes, LogArea]:
    small = "1024" in options
    with TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        path = mke2fs(Path(folder) / "pool", *options, "-J", f"size={1 if small else 4}", size="3M" if small else "12M")
        blocks = [int(word) for word in run("debugfs", "-R", "blocks <8>", path).split() if word.isdigit()]
        assert blocks[0] == int(run("debugfs", "-R", "bmap <8> 0", path).split()[0])
        return path.read_bytes(), LogArea(_runs(blocks))


def _runs(blocks: Iterable[int]) -> list[BlockRun]:
    runs: list[BlockRun] = []
    for block in blocks:
        if runs and sum(runs[-1]) == block:
            runs[-1] = BlockRun(runs[-1].start, runs[-1].length + 1)
        else:
            runs.append(BlockRun(block, 1))
    return runs


class JournalRig:
    """The bytes of a pool with an empty log, shortened to ``log_blocks`` so that the log wraps within a test.

    Attributes:
        content: the pool; ``needs_recovery`` is set, as in a mounted pool.
        clean: the pool as mke2fs made it.
        free: blocks that tests may change.
    """

    def __init__(self, name: str = "v3", *, log_blocks: int = 0) -> None:
        self.clean, self.area = _made(FORMATS[name])
        pool = MemoryPool(self.clean)
        sb = Superblock(memoryview(bytearray(pool.memory[1024:2048])))
        sb.s_feature_incompat |= Incompat.needs_recovery
        sb.seal()
        pool.write(1024, sb.buffer)
        self.geometry = Geometry.of(sb)
        self.block_size = self.geometry.block_size
        if log_blocks:
            self.change_superblock(pool, s_maxlen=log_blocks)
        self.content = pool.image()
        last = self.geometry.blocks_count
        self.free = range(last - FREE, last)

    def superblock(self, pool: Pool) -> jbd2.JournalSuperblock:
        """Return the journal's superblock, verified."""
        start = self.place(0)
        return jbd2.verify_superblock(pool.memory[start : start + 1024], self.block_size, self.area.blocks)

    def change_superblock(self, pool: Pool, **fields: int) -> None:
        """Store other values in the journal's superblock, with the right checksum."""
        sb = self.superblock(pool)
        JournalSuperblockWriter(pool, self.place(0), sb).rewrite(sb._replace(**fields))

    def place(self, position: int) -> int:
        """Return the byte offset of a log block."""
        return self.area.physical(position) * self.block_size

    def filled(self, number: int, *, escaped: bool = False) -> bytes:
        """Return the content of a block, filled with a number; ``escaped``: it begins with jbd2's magic."""
        start = jbd2.MAGIC_BYTES if escaped else b"\x01\x02\x03\x04"
        return (start + struct.pack("<I", number)).ljust(self.block_size, bytes([number & 0xFF]))

    def block(self, pool: Pool, number: int) -> bytes:
        """Return the content of a block in the pool itself."""
        return bytes(pool.memory[number * self.block_size : (number + 1) * self.block_size])

    def contents(self, pool: Pool) -> dict[int, bytes]:
        """Return the free blocks that are not zeros."""
        zeros = bytes(self.block_size)
        return {number: content for number in self.free if (content := self.block(pool, number)) != zeros}

    def after_e2fsck(self, image: bytes | bytearray, path: Path) -> Pool:
        """Return the pool after ``e2fsck -fy``, which replays the log and must find nothing else to repair."""
        path.write_bytes(image)
        done = subprocess.run([tool("e2fsck"), "-fy", path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        assert "? yes" not in done.stdout, done.stdout
        return MemoryPool(path.read_bytes())
