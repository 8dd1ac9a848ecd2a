"""An open pool for the tests of the allocators, checked by e2fsck afterwards."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import Superblock
from daxfs.journal.handle import Handle
from daxfs.journal.journal import Journal
from daxfs.pmem.opening import open_pool
from daxfs.structures import blocks, groups
from support import mke2fs, tool

# name -> (options, size), for each kind of checksum, block size and layout that allocation depends on.
LAYOUTS = {
    "default": (("-b", "1024"), "48M"),
    "crc16": (("-b", "1024", "-O", "^metadata_csum,^64bit,uninit_bg"), "48M"),
    "plain": (("-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-I", "128"), "48M"),
    "no flex": (("-b", "2048", "-O", "^flex_bg", "-g", "4096"), "50001K"),
    "meta_bg": (("-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"), "48M"),
    "4k": (
        (
            "-b",
            "4096",
        ),
        "400M",
    ),
}


class AllocRig:
    """An open pool, used without its journal if it has one."""

    def __init__(self, path: Path, *options: str, size: str = "48M", feature: str = "^has_journal") -> None:
        self.path = mke2fs(path, "-O", feature, *options, size=size)
        self.open()

    def open(self) -> None:
        self.pool = open_pool(self.path, persistence="volatile")
        self.geometry = Geometry.of(Superblock(self.pool.memory[1024:2048]))
        self.journal = Journal.open(self.pool, self.geometry, None, check_credits=True)
        self.journal.add_commit_hook(blocks.apply_frees, self.journal.has_frees)
        self.view = self.journal.view

    def close(self) -> None:
        self.journal.close()
        self.pool.close()

    def handle(self, credits: int = 32, *, privileged: bool = True) -> Handle:
        return self.journal.handle(credits, privileged=privileged)

    @contextmanager
    def corrupting(self) -> Iterator[Superblock]:
        """Change the pool without the journal, then open it anew."""
        self.close()
        self.pool = open_pool(self.path, persistence="volatile")
        yield Superblock(self.pool.memory[1024:2048])
        self.pool.close()
        self.open()

    def allocate(
        self, goal: int = 0, want: int = 1, *, align: int = 1, privileged: bool = True, tree: bool = True
    ) -> tuple[int, int]:
        """Allocate a block, by default as a tree block, which may be the last one."""
        with self.handle(privileged=privileged) as tx:
            return blocks.allocate(tx, goal, want, align=align, tree=tree)

    def free(self, start: int, count: int) -> None:
        with self.handle() as tx:
            blocks.free(tx, start, count)

    def used(self) -> npt.NDArray[np.bool_]:
        """Return one flag for each block, from the bitmaps in the pool (commit before)."""
        geometry = self.geometry
        flags = np.ones(geometry.blocks_count, dtype=bool)
        for group in range(geometry.groups_count):
            desc = groups.descriptor(self.view, group)
            first, count = geometry.first_block(group), geometry.blocks_in_group(group)
            if groups.blocks_uninit(geometry, desc):
                flags[first : first + count] = False
                for start, length in groups.metadata_runs(self.view, group):
                    flags[start : start + length] = True
                continue
            start = desc.block_bitmap << geometry.block_bits
            bitmap = np.frombuffer(self.pool.memory[start : start + geometry.block_size], np.uint8)
            bits = np.unpackbits(bitmap, bitorder="little")
            assert bits[count:].all(), f"padding of group {group}"
            flags[first : first + count] = bits[:count]
        return flags

    def check_counts(self) -> None:
        """Check that bitmaps, descriptors and superblock in the pool agree."""
        geometry, used = self.geometry, self.used()
        sb = self.view.superblock()
        free = 0
        for group in range(geometry.groups_count):
            first = geometry.first_block(group)
            counted = int((~used[first : first + geometry.blocks_in_group(group)]).sum())
            assert groups.descriptor(self.view, group).free_blocks_count == counted, group
            free += counted
        assert sb.free_blocks_count == free
        assert groups.totals(self.view) == (free, sb.s_free_inodes_count)

    def check_unattached(self, taken: set[int]) -> None:
        """Close the rig, and check that e2fsck finds exactly these blocks without an owner, and no other fault."""
        self.close()
        done = subprocess.run(
            [tool("e2fsck"), "-fn", str(self.path)], capture_output=True, text=True, timeout=60, check=False
        )
        found: set[int] = set()
        for line in done.stdout.splitlines():
            if line.startswith("Block bitmap differences:"):
                for first, last in re.findall(r"-\(?(\d+)(?:--(\d+)\))?", line):
                    found.update(range(int(first), int(last or first) + 1))
            elif not re.match(r"Pass \d|Fix\? no|Free blocks count wrong|\S+: (\*+ WARNING|\d+/\d+ files)|$", line):
                raise AssertionError(f"{line}\n---\n{done.stdout}")
        assert found == taken
