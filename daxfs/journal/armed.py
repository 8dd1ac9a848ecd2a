"""Layer 4: transactions that lie ready in the log, and that a client commits by itself.

To make a change durable is the store of one word, the sequence number in a commit record, once all the rest of the
transaction is in the log. So the rest can be there before: an *armed* transaction lacks only its word. Somebody who
maps the pool may *fire* it: compare the word with `CommitWord.armed`, and replace it by `CommitWord.valid` in one
atomic instruction. From then on whoever recovers the pool replays the transaction; nobody need know that it was armed.

The daemon takes over what was fired before it changes anything itself (`Journal.settle`). The first transaction that
was not fired is *disarmed* by one atomic instruction as well: either the client's or the daemon's comes first. The word
of an armed transaction differs from the valid one in two bits. Disarming sets the first of them to what it is in the
valid word: that changes no valid word, and makes an armed one a word that is neither.

docs/CRASH.md has the proof.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

_FLIPPED = int.from_bytes(b"\xc0\0\0\0", sys.byteorder)
DISARMING_BIT = int.from_bytes(b"\x80\0\0\0", sys.byteorder).bit_length() - 1
"""The number of the bit in which disarming makes a word equal to the valid one."""


class CommitWord(NamedTuple):
    """Where the word of an armed transaction lies in the pool, and its two values, in the machine's byte order."""

    place: int
    armed: int
    valid: int

    @property
    def disarming_value(self) -> bool:
        """What disarming makes of the bit `DISARMING_BIT`."""
        return bool(self.valid >> DISARMING_BIT & 1)


def word(place: int, sequence: int) -> CommitWord:
    """Return the word at the byte ``place`` of the pool that commits the transaction ``sequence``."""
    valid = int.from_bytes(sequence.to_bytes(4, "big"), sys.byteorder)
    return CommitWord(place, valid ^ _FLIPPED, valid)


class Armed:
    """Transactions that are armed, one after the other; each changes the same single block.

    Attributes:
        number: the block.
        images: the content that each gives it.
        settled: called once, with the number of transactions that were fired, when none can be any longer.
    """

    __slots__ = ("images", "number", "settled")

    def __init__(self, number: int, images: list[bytes], settled: Callable[[int], None]) -> None:
        self.number = number
        self.images = images
        self.settled = settled
