"""The kernel on a pool with storage, which it takes for one file: what it puts on storage, and where that is found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel_rig import kernel_mount
from tier_rig import MIB, Members
from tree_rig import Tree, kernel_tree

from daxfs.fs import removal
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import moves
from daxfs.runs import BlockRun
from daxfs.structures import groups, inode_bitmaps, inodes, mapping
from daxfs.structures.extent_tree import MAX_BLOCKS
from support import run

FOLDERS = 60


def on_storage(fs: FileSystem) -> dict[str, int]:
    """Return how many blocks of metadata lie on storage, by what they are."""
    view = fs.volume.view
    geometry = view.geometry
    area = BlockRun(geometry.memory_blocks, geometry.blocks_count - geometry.memory_blocks)
    found = {"map": 0, "directory": 0, "link": 0, "attributes": 0, "table": 0}
    attributes = set()
    for group in range(geometry.groups_count):
        table_there = groups.descriptor(view, group).inode_table >= area.start
        for ino in inode_bitmaps.in_use_of(view, group):
            if ino < geometry.first_ino and ino != 2:
                continue
            found["table"] += table_there
            inode = inodes.read(view, ino)
            if inode.file_acl >= area.start:
                attributes.add(inode.file_acl)
            if not inode.blocks or not removal.holds_blocks(inode):
                continue
            found["map"] += len(mapping.own_blocks(view, inode, 0, area, MAX_BLOCKS)[0])
            if not inode.is_regular:
                there = sum(run.length for run in mapping.walk(view, inode) if run.pblk >= area.start)
                found["directory" if inode.is_dir else "link"] += there
    found["attributes"] = len(attributes)
    return found


@contextmanager
def by_kernel(pool: Members, *options: str) -> Iterator[Path]:
    """Mount all members, one after the other, by the kernel."""
    whole = pool.join()
    with kernel_mount(whole, "noatime", *options) as place:
        yield place
    pool.split(whole)


def litter(place: Path, folders: int = FOLDERS) -> Tree:
    """Make what needs every kind of metadata."""
    for number in range(folders):
        folder = place / f"d{number}"
        folder.mkdir()
        (folder / "link").symlink_to("t" * 200)
        (folder / "file").touch()
        for name in range(60):
            os.link(folder / "file", folder / f"{name:060}")
        with (folder / "fragmented").open("wb") as file:
            for at in range(12):
                file.seek(at * 8192)
                file.write(b"%d-%d" % (number, at) * 100)
        for name, which in (("attributes", number), ("shared", folders + number // 8)):
            (folder / name).touch()
            os.setxattr(folder / name, "user.long", b"%03d" % which * 500)
    run("sync", "-f", place)  # some blocks are allocated then
    return unmarked(kernel_tree(place))


def unmarked(tree: Tree) -> Tree:
    """Return a tree without the records of mounts and members, and without how many blocks the fillers have."""
    return {
        path: facts._replace(xattrs=() if not path else facts.xattrs, blocks=0 if b"filler" in path else facts.blocks)
        for path, facts in tree.items()
    }


def fill_memory(pool: Members, left: int = 700 << 10) -> None:
    """Fill the memory, but for some bytes, with data that may go to storage."""
    with FileSystem.open(pool.pool) as fs:
        before = 1 << 62
        while before > (free := moves.use(fs.volume).memory_free) > left:
            before = free
            with fs.tree.open(f"/filler-{free}", "wb") as file:
                file.write(bytes(min(free - left, MIB)))
        assert free <= left, "some may not be taken"
