"""Node ids: the 64-bit numbers by which the kernel names inodes in requests, and file handles name them for longer.

A node id is the inode's generation and number. An inode number is used again after a file was removed, with another
generation. So an old node id never names the new file: it is refused with ESTALE. The root's node id is 1 by the
protocol. No other file has that one, because ext4's inode 1 holds the bad blocks and has no name.

An inode that gets another number while the kernel knows it keeps its node id until it is forgotten: an entry with
another one would be another inode to the kernel, with a cache and locks of its own. `resolve` and `known_as` are the
two directions of that; `daxfs.fs.moving.aliases` has the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daxfs.fs.types import ROOT_INO
from daxfs.fuse.kernel.abi import ROOT_ID

if TYPE_CHECKING:
    from daxfs.fs.pins import Pins
    from daxfs.fs.types import Attributes

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
    ino, generation = node & NUMBER, node >> GENERATION_SHIFT
    if known.generation(ino) == generation and ino != ROOT_INO:
        return ino
    return known.aliases.inside(ino, generation) if known.aliases else None


def known_as(found: Attributes, known: Pins) -> Attributes:
    """Return attributes with the number and generation by which the kernel knows the inode."""
    name = known.aliases.outside(found.ino) if known.aliases else None
    return found if name is None else found._replace(ino=name.ino, generation=name.generation)
