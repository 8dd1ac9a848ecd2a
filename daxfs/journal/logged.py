"""Layer 4: which blocks of file data the running transaction or the log holds.

File data goes to its blocks directly, except for the blocks that a handle logs (`Handle.log_data`): these are copied,
logged and stored home like metadata, so that their new content is there whole or not at all. The log keeps such a copy
until its tail has moved, and a replay stores it once more. So whoever frees such a block or stores to it directly calls
`Handle.unlog_data` first, which revokes the copy: the transaction that makes the new content durable also keeps replay
from undoing it. Without the list, every store of file data would need a revoke record.

The journal and its handles change the list; the fs layer asks it. docs/CRASH.md has the proof (C17, C18).
"""

from __future__ import annotations

from collections.abc import Collection


class LoggedData(dict[int, int]):
    """The logged data blocks: block -> owner. Change it by its own methods.

    Attributes:
        owners: owner -> its blocks, at least one. An owner is a number that the fs layer chooses: the inode's.
    """

    __slots__ = ("owners",)

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, set[int]] = {}

    def within(self, start: int, count: int) -> list[int]:
        """Return the blocks of a run that are logged."""
        if count < len(self):
            return [number for number in range(start, start + count) if number in self]
        return [number for number in self if start <= number < start + count]

    def add(self, number: int, owner: int) -> None:
        """Add a block that is not on the list."""
        self[number] = owner
        self.owners.setdefault(owner, set()).add(number)

    def remove(self, number: int) -> int:
        """Remove a block from the list; return its owner."""
        owner = self.pop(number)
        blocks = self.owners[owner]
        blocks.remove(number)
        if not blocks:
            del self.owners[owner]
        return owner

    def renumbered(self, owner: int, new: int) -> None:
        """An owner has another number."""
        if owner in self.owners:
            self.owners[new] = self.owners.pop(owner)
            for number in self.owners[new]:
                self[number] = new

    def keep(self, numbers: Collection[int]) -> None:
        """Remove all other blocks: the log has begun anew."""
        for number in [number for number in self if number not in numbers]:
            self.remove(number)
