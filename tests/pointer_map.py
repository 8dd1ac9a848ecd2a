"""The blocks of a block map (a file without extents), read from its pointers without the code under test."""

from __future__ import annotations

import numpy as np

from daxfs.journal.view import View
from daxfs.structures.extent_tree import ROOT_WORDS
from daxfs.structures.inodes import Inode

DIRECT = 12


def index_blocks(view: View, inode: Inode) -> list[int]:
    """Return the numbers of the map's index blocks."""
    return [number for number, _ in _index_blocks(view, inode)]


def count_blocks(view: View, inode: Inode) -> int:
    """Count the blocks of content and the index blocks."""
    count = sum(pointer != 0 for pointer in inode.words[ROOT_WORDS][:DIRECT])
    for number, depth in _index_blocks(view, inode):
        count += 1 + (0 if depth else len(_pointers(view, number)))
    return count


def _index_blocks(view: View, inode: Inode) -> list[tuple[int, int]]:
    """Return each index block, and how many index blocks lie between it and content."""
    found: list[tuple[int, int]] = []
    waiting = [(number, depth) for depth, number in enumerate(inode.words[ROOT_WORDS][DIRECT:15]) if number]
    while waiting:
        number, depth = waiting.pop()
        found.append((number, depth))
        if depth:
            waiting += [(below, depth - 1) for below in _pointers(view, number)]
    return found


def _pointers(view: View, number: int) -> list[int]:
    pointers = np.frombuffer(view.block(number), "<u4")
    used: list[int] = pointers[pointers != 0].tolist()
    return used
