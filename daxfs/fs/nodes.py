"""Inodes in use, and all that happens to one while it is: each happening is one transition of `Node`.

A `Node` exists for an inode that is open, or whose times wait for the next commit. It keeps in DRAM what reads and
writes need: size, a map of the blocks, times that wait. A change of the inode ends with the transition that says so,
once its handle has succeeded (`change.py` does it for blocks and size); a node is never ahead of its inode,
so nothing of it is undone. The grants of the file's memory hear of it here (`Node.grants`), and nowhere else.

`Nodes` has all nodes of a volume. The lives of inodes beyond being open are in `lifetimes.py`.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from daxfs.ext4.inode import (
    EXT4_APPEND_FL,
    EXT4_DAX_FL,
    EXT4_IMMUTABLE_FL,
    EXT4_JOURNAL_DATA_FL,
    EXT4_NOATIME_FL,
    EXT4_SYNC_FL,
    EXT4_VERITY_FL,
)
from daxfs.fs import clock
from daxfs.fs.filemap import MAX_RUNS, FileMap
from daxfs.structures import inodes, mapping, xattrs

if TYPE_CHECKING:
    from daxfs.fs.notifiers import InodeNotifier
    from daxfs.fs.types import Options
    from daxfs.journal.transaction import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode
    from daxfs.structures.mapping import Extent

MAX_MAPPED_FILES = 1024
"""How many files may keep a `FileMap` at the same time; the one opened longest ago loses its map first."""
MAX_LAZY = 64
"""Inodes whose times may wait for the commit: the log of the smallest journal has room for them at any time."""
NOT_PLAIN = EXT4_IMMUTABLE_FL | EXT4_APPEND_FL | EXT4_SYNC_FL
"""Flags of files whose writes are more than a copy (`Node.plain`)."""
SET_ID = stat.S_ISUID | stat.S_ISGID
DAY_NS = 86_400 * 10**9
END = 1 << 62
"""Past the last byte of any file."""


class Node:
    """One inode in use.

    Attributes:
        ino: its number.
        opens: how often it is open.
        size: of the file in bytes.
        map: where its blocks lie; None: not read yet, or too many pieces.
        scattered: in too many pieces for a map, each access asks the tree.
        atime: a time that is not in the inode yet, in nanoseconds; 0: none. As with the kernel's lazytime the commit
            writes it, so that an overwrite changes no metadata block.
        mtime: as ``atime``.
        ctime: as ``atime``.
        atime_due: the next read moves the time of access.
        noatime: reading it never does.
        plain: a write needs no more than a copy: no set-id bits or capabilities to drop, not immutable, append-only or
            sync.
        dax: data goes straight to memory; decided when the file is opened and nobody had it open.
        grants: what clients were granted of its memory hears of all that happens to it.
    """

    __slots__ = (
        "_nodes",
        "atime",
        "atime_due",
        "ctime",
        "dax",
        "grants",
        "ino",
        "map",
        "mtime",
        "noatime",
        "opens",
        "plain",
        "scattered",
        "size",
    )

    def __init__(self, nodes: Nodes, inode: Inode) -> None:
        self._nodes = nodes
        self.ino = inode.number
        self.opens = 0
        self.size = inode.size
        self.map: FileMap | None = None
        self.grants: InodeNotifier | None = None
        self.atime = 0
        self.mtime = 0
        self.ctime = 0
        self.atime_due = False
        self.dax = False
        self.noatime = False
        self.plain = False
        self.scattered = False
        self.reloaded(inode)

    # What happens to it

    def accessed(self) -> None:
        """It was read, and its time of access was due."""
        nodes = self._nodes
        self.atime_due = nodes.options.atime == "strictatime"
        if nodes.writable:
            if self.grants is not None:
                self.grants.bump_version()
            if self.ino not in nodes.lazy:
                nodes.wait_for_commit(self)
            self.atime = clock.now()

    def overwritten(self) -> None:
        """Its content was changed in place."""
        if self.grants is not None:
            self.grants.bump_version()
        if self.ino not in self._nodes.lazy:
            self._nodes.wait_for_commit(self)
        self.mtime = self.ctime = clock.now()
        self.atime_due = not self.noatime

    def zeroed(self, begin: int, end: int) -> None:
        """The bytes [begin, end), which have blocks, were zeroed in place."""
        if self.grants is not None:
            self.grants.zero_range(begin, end)
        self.overwritten()

    def changed(self, size: int) -> None:
        """A handle has changed its blocks or size, and written its times; the map is the caller's to keep right."""
        self.mtime = self.ctime = 0
        self.atime_due = not self.noatime
        before, self.size = self.size, size
        if self.grants is None:
            return
        if size == before:
            self.grants.bump_version()
        else:
            self.grants.set_size(size)

    def mapped(self, runs: Iterable[Extent]) -> None:
        """Put ``runs`` into the kept map, after a handle has allocated or converted these blocks."""
        held, bits = self.map, self._nodes.block_bits
        if held is None:
            return
        for run in runs:
            held.put_blocks(run, bits)
        if len(held.runs) > MAX_RUNS:
            self.map = None
            self.scattered = True

    def unmapped(self, begin: int, end: int) -> None:
        """The bytes [begin, end) have no blocks any more."""
        self.scattered = False
        if self.map is not None:
            self.map.cut(begin, end)

    def remapped(self) -> None:
        """Any of its blocks may lie elsewhere now."""
        self.scattered = False
        self.map = None

    def moved(self, begin: int, end: int) -> None:
        """All is done that takes the bytes [begin, end) elsewhere, or that failed at it."""
        if self.grants is not None:
            self.grants.invalidate_range(begin, end)

    def holes_filled(self) -> None:
        """Holes in it were filled: clients that know of holes must ask again."""
        if self.grants is not None:
            self.grants.bump_epoch()

    def reloaded(self, inode: Inode) -> None:
        """Its attributes changed; all that is kept of them is read again."""
        nodes = self._nodes
        self.size = inode.size
        # Of attributes only a file capability matters, but only a write looks for it: this must stay cheap.
        self.plain = not (inode.mode & SET_ID or inode.flags & NOT_PLAIN or xattrs.present(inode))
        if self.grants is not None:
            self.grants.set_size(inode.size)
            if not self.plain:
                self.grants.bump_epoch()
        if not self.opens:
            self.dax = nodes.dax_of(inode)
        options = nodes.options
        policy = options.atime
        self.noatime = policy == "noatime" or bool(inode.flags & EXT4_NOATIME_FL)
        if not options.directory_atime and inode.is_dir:
            self.noatime = True
        if self.noatime:
            self.atime_due = False
        elif policy == "relatime":
            atime = self.atime or inode.atime_ns
            modified = max(self.mtime or inode.mtime_ns, self.ctime or inode.ctime_ns)
            self.atime_due = atime <= modified or clock.now() - atime > DAY_NS
        else:
            self.atime_due = True

    def privileges_dropped(self, mode: int, flags: int) -> None:
        """A write looked at the inode's attributes and took away what a write takes, so that the next need not."""
        self.plain = not (mode & SET_ID or flags & NOT_PLAIN)

    def check(self, view: View) -> None:
        """Hold what is kept against the inode, for tests, between two operations.

        Raises:
            AssertionError: they do not agree.
        """
        inode = inodes.read(view, self.ino)
        assert self.opens >= 0
        if inode.is_regular:
            assert self.size == inode.size, f"inode {self.ino}: {self.size} bytes, on the disk {inode.size}"
        if self.map is not None:
            stored = FileMap()
            for run in mapping.walk(view, inode):
                stored.put_blocks(run, self._nodes.block_bits)
            assert self.map.runs == stored.runs, f"inode {self.ino}: {self.map.runs}, on the disk {stored.runs}"


