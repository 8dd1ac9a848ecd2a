"""Node ids: the 64-bit numbers by which the kernel names inodes in requests, and file handles name them for longer.

A node id is the inode's generation and number. An inode number is used again after a file was removed, with another
generation. So an old node id never names the new file: it is refused with ESTALE. The root's node id is 1 by the
protocol. No other file has that one, because ext4's inode 1 holds the bad blocks and has no name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs.types import ROOT_INO
from daxfs.fuse.kernel.abi import ROOT_ID

if TYPE_CHECKING:
    from daxfs.fs.pins import Pins

GENERATION_SHIFT = 32
NUMBER = (1 << GENERATION_SHIFT) - 1
"""The bits of a node id that are the inode number."""


def encode(ino: int, generation: int) -> int:
    """Return the node id of an inode."""
    return ROOT_ID if ino == ROOT_INO else generation << GENERATION_SHIFT | ino


def decode(node: int) -> int:
    """Return the inode number in a node id.

    The node id may be old or forged. It is valid if `encode` makes it from this number and the inode's own generation.
    """
    return ROOT_INO if node == ROOT_ID else node & NUMBER


def resolve(node: int, known: Pins) -> int | None:
    """Return the inode number of a node id that the kernel has looked up and not forgotten; None: it has not."""
    if node == ROOT_ID:
        return ROOT_INO
    ino = node & NUMBER
    return ino if known.generation(ino) == node >> GENERATION_SHIFT and ino != ROOT_INO else None
