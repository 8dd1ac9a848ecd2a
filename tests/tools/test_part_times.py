"""The time of each part of a run, as its end prints it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from part_times import lines, part_of


class Report(NamedTuple):
    """What pytest reports of a phase of a test."""

    nodeid: str
    duration: float
    when: str = "call"


@pytest.mark.parametrize(
    ("nodeid", "part"),
    [
        ("tests/fs/test_data.py::test_a", "tests/fs"),
        ("tests/fs/grants/test_epochs.py::test_a[x/y::z]", "tests/fs"),
        ("tests/test_here.py::test_a", "tests"),
        ("test_here.py::test_a", "test_here.py"),
    ],
)
def test_the_part_of_a_test(nodeid: str, part: str) -> None:
    assert part_of(nodeid) == part


def test_each_part_and_all() -> None:
    """The longest first; setup and end count with their test."""
    found = [
        Report("tests/fs/test_data.py::test_a", 1.0, "setup"),
        Report("tests/fs/test_data.py::test_a", 2.5),
        Report("tests/fuse/test_x.py::test_b", 7.0),
        Report("tests/fs/grants/test_y.py::test_c", 1.5),
    ]
    assert [line.split() for line in lines(found)] == [
        ["tests/fuse", "7.0", "s", "1", "tests"],
        ["tests/fs", "5.0", "s", "2", "tests"],
        ["all", "12.0", "s", "3", "tests"],
    ]


def test_a_run_of_one_part_says_nothing() -> None:
    assert not list(lines([Report("tests/fs/test_data.py::test_a", 1.0)]))
