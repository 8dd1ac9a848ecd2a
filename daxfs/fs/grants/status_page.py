"""The status page: the entries that clients check before they use a grant, and the token that they quote.

An entry is one cache line of the pool for each granted file, with the running epoch and the file size
(`protocol.StatusEntry`). The first entry of the first block holds the mount's token instead: 128 random bits, new with
each mount. A client quotes it in every lease request, and so proves that it can open the pool.

The blocks belong to a quarantine inode: they lie in the pool, where clients have access anyway, and recovery frees
them. They are never logged, since a crash ends all grants. No name or file handle leads to that inode, and no log or
answer contains the token. The daemon erases the token before it frees the block; a token that a crash leaves there is
no mount's token any longer.
"""

from __future__ import annotations

import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from daxfs.errors import MissingMemory
from daxfs.fs import clock, removal
from daxfs.fs.types import ROOT_INO
from daxfs.protocol import ENDED, ENTRY, EPOCH_AT, TOKEN_SIZE
from daxfs.structures import inode_allocation, inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume
    from daxfs.journal.handle import Handle
    from daxfs.structures.inodes import Inode

CREDITS_PAGE = 24


def new_quarantine_inode(tx: Handle) -> Inode:
    """Return a new inode for blocks that belong to no file. The caller registers it with `Lifetimes.quarantined`."""
    inode = inode_allocation.allocate(tx, inodes.read(tx, ROOT_INO), stat.S_IFREG)
    mapping.new_inode_map(tx, inode)
    inode.atime_ns = inode.mtime_ns = inode.ctime_ns = inode.crtime_ns = clock.now()
    return inode


class Retired(NamedTuple):
    """An old page: its inode, and the pool offset of the token."""

    ino: int
    token: int


class StatusPage:
    """The status page of one volume: the blocks of one inode, as many as are needed.

    Attributes:
        ino: the number of that inode; 0: no block has been needed yet.
        token: pool offset of the token; 0: there is none.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.ino = 0
        self.token = 0
        self._secret = b""
        self._free: list[int] = []

    def ensure(self) -> None:
        """Make the first block, with the token, unless it exists or the volume is read-only.

        Raises:
            FsError: ENOSPC.
        """
        if not self.ino and not self._volume.read_only:
            self._volume.retrying(lambda _: self._add_block())

    def reaches(self, end: int) -> bool:
        """Return whether blocks or the inode of the page lie from block ``end`` on."""
        if not self.ino:
            return False
        view = self._volume.view
        geometry, inode = view.geometry, inodes.read(view, self.ino)
        in_table = geometry.first_block(geometry.group_of_inode(self.ino)) >= end
        return in_table or any(run.pblk + run.length > end for run in mapping.walk(view, inode))

    def renew(self, entries: int) -> Retired:
        """Make a new page with the same token and room for some entries; return the old one, with what clients read.

        The caller has the entries in use replaced, and frees the old page (`free_retired`) when nobody reads them.

        Raises:
            FsError: ENOSPC: the page stays.
        """
        old = self.ino, self.token, self._free
        self.ino, self.token, self._free = 0, 0, []
        try:
            self._add_block()
            while len(self._free) < entries:
                self._add_block()
        except BaseException:
            if self.ino:
                self._give_up(self.ino)
            self.ino, self.token, self._free = old
            raise
        return Retired(*old[:2])

    def free_retired(self, old: Retired) -> None:
        """Erase the token of an old page, and free the page."""
        with suppress(MissingMemory):
            self._volume.pool.zero(old.token, TOKEN_SIZE)
        self._give_up(old.ino)

    def _give_up(self, ino: int) -> None:
        self._volume.lives.released(ino)
        removal.begin(self._volume, ino)

    def token_matches(self, quoted: bytes) -> bool:
        """Return whether a request quotes the token. A volume that was always read-only has none and needs none."""
        if not self.token:
            return self._volume.read_only
        return secrets.compare_digest(quoted, self._secret)

    def erase(self) -> None:
        """Erase the token at the end of the mount: from then on no request is granted."""
        if self.token:
            self._volume.pool.zero(self.token, TOKEN_SIZE)
            self._secret = secrets.token_bytes(TOKEN_SIZE)

    def allocate(self) -> int:
        """Return the pool offset of an unused entry.

        Raises:
            FsError: ENOSPC, there is no entry and no block for more.
        """
        if not self._free:
            self._volume.retrying(lambda _: self._add_block())
        return self._free.pop()

    def free(self, entry: int) -> None:
        """Free an entry for another inode. It shows `ENDED`, so that a client that still reads it asks again.

        An entry whose memory is missing is not used again; clients meet that too.
        """
        with suppress(MissingMemory):
            self._volume.pool.store_word(entry + EPOCH_AT, ENDED, 8)
            self._free.append(entry)

    def _add_block(self) -> None:
        volume = self._volume
        bits = volume.block_bits
        secret = b"" if self.token else self._secret or secrets.token_bytes(TOKEN_SIZE)
        with volume.handle(CREDITS_PAGE) as tx:
            inode = inodes.edit(tx, self.ino) if self.ino else new_quarantine_inode(tx)
            # Beside the metadata of the first groups: no large file loses a page, and no shrink has to move it.
            run = mapping.allocate(tx, inode, inode.size >> bits, 1, goal=volume.geometry.first_data_block)
            inode.size += 1 << bits
            begin = run.pblk << bits
            volume.pool.zero(begin, 1 << bits)
            if secret:
                volume.pool.write(begin, secret)
            volume.lives.quarantined(tx, inode.number)
        self.ino = inode.number
        self._free.extend(range(begin, begin + (1 << bits), ENTRY.size))
        if not self.token:
            self._free.remove(begin)
            self._secret = secret
            self.token = begin
