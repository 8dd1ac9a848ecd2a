"""The life of an inode: whether it has a name, whether the disk's orphan list has it, what keeps it from being freed.

::

                 named(tx)                     unnamed(tx)
    [named] <------------------ [nameless] <---------------- [named]       made_nameless(tx): a new inode
       |                         |   |   ^                                 begins nameless, perhaps linkable
       | being_cut(tx)           |   |   | quarantined(tx): a new inode that holds blocks of no file
       v             list_orphans|   |
    [listed] --cut(tx)-->        |   | no longer held: freed(tx), or given_up(tx)
                                 v   v
                            [listed] [freed]

- *Nameless*: no directory names the inode; it is freed when nothing holds it. If it lives when the transaction commits,
  the commit puts it on the disk's orphan list, so that recovery frees it. One that is freed before never gets there.
- *Listed*: the disk's orphan list names it, because it is nameless or because it is being cut to its size.
- *Linkable*: nameless from the start and may get its first name (the kernel's I_LINKABLE).
- *Quarantined*: nameless for good, and holds blocks that belong to no file as long as clients may touch them.
- *Given up*: nameless, in use and on no list, because its end met damage. e2fsck frees it.
- *Pinned*: somebody knows its number (a FUSE lookup count), or has it open (`daxfs.fs.nodes`).

This module keeps the books and the disk's list. Each transition belongs to a handle and is undone with it. `removal.py`
decides when an inode is freed, and frees it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from daxfs.fs.pins import Pins
from daxfs.structures import inode_bitmaps, inodes, orphans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View

CREDITS_LISTED = 8
"""Blocks that noting orphans at a commit may change, for all of them together."""


class Lifetimes:
    """The states of the inodes of one volume, by inode number. Others read the sets and call the transitions.

    Attributes:
        pins: the lookup counts of pinned inodes.
        nameless: see the module.
        listed: see the module.
        linkable: see the module.
        quarantine: see the module.
        ending: the inodes on the orphan list whose end, or whose cut, has begun and takes more steps (`removal`): a
            set in the order of their beginning.
        unread: whether the disk's list has more inodes than could be read at the mount.
    """

    def __init__(self) -> None:
        self.pins = Pins()
        self.nameless: set[int] = set()
        self.listed: set[int] = set()
        self.linkable: set[int] = set()
        self.quarantine: set[int] = set()
        self.ending: dict[int, None] = {}
        self.unread = False

    # Names

    def unnamed(self, tx: Handle, ino: int) -> None:
        """The inode lost its last name, or is new and has none. Call once the handle has set its link count to 0."""
        _put(tx, self.nameless, ino)
        tx.reserve("orphans", CREDITS_LISTED)

    def made_nameless(self, tx: Handle, ino: int, *, linkable: bool) -> None:
        """A new inode without a name, which may get its first name if it is linkable."""
        self.unnamed(tx, ino)
        if linkable:
            _put(tx, self.linkable, ino)

    def named(self, tx: Handle, ino: int) -> None:
        """A nameless inode got its first name."""
        if ino in self.listed:
            self._unlist(tx, ino)
        _take(tx, self.nameless, ino)
        _take(tx, self.linkable, ino)

    # The list on the disk

    def list_orphans(self, tx: Handle) -> None:
        """Put every nameless inode that lives on onto the disk's orphan list (commit hook)."""
        for ino in sorted(self.nameless - self.listed):
            self._list(tx, ino)

    @property
    def unlisted(self) -> bool:
        """Whether `list_orphans` has anything to do."""
        return not self.nameless <= self.listed

    def being_cut(self, tx: Handle, ino: int) -> None:
        """The inode is cut in several handles: after a crash recovery continues, until `cut`. Costs two credits."""
        if ino not in self.nameless and ino not in self.listed:
            self._list(tx, ino)

    def cut(self, tx: Handle, ino: int) -> None:
        """The inode no longer has blocks past EOF. Costs two credits."""
        if ino in self.listed and ino not in self.nameless:
            self._unlist(tx, ino)

    def found_listed(self, found: Iterable[int], *, whole: bool) -> None:
        """Recovery found the inodes on the disk's list, which perhaps it could not read to its end."""
        self.listed.update(found)
        self.unread = not whole

    def found_nameless(self, ino: int) -> None:
        """Recovery found that an inode of the disk's list has no name."""
        self.nameless.add(ino)

    @property
    def unfinished(self) -> bool:
        """Whether inodes without a name are left, or the disk's list has others that recovery must see again."""
        return bool(self.nameless or self.listed or self.unread)

    # Another number

    def renumbered(self, ino: int, new: int, generation: int) -> None:
        """A handle has given an inode that is not quarantined another number, also in the disk's list."""
        for members in (self.nameless, self.listed, self.linkable):
            if ino in members:
                members.discard(ino)
                members.add(new)
        self.pins.renumbered(ino, new, generation)

    # Quarantine and the end

    def quarantined(self, tx: Handle, ino: int) -> None:
        """A new inode holds blocks of no file, or a quarantine inode holds more of them."""
        self.unnamed(tx, ino)
        _put(tx, self.quarantine, ino)

    def released(self, ino: int) -> None:
        """No client may touch the inode's blocks any longer; it may be freed."""
        self.quarantine.discard(ino)

    def freed(self, tx: Handle, ino: int) -> None:
        """The handle frees the inode. Costs two credits."""
        if ino in self.listed:
            self._unlist(tx, ino)
        for members in (self.nameless, self.linkable, self.quarantine):
            _take(tx, members, ino)

    def given_up(self, tx: Handle, ino: int) -> None:
        """The nameless inode stays in use until e2fsck frees it: its end meets damage each time. Costs two credits."""
        self.freed(tx, ino)

    def check(self, view: View, *, readable: bool) -> None:
        """Compare the sets with the pool; for tests, between two operations.

        Args:
            view: the newest state.
            readable: whether to compare the disk's list with ``listed``: a read-only volume does not keep it.

        Raises:
            AssertionError: they do not agree.
        """
        self.pins.check()
        assert self.linkable <= self.nameless, (self.linkable, self.nameless)
        assert self.quarantine <= self.nameless, (self.quarantine, self.nameless)
        assert not self.linkable & self.quarantine
        for ino in self.nameless | self.pins.keys():
            assert inode_bitmaps.in_use(view, ino), f"inode {ino} was freed"
        for ino in self.nameless:
            assert not inodes.read(view, ino).links_count, f"inode {ino} has a name"
        if readable:
            assert set(orphans.listing(view)) == self.listed

    def _list(self, tx: Handle, ino: int) -> None:
        orphans.add(tx, ino)
        _put(tx, self.listed, ino)

    def _unlist(self, tx: Handle, ino: int) -> None:
        orphans.remove(tx, ino)
        _take(tx, self.listed, ino)


def _put(tx: Handle, members: set[int], ino: int) -> None:
    if ino not in members:
        members.add(ino)
        tx.on_rollback(partial(members.discard, ino))


def _take(tx: Handle, members: set[int], ino: int) -> None:
    if ino in members:
        members.discard(ino)
        tx.on_rollback(partial(members.add, ino))