class Nodes:
    """The nodes of one volume.

    Attributes:
        block_bits: log2 of the block size in bytes.
        options: how the volume is mounted.
        writable: times may wait for a commit; false as long as the volume is read-only.
        open: inode number -> node.
        lazy: inode number -> node, of those whose times wait.
        write_soon: writes all times that wait, in a handle of its own.
    """

    def __init__(self, options: Options, block_bits: int, write_soon: Callable[[], None]) -> None:
        self.block_bits = block_bits
        self.options = options
        self.writable = False
        self.open: dict[int, Node] = {}
        self.lazy: dict[int, Node] = {}
        self.write_soon = write_soon
        self._mapped: dict[int, Node] = {}

    # Opening

    def of(self, inode: Inode) -> Node:
        """The node of an inode, made if there is none."""
        node = self.open.get(inode.number)
        if node is None:
            node = self.open[inode.number] = Node(self, inode)
        elif not node.opens:
            node.dax = self.dax_of(inode)
        return node

    def opened(self, inode: Inode) -> Node:
        """One opener more."""
        node = self.of(inode)
        node.opens += 1
        return node

    def closed(self, node: Node) -> None:
        """One opener less."""
        node.opens -= 1
        self.drop_idle(node)

    def is_open(self, ino: int) -> bool:
        """Whether anybody has it open."""
        node = self.open.get(ino)
        return node is not None and node.opens > 0

    def drop_idle(self, node: Node) -> None:
        """Drop the node if nothing needs it: not open, no times to write."""
        if node.opens == 0 and node.ino not in self.lazy:
            self.open.pop(node.ino, None)
            self._mapped.pop(node.ino, None)

    def forget(self, ino: int) -> None:
        """The inode is being freed: nothing of it may reach the pool again."""
        self.lazy.pop(ino, None)
        self.open.pop(ino, None)
        self._mapped.pop(ino, None)

    def dax_of(self, inode: Inode) -> bool:
        """Whether a file that is opened now is served straight from memory (ext4_should_enable_dax)."""
        policy, flags = self.options.dax, inode.flags
        if policy == "never" or not inode.is_regular or flags & (EXT4_JOURNAL_DATA_FL | EXT4_VERITY_FL):
            return False
        return policy == "always" or bool(flags & EXT4_DAX_FL)

    # Changes of inodes that may have a node

    def reloaded(self, inode: Inode) -> None:
        """An inode's attributes changed: `Node.reloaded` where there is a node."""
        node = self.open.get(inode.number)
        if node is not None:
            node.reloaded(inode)

    def stamped(self, tx: Handle, ino: int, *, atime: bool = False, mtime: bool = False, ctime: bool = False) -> None:
        """The handle gives the inode newer times than those that wait for the commit. Undone with the handle."""
        opened = self.open.get(ino)
        if opened is not None and opened.grants is not None:
            opened.grants.bump_version()
        node = self.lazy.get(ino)
        if node is None:
            return
        before = node.atime, node.mtime, node.ctime

        def undo() -> None:
            node.atime, node.mtime, node.ctime = before

        tx.on_rollback(undo)
        if atime:
            node.atime = 0
        if mtime:
            node.mtime = 0
        if ctime:
            node.ctime = 0

    # Maps

    def remember_map(self, node: Node, mapped: FileMap) -> None:
        """Give the node its map, within the bound on all maps."""
        node.map = mapped
        self._mapped.pop(node.ino, None)
        self._mapped[node.ino] = node
        if len(self._mapped) > MAX_MAPPED_FILES:
            oldest = next(iter(self._mapped))
            self._mapped.pop(oldest).map = None

    def drop_maps(self) -> None:
        """Forget all maps: changes that had succeeded were given up with the journal."""
        for node in self.open.values():
            node.map = None
        self._mapped.clear()

    # Times that wait

    def wait_for_commit(self, node: Node) -> None:
        """The node, none of whose times waits yet, gets times that the next commit writes; an error: it must not."""
        if len(self.lazy) >= MAX_LAZY:
            self.write_soon()
        self.lazy[node.ino] = node

    def give_up_times(self) -> None:
        """No commit comes any more: what waits for one is lost."""
        waiting, self.lazy = self.lazy, {}
        for node in waiting.values():
            node.atime = node.mtime = node.ctime = 0
            self.drop_idle(node)

    def write_times(self, tx: Handle) -> None:
        """Commit hook: times that waited go into their inodes."""
        waiting, self.lazy = self.lazy, {}
        before = [(node, node.atime, node.mtime, node.ctime) for node in waiting.values()]

        def undo() -> None:
            self.lazy = waiting
            for node, *times in before:
                node.atime, node.mtime, node.ctime = times
                self.open[node.ino] = node

        tx.on_rollback(undo)
        for node in waiting.values():
            inode = inodes.edit(tx, node.ino)
            if node.atime:
                inode.atime_ns = node.atime
            if node.mtime:
                inode.mtime_ns = node.mtime
            if node.ctime:
                inode.ctime_ns = node.ctime
            node.atime = node.mtime = node.ctime = 0
            self.drop_idle(node)

    def check(self, view: View) -> None:
        """`Node.check` of all nodes, and that they are where they belong. For tests, between two operations."""
        assert self.lazy.keys() <= self.open.keys()
        for ino, node in self.open.items():
            assert node.ino == ino
            assert node.opens or ino in self.lazy, f"inode {ino}: a node that nothing needs"
            assert self.lazy.get(ino, node) is node
            node.check(view)
