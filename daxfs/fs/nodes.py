"""Inodes in use. Everything that happens to such an inode is a transition of its `Node`.

A `Node` exists for an inode that is open, or whose times wait for the next commit. It keeps in DRAM what reads and
writes need: size, block map, waiting times. A change of the inode ends with the transition that reports it, after its
handle has succeeded (`change.py` does it for blocks and size). A node is thus never ahead of its inode, and needs no
undo. The grants of the file's memory are notified here (`Node.grants`), and nowhere else.

`Nodes` has all nodes of a volume. `lifetimes.py` has the states of inodes beyond being open.
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
from daxfs.fs.filemap import LOGGED, MAX_RUNS, FileMap
from daxfs.journal.logged import LoggedData
from daxfs.structures import inodes, mapping, xattrs

if TYPE_CHECKING:
    from daxfs.fs.notifiers import InodeNotifier
    from daxfs.fs.types import Options
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode
    from daxfs.structures.mapping import Extent

MAX_MAPPED_FILES = 1024
"""How many files may keep a `FileMap` at the same time; the one opened longest ago loses its map first."""
MAX_LAZY = 64
"""Inodes whose times may wait for the commit: the log of the smallest journal has room for them at any time."""
NOT_PLAIN = EXT4_IMMUTABLE_FL | EXT4_APPEND_FL | EXT4_SYNC_FL
"""Flags of files at which a write must look (`Node.unprivileged` is then False)."""
SET_ID = stat.S_ISUID | stat.S_ISGID
DAY_NS = 86_400 * 10**9
END = 1 << 62
"""Past the last byte of any file."""


class Node:
    """One inode in use.

    Attributes:
        ino: inode number.
        opens: how often the inode is open.
        size: file size in bytes.
        map: where the blocks lie; None: not read yet, or too many runs.
        scattered: the file has too many runs for a map, or bad memory; each access searches the tree.
        atime: a time that is not in the inode yet, in nanoseconds; 0: none. As with the kernel's lazytime the commit
            writes it, so that an overwrite changes no metadata block.
        mtime: as ``atime``.
        ctime: as ``atime``.
        atime_due: whether the next read changes the access time.
        noatime: whether no read ever changes it.
        unprivileged: whether a write drops nothing and is never refused: there are no set-id bits or capabilities, the
            file is not immutable, append-only or sync.
        journaled: whether each write is atomic (chattr +j).
        plain: whether a write is only a copy: `unprivileged`, not `journaled`, and the log holds no block of the file.
        logged: logical -> physical block, of the blocks of which the running transaction has a newer copy than the
            pool; they are ``LOGGED`` in the map. None: there are none.
        durable_size: the size that the last fsync has made durable, or that the node began with.
        appends: how often fsync has found the file longer (`daxfs.fs.appends`).
        window: the byte after the blocks past EOF that are there for appends; 0: there are none.
        dax: whether data goes straight to memory; decided by an open while the inode is not open otherwise.
        grants: the grants of the file's memory, which are notified of all that happens to the inode; None: there are
            none.
    """

    __slots__ = (
        "_nodes",
        "appends",
        "atime",
        "atime_due",
        "ctime",
        "dax",
        "durable_size",
        "grants",
        "ino",
        "journaled",
        "logged",
        "map",
        "mtime",
        "noatime",
        "opens",
        "plain",
        "scattered",
        "size",
        "unprivileged",
        "window",
    )

    def __init__(self, nodes: Nodes, inode: Inode) -> None:
        self._nodes = nodes
        self.ino = inode.number
        self.opens = 0
        self.size = self.durable_size = inode.size
        self.appends = 0
        self.window = 0
        self.map: FileMap | None = None
        self.logged: dict[int, int] | None = None
        self.grants: InodeNotifier | None = None
        self.atime = 0
        self.mtime = 0
        self.ctime = 0
        self.atime_due = False
        self.dax = False
        self.noatime = False
        self.unprivileged = False
        self.journaled = False
        self.plain = False
        self.scattered = False
        self.reloaded(inode)

    # Transitions

    def accessed(self) -> None:
        """The file was read, and its access time was due."""
        nodes = self._nodes
        self.atime_due = nodes.options.atime == "strictatime"
        if nodes.writable:
            if self.grants is not None:
                self.grants.bump_version()
            if self.ino not in nodes.lazy:
                nodes.wait_for_commit(self)
            self.atime = clock.now()

    def overwritten(self) -> None:
        """The content was changed in place."""
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
        """A handle has changed blocks or size, and written the times. The caller keeps the map right."""
        self.mtime = self.ctime = 0
        self.atime_due = not self.noatime
        before, self.size = self.size, size
        if self.grants is None:
            return
        if size == before:
            self.grants.bump_version()
        else:
            self.grants.set_size(size)

    def synchronised(self) -> None:
        """The size is durable."""
        if self.size > self.durable_size:
            self.appends += 1
        self.durable_size = self.size

    def mapped(self, runs: Iterable[Extent]) -> None:
        """A handle has allocated or converted the blocks of ``runs``; put them into the map."""
        if self.logged is not None:
            self._forget_unlogged()
        held, bits = self.map, self._nodes.block_bits
        if held is None:
            return
        for run in runs:
            held.put_blocks(run, bits, self._nodes.memory_end)
        if len(held.runs) > MAX_RUNS:
            self.map = None
            self.scattered = True

    def unmapped(self, begin: int, end: int) -> None:
        """The bytes [begin, end) no longer have blocks."""
        self.scattered = False
        if self.map is not None:
            self.map.cut(begin, end)
        if self.logged is not None:
            self._forget_unlogged()

    def remapped(self) -> None:
        """Any block may lie elsewhere now, though none that is `logged`: those may only be gone."""
        self.scattered = False
        self.map = None
        if self.logged is not None:
            self._forget_unlogged()

    def logs(self, blocks: dict[int, int]) -> None:
        """A handle has logged new content of the blocks (logical -> physical), so readers take it from the view."""
        self.plain = False
        if self.logged is None:
            self.logged = {}
            self._nodes.logging[self.ino] = self
        self.logged.update(blocks)
        self._mark(blocks, LOGGED)

    def stored_home(self) -> None:
        """The transaction is committed, so the pool has the newest content of all blocks."""
        if self.logged is not None:
            self._mark(self.logged, 0)
            self.logged = None
            if self.map is None:
                self.scattered = False

    def _mark(self, blocks: dict[int, int], state: int) -> None:
        if self.map is None:
            return
        bits, mark = self._nodes.block_bits, self.map.mark
        for lblk in blocks:
            mark(lblk << bits, lblk + 1 << bits, state)
        if len(self.map.runs) > MAX_RUNS:
            self.map = None
            self.scattered = True

    def _forget_unlogged(self) -> None:
        assert self.logged is not None
        in_log = self._nodes.in_log
        self.logged = {lblk: pblk for lblk, pblk in self.logged.items() if pblk in in_log}

    def moved(self, begin: int, end: int) -> None:
        """An operation that moves or frees the bytes [begin, end) has finished, successfully or not."""
        if self.grants is not None:
            self.grants.invalidate_range(begin, end)

    def holes_filled(self) -> None:
        """Holes were filled: clients that know of holes must ask again."""
        if self.grants is not None:
            self.grants.bump_epoch()

    def restricted(self) -> None:
        """A batch has begun: clients that store, or read through its open file, must ask again."""
        if self.grants is not None:
            self.grants.bump_epoch()

    def reloaded(self, inode: Inode) -> None:
        """The attributes have changed; read all that is kept of them again."""
        nodes = self._nodes
        mode, flags = inode.mode, inode.flags
        self.size = inode.size
        # Of the extended attributes only a capability matters; a write looks for it, since this must stay cheap.
        self.unprivileged = not (mode & SET_ID or flags & NOT_PLAIN or xattrs.present(inode))
        self.journaled = bool(flags & EXT4_JOURNAL_DATA_FL) and stat.S_ISREG(mode)
        self.settled()
        if self.grants is not None:
            self.grants.set_size(inode.size)
            if not self.plain:
                self.grants.bump_epoch()
        if not self.opens:
            self.dax = nodes.dax_of(inode)
        options = nodes.options
        policy = options.atime
        self.noatime = policy == "noatime" or bool(flags & EXT4_NOATIME_FL)
        if not options.directory_atime and stat.S_ISDIR(mode):
            self.noatime = True
        if self.noatime:
            self.atime_due = False
        elif policy == "relatime":
            atime = self.atime or inode.atime_ns
            self.atime_due = (
                atime <= (self.ctime or inode.ctime_ns)  # the later one, as a rule
                or atime <= (self.mtime or inode.mtime_ns)
                or clock.now() - atime > DAY_NS
            )
        else:
            self.atime_due = True

    def privileges_dropped(self, mode: int, flags: int) -> None:
        """A write has dropped the privileges that writes drop; the next write need not look."""
        self.unprivileged = not (mode & SET_ID or flags & NOT_PLAIN)
        self.settled()

    def settled(self) -> None:
        """The log may hold fewer blocks of the file than before, or none."""
        self.plain = self.unprivileged and not self.journaled and self.ino not in self._nodes.in_log.owners

    def check(self, view: View) -> None:
        """Compare the node with its inode; for tests, between two operations.

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
                stored.put_blocks(run, self._nodes.block_bits, self._nodes.memory_end)
            unmarked, self.map = self.map, stored
            self._mark(self.logged or {}, LOGGED)
            stored, self.map = self.map, unmarked
            assert self.map.runs == stored.runs, f"inode {self.ino}: {self.map.runs}, on the disk {stored.runs}"


