"""Inodes in use: which are open, which the kernel remembers, and what of them is held in DRAM meanwhile.

A `Node` exists for an inode that is open, or whose times wait for the next commit. Pins are the kernel's lookup counts.
An inode that is open or pinned is *busy*: when its last name goes it stays until it is busy no more. This module keeps
the books; it changes nothing on the pool (`volume.py` writes the times, `removal.py` frees the inode).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs.filemap import FileMap

if TYPE_CHECKING:
    from daxfs.fs.leases import Lease

MAX_MAPPED_FILES = 1024
"""How many files may keep a `FileMap` at the same time; the one opened longest ago loses its map first."""


class Node:
    """One inode in use.

    ``atime``, ``mtime`` and ``ctime`` are times not yet in the inode (0: none): as with the kernel's lazytime they are
    written by the commit, so that an overwrite changes no metadata block. ``plain`` is true while a write needs no
    more than a copy: no set-id bits or capabilities to drop, not immutable, append-only or sync. ``scattered``: in too
    many pieces for a map, each access asks the tree. ``dax``: whether data goes straight to memory, decided when the
    file is opened and nobody had it open. ``noatime``: reading it never moves its access time. ``lease``: clients may
    load or store by themselves (`leases.py`).
    """

    __slots__ = (
        "atime",
        "atime_due",
        "ctime",
        "dax",
        "ino",
        "lease",
        "map",
        "mtime",
        "noatime",
        "opens",
        "plain",
        "scattered",
        "size",
    )

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.opens = 0
        self.size = 0
        self.map: FileMap | None = None
        self.lease: Lease | None = None
        self.atime = 0
        self.mtime = 0
        self.ctime = 0
        self.atime_due = False
        self.dax = False
        self.noatime = False
        self.plain = False
        self.scattered = False


class Nodes:
    """The books of one volume, all by inode number.

    ``open``: nodes; ``pins``: lookup counts; ``lazy``: nodes whose times wait; ``unlinked``: inodes without a name that
    are not freed yet; ``listed``: those of them, and of inodes being cut, that the disk's orphan list names;
    ``linkable``: those that never had a name and may get one (the kernel's I_LINKABLE); ``kept``: those that hold
    blocks which belong to no file (`parking.py`).
    """

    def __init__(self) -> None:
        self.open: dict[int, Node] = {}
        self.pins: dict[int, int] = {}
        self.lazy: dict[int, Node] = {}
        self.unlinked: set[int] = set()
        self.listed: set[int] = set()
        self.linkable: set[int] = set()
        self.kept: set[int] = set()
        self._mapped: dict[int, Node] = {}

    def busy(self, ino: int) -> bool:
        """Whether the inode must outlive its last name."""
        node = self.open.get(ino)
        return ino in self.pins or (node is not None and node.opens > 0) or ino in self.kept

    def keep(self, ino: int) -> None:
        """A new inode without a name is busy until nobody needs what it holds."""
        self.kept.add(ino)
        self.unlinked.add(ino)

    def unkeep(self, ino: int) -> None:
        """Take back `keep`: the inode was not made."""
        self.kept.discard(ino)
        self.unlinked.discard(ino)

    def pin(self, ino: int) -> None:
        """One more reference by number (a FUSE lookup)."""
        self.pins[ino] = self.pins.get(ino, 0) + 1

    def unpin(self, ino: int, count: int = 1) -> None:
        """``count`` references by number are gone (a FUSE forget)."""
        left = self.pins.get(ino, 0) - count
        if left > 0:
            self.pins[ino] = left
        else:
            self.pins.pop(ino, None)

    def drop_times(self, ino: int, *, atime: bool = False, mtime: bool = False, ctime: bool = False) -> None:
        """The inode got newer times than those that wait for the commit."""
        opened = self.open.get(ino)
        if opened is not None and opened.lease is not None:
            opened.lease.changed()
        node = self.lazy.get(ino)
        if node is not None:
            if atime:
                node.atime = 0
            if mtime:
                node.mtime = 0
            if ctime:
                node.ctime = 0

    def remember_map(self, node: Node, mapped: FileMap) -> None:
        """Give the node its map, within the bound on all maps."""
        node.map = mapped
        self._mapped.pop(node.ino, None)
        self._mapped[node.ino] = node
        if len(self._mapped) > MAX_MAPPED_FILES:
            oldest = next(iter(self._mapped))
            self._mapped.pop(oldest).map = None

    def drop_maps(self) -> None:
        """Forget all maps: a change was rolled back and they may say too much."""
        for node in self._mapped.values():
            node.map = None
        self._mapped.clear()

    def settle(self, node: Node) -> None:
        """Drop the node when nothing needs it: not open, no times to write."""
        if node.opens == 0 and node.ino not in self.lazy:
            self.open.pop(node.ino, None)
            self._mapped.pop(node.ino, None)

    def forget(self, ino: int) -> None:
        """The inode is freed: nothing of it may reach the pool again."""
        self.lazy.pop(ino, None)
        self.open.pop(ino, None)
        self._mapped.pop(ino, None)
        self.unlinked.discard(ino)
        self.linkable.discard(ino)
