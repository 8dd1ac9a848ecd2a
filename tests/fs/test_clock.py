"""The clock of inode times: the kernel's coarse clock, and the only one that this layer reads for them."""

from __future__ import annotations

import ast
import time
from pathlib import Path

from daxfs.fs import clock
from support import wait_a_tick

ASKERS = {
    "damage.py": {"time"},
    "mounting.py": {"time"},
    "removal.py": {"time"},
    "volume.py": {"monotonic"},
}
"""Modules that ask another clock: for whole seconds in the superblock and in i_dtime, and for the commit interval."""


def test_it_is_late_by_a_tick_at_most() -> None:
    exact = time.clock_gettime_ns(time.CLOCK_REALTIME)
    assert clock.now() <= time.clock_gettime_ns(time.CLOCK_REALTIME)
    assert clock.now() >= exact - int(2e9 * time.clock_getres(clock.CLOCK_REALTIME_COARSE))


def test_it_moves_with_the_tick() -> None:
    before = clock.now()
    wait_a_tick()
    assert clock.now() - before >= int(0.5e9 * time.clock_getres(clock.CLOCK_REALTIME_COARSE))


def test_no_other_module_dates_inodes() -> None:
    """Each use of the module ``time`` in this layer is a known one, and none reads nanoseconds."""
    folder = Path(clock.__file__).parent
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                found.setdefault(path.name, set()).add(node.attr)
    assert found == ASKERS