class Nodes:
    """The nodes of one volume.

    Attributes:
        block_bits: log2 of the block size in bytes.
        memory_end: where in the pool its memory ends and its storage begins.
        options: the mount options.
        writable: whether times may wait for a commit; False as long as the volume is read-only.
        open: inode number -> node.
        lazy: inode number -> node, of nodes whose times wait.
        logging: inode number -> node, of nodes with `Node.logged` blocks.
        in_log: the blocks that the log may still hold, of all files (`Journal.logged`).
        write_soon: writes all waiting times, in a handle of its own.
    """

    def __init__(self, options: Options, block_bits: int, write_soon: Callable[[], None]) -> None:
        self.block_bits = block_bits
        self.memory_end = END
        self.options = options
        self.writable = False
        self.open: dict[int, Node] = {}
        self.lazy: dict[int, Node] = {}
        self.logging: dict[int, Node] = {}
        self.in_log = LoggedData()
        self.write_soon = write_soon
        self._mapped: dict[int, Node] = {}

    # Opening

    def of(self, inode: Inode) -> Node:
        """Return the node of an inode; make it if there is none."""
        node = self.open.get(inode.number)
        if node is None:
            node = self.open[inode.number] = Node(self, inode)
        elif not node.opens:
            node.dax = self.dax_of(inode)
        return node

    def opened(self, inode: Inode) -> Node:
        """Count an open of the inode, and return its node."""
        node = self.of(inode)
        node.opens += 1
        return node

    def closed(self, node: Node) -> None:
        """Count a close."""
        node.opens -= 1
        self.drop_idle(node)

    def is_open(self, ino: int) -> bool:
        """Return whether the inode is open."""
        node = self.open.get(ino)
        return node is not None and node.opens > 0

    def drop_idle(self, node: Node) -> None:
        """Drop the node if it is not needed: not open, no times to write, no blocks to store home."""
        if node.opens == 0 and node.ino not in self.lazy and node.ino not in self.logging:
            self.open.pop(node.ino, None)
            self._mapped.pop(node.ino, None)

    def forget(self, ino: int) -> None:
        """Drop the node of an inode that is being freed: none of its times may still reach the pool."""
        self.lazy.pop(ino, None)
        self.logging.pop(ino, None)
        self.open.pop(ino, None)
        self._mapped.pop(ino, None)

    def renumbered(self, ino: int, new: int) -> None:
        """An inode has another number; its node, if there is one, stays."""
        node = self.open.get(ino)
        if node is not None:
            node.ino = new
        for table in (self.open, self.lazy, self.logging, self._mapped):
            if ino in table:
                table[new] = table.pop(ino)
        self.in_log.renumbered(ino, new)

    def dax_of(self, inode: Inode) -> bool:
        """Return whether a file that is opened now is served straight from memory (ext4_should_enable_dax).

        With ``dax=always`` that includes reads of files with chattr +j, to which nobody but the daemon stores.
        """
        policy, flags = self.options.dax, inode.flags
        if policy == "never" or not inode.is_regular or flags & EXT4_VERITY_FL:
            return False
        return policy == "always" or flags & (EXT4_DAX_FL | EXT4_JOURNAL_DATA_FL) == EXT4_DAX_FL

    # Changes of inodes that may have a node

    def reloaded(self, inode: Inode) -> None:
        """Reload the node, if there is one, after the inode's attributes have changed."""
        node = self.open.get(inode.number)
        if node is not None:
            node.reloaded(inode)

    def stamped(self, tx: Handle, ino: int, *, atime: bool = False, mtime: bool = False, ctime: bool = False) -> None:
        """Drop waiting times that are older than those the handle gives the inode; undone with the handle."""
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
        """Set the node's map, within the bound on all maps."""
        node.map = mapped
        if node.logged is not None:
            node.logs(node.logged)
        self._mapped.pop(node.ino, None)
        self._mapped[node.ino] = node
        if len(self._mapped) > MAX_MAPPED_FILES:
            oldest = next(iter(self._mapped))
            self._mapped.pop(oldest).map = None

    def drop_maps(self) -> None:
        """Drop all maps: the journal was aborted with changes that had succeeded, or memory is missing or back."""
        for node in self.open.values():
            node.map = None
            node.scattered = False
        self._mapped.clear()

    # Blocks that wait to be stored home

    def stored_home(self) -> None:
        """A commit has stored all blocks home."""
        if not self.logging:
            return
        logging, self.logging = self.logging, {}
        for node in logging.values():
            node.stored_home()
            self.drop_idle(node)

    # Times that wait

    def wait_for_commit(self, node: Node) -> None:
        """Have the next commit write the node's times, none of which waits yet. After an error they must not wait."""
        if len(self.lazy) >= MAX_LAZY:
            self.write_soon()
        self.lazy[node.ino] = node

    def give_up_times(self) -> None:
        """Drop all waiting times: no commit will follow."""
        waiting, self.lazy = self.lazy, {}
        for node in waiting.values():
            node.atime = node.mtime = node.ctime = 0
            self.drop_idle(node)

    def write_times(self, tx: Handle) -> None:
        """Write waiting times into their inodes (commit hook). Those of inodes that can't change are lost."""
        waiting, self.lazy = self.lazy, {}
        before = [(node, node.atime, node.mtime, node.ctime) for node in waiting.values()]

        def undo() -> None:
            self.lazy = waiting
            for node, *times in before:
                node.atime, node.mtime, node.ctime = times
                self.open[node.ino] = node

        tx.on_rollback(undo)
        some_can_not = tx.pool.bad or tx.geometry.border
        for node in waiting.values():
            if not some_can_not or inodes.can_change(tx, node.ino):
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
        """Check every node, and that each is in the right tables; for tests, between two operations."""
        assert self.lazy.keys() <= self.open.keys()
        for ino, node in self.open.items():
            assert node.ino == ino
            assert node.opens or ino in self.lazy or ino in self.logging, f"inode {ino}: a node that nothing needs"
            assert self.lazy.get(ino, node) is node
            assert (self.logging.get(ino) is node) == (node.logged is not None)
            node.check(view)
