"""A path through an extent tree, from the root to a leaf: a list of `Node`.

`extent_tree.descend` makes paths; the modules that change trees take them apart. The module is not compiled, because
mypyc makes no named tuple with a ``memoryview`` in it.
"""

from __future__ import annotations

from typing import NamedTuple


class Node(NamedTuple):
    """One step of a path: block ``number`` (0: the root), its words, and the entry chosen (-1: before the first)."""

    number: int
    words: memoryview
    at: int
