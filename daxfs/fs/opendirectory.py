"""An open directory, as `FileSystem.opendir` gives it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fs.nodes import Node


class OpenDirectory:
    """An open directory: listings may go on after any cookie as long as it is open."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def ino(self) -> int:
        """The inode number, which may change while the directory is open (`daxfs.fs.moving.renumbering`)."""
        return self.node.ino
