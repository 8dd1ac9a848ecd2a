"""Notifiers: how the owner of open inodes says what happens to them, without knowing who listens.

They are to daxfs what MMU notifiers are to the kernel (include/linux/mmu_notifier.h). `daxfs.fs.grants` listens, which
gives memory of files to clients. Nothing below that package imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from daxfs.journal.transaction import Handle


class InodeNotifier(Protocol):
    """Hears what happens to one open inode. No call changes metadata or raises."""

    def changed(self) -> None:
        """Something of the inode or its content is no more what it was."""

    def resized(self, size: int) -> None:
        """The file is ``size`` bytes long now."""

    def invalidated(self) -> None:
        """What clients know of where the file's bytes lie, or of what a write means, is no longer true."""

    def moved(self, begin: int, end: int) -> None:
        """The bytes [begin, end) of the file lie elsewhere now, or nowhere."""

    def blanked(self, begin: int, end: int) -> None:
        """The bytes [begin, end) read as zeros; so must what clients were granted of them past EOF."""


class BlockNotifier(Protocol):
    """Hears of the blocks of all files, open or not."""

    @property
    def stale(self) -> bool:
        """Clients of an earlier mount may touch anything that was in the pool then, so that nothing may be freed."""

    def freed(self, tx: Handle, ino: int, mark: int) -> None:
        """The handle has freed what lies in ``tx.frees`` from ``mark`` on, blocks of a regular file's data.

        The listener takes runs off that list which must not become free yet. Costs `CREDITS_QUARANTINE` more credits.
        """

    def before_growth(self, ino: int) -> None:
        """The file is about to be made longer, cut or shifted, other than by a client: outside of a handle.

        Raises:
            FsError: as an operation on blocks.
        """

    def invalidated(self) -> None:
        """The volume became read-only: what clients may do has changed for all files."""

    def disowned(self) -> None:
        """The pool has another owner: clients hear once that no answer holds, and nothing is stored after that."""


CREDITS_QUARANTINE = 24
"""What keeping freed blocks adds to a handle: a new inode, its map's last leaf and what splits above it."""
