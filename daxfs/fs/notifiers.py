"""Notifiers: how the owner of open inodes reports what happens to them, without knowing the receiver.

They correspond to the kernel's MMU notifiers (include/linux/mmu_notifier.h). `daxfs.fs.grants`, which grants the memory
of files to clients, implements them. Nothing below that package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from daxfs.journal.handle import Handle


class InodeNotifier(Protocol):
    """Receives what happens to one open inode. No call changes metadata or raises."""

    for_storing: bool
    """Whether a client was ever granted bytes of it for storing."""

    def bump_version(self) -> None:
        """The inode or its content has changed."""

    def set_size(self, size: int) -> None:
        """The file is ``size`` bytes long now."""

    def bump_epoch(self) -> None:
        """What clients know of where the file's bytes lie, or of what a write means, no longer holds."""

    def invalidate_range(self, begin: int, end: int) -> None:
        """The bytes [begin, end) of the file lie elsewhere now, or nowhere."""

    def zero_range(self, begin: int, end: int) -> None:
        """The bytes [begin, end) read as zeros; what clients were granted of them past EOF must, too."""


class BlockNotifier(Protocol):
    """Receives what happens to the blocks of all files, open or not."""

    @property
    def stale(self) -> bool:
        """Whether clients of an earlier mount may touch what was in the pool then, so that nothing may be freed."""

    def defer_frees(self, tx: Handle, ino: int, mark: int) -> None:
        """The handle has freed the runs in ``tx.frees`` from ``mark`` on, which were blocks of a regular file's data.

        The receiver takes those runs off the list that must not become free yet. That costs `CREDITS_QUARANTINE` more
        credits.
        """

    def end_preallocation(self, ino: int) -> None:
        """Another operation than a client's is about to extend, cut or shift the file. Called outside a handle.

        Raises:
            FsError: as an operation on blocks.
        """

    def renumbered(self, ino: int, new: int) -> None:
        """An inode has another number."""

    def bump_all_epochs(self) -> None:
        """The volume became read-only: what clients may do has changed for all files."""

    def follow_size(self) -> None:
        """The size of the pool has changed: clients that ask for it map all of it."""

    def end_all_epochs(self) -> None:
        """The pool has another owner: clients must see that no answer holds, and nothing is stored after that."""


class MountNotifier(Protocol):
    """Receives that the pool is marked as in use or as clean, and knows its snapshots (`daxfs.fs.snapshots`)."""

    def pool_marked(self, tx: Handle) -> None:
        """The handle has changed the superblock's record of mounts."""

    def names(self) -> list[bytes]:
        """Return the names of all snapshots, those that are not valid included."""

    def refuse_change(self, ino: int) -> None:
        """Refuse to lift the protection of an inode, or to give a directory another name.

        Raises:
            FsError: EBUSY, it is the store of a snapshot, or a directory on the way to the stores.
        """


CREDITS_QUARANTINE = 24
"""What keeping freed blocks adds to a handle: a new inode, its map's last leaf and what splits above it."""
