"""The table of aliases, and what the edge of FUSE makes of it."""

from __future__ import annotations

from daxfs.fs.moving.aliases import Aliases, Known
from daxfs.fs.pins import Pins
from daxfs.fs.types import Attributes
from daxfs.fuse.kernel import nodeid

FOUND = Attributes(12, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0)
"""What the pool says of inode 12, generation 9."""


def test_both_directions() -> None:
    table = Aliases()
    table.put(Known(900, 7), 12)
    assert (table.inside(900, 7), table.inside(900, 8), table.inside(12, 7)) == (12, None, None)
    assert (table.shown(12), table.shown(900), table.outside(13)) == (900, 900, None)
    table.check()
    table.drop(13)
    table.drop(12)
    assert not table
    assert not table.numbers
    table.check()


def test_pins_follow() -> None:
    """Through two numbers; the last reference ends the alias."""
    pins = Pins()
    pins.renumbered(900, 12, 9)
    assert not pins.aliases, "nobody knows it"
    pins.pin(900, 7)
    pins.pin(900, 7)
    pins.renumbered(900, 500, 8)
    pins.renumbered(500, 12, 9)
    pins.check()
    assert dict(pins) == {12: 2}
    node = nodeid.encode(900, 7)
    assert nodeid.resolve(node, pins) == 12
    assert nodeid.resolve(nodeid.encode(500, 8), pins) is None
    known = nodeid.known_as(FOUND, pins)
    assert nodeid.encode(known.ino, known.generation) == node
    pins.pin(12, 9)
    pins.unpin(12, 2)
    assert nodeid.resolve(node, pins) == 12
    pins.unpin(12)
    assert nodeid.resolve(node, pins) is None
    assert nodeid.known_as(FOUND, pins) is FOUND
    pins.check()
