"""The map of one file's extents: every operation against a plain array with one entry for each byte."""

from __future__ import annotations

import random

import pytest

from daxfs.fs.filemap import ON_STORAGE, FileMap, Run

SIZE = 64
Cell = tuple[int, bool]
"""Delta and state of a mapped byte."""


class Plain:
    """The model: where each byte of the file is mapped, None in a hole."""

    def __init__(self) -> None:
        self.cells: list[Cell | None] = [None] * SIZE

    def set(self, begin: int, end: int, cell: Cell | None) -> None:
        self.cells[begin:end] = [cell] * (end - begin)

    def runs(self, begin: int = 0, end: int = SIZE) -> list[Run]:
        """Return the longest runs of bytes of one kind in [begin, end)."""
        made: list[Run] = []
        for at in range(begin, end):
            cell = self.cells[at]
            if cell is None:
                continue
            if made and made[-1][1:] == (at, *cell):
                made[-1] = (made[-1][0], at + 1, *cell)
            else:
                made.append((at, at + 1, *cell))
        return made


def agrees(held: FileMap, plain: Plain) -> None:
    assert held.runs == plain.runs()
    assert held.begins == [run[0] for run in held.runs]


def filled(*runs: Run) -> FileMap:
    held = FileMap()
    for run in runs:
        held.put(*run)
    return held


@pytest.mark.parametrize("seed", range(10))
def test_random_changes_equal_a_plain_array(seed: int) -> None:
    chance = random.Random(seed)
    held, plain = FileMap(), Plain()
    for _ in range(150):
        begin, end = sorted(chance.sample(range(SIZE + 1), 2))
        action = chance.choice(["put", "put", "cut", "move border", "copy"])
        delta, unwritten = chance.choice([0, 1000]), chance.random() < 0.5
        if action == "put":
            held.put(begin, end, delta, unwritten)
            plain.set(begin, end, (delta, unwritten))
        elif action == "cut":
            held.cut(begin, end)
            plain.set(begin, end, None)
        elif action == "copy":
            other = held.copy()
            held.put(begin, end, 5, False)
            held = other
        elif held.move_border(begin, end):
            place = held.find(begin)
            assert place is not None
            plain.set(begin, end, (place[2], False))
        agrees(held, plain)
        begin, end = sorted(chance.sample(range(SIZE + 1), 2))
        assert list(held.within(begin, end)) == plain.runs(begin, end)
        gaps = {at for low, high in held.gaps(begin, end) for at in range(low, high)}
        assert gaps == {at for at in range(begin, end) if plain.cells[at] is None}
        whole = [run for run in plain.runs() if run[0] <= begin < end <= run[1]]
        assert held.covers(begin, end) == bool(whole)
        assert held.find(begin) == next((run for run in plain.runs() if run[0] <= begin < run[1]), None)
        assert held.next_begin(begin) == next((run[0] for run in plain.runs() if run[0] > begin), None)


def test_neighbours_join_where_they_go_on_in_the_pool() -> None:
    assert filled((0, 8, 100, False), (8, 16, 100, False)).runs == [(0, 16, 100, False)]
    assert filled((8, 16, 100, False), (0, 8, 100, False)).runs == [(0, 16, 100, False)]
    assert len(filled((0, 8, 100, False), (8, 16, 101, False)).runs) == 2
    assert len(filled((0, 8, 100, False), (8, 16, 100, True)).runs) == 2
    assert filled((0, 4, 9, True), (8, 12, 9, True), (4, 8, 9, True)).runs == [(0, 12, 9, True)]


def test_blocks_become_bytes() -> None:
    held = FileMap()
    held.put_blocks((3, 10, 2, True), 12, 1 << 62)
    assert held.runs == [(3 << 12, 5 << 12, 7 << 12, True)]


def test_a_run_beyond_the_memory_is_marked() -> None:
    held = FileMap()
    held.put_blocks((3, 10, 4, False), 12, 12 << 12)
    held.put_blocks((9, 30, 1, False), 12, 12 << 12)
    held.put_blocks((11, 32, 1, True), 12, 12 << 12)
    assert held.runs == [
        (3 << 12, 5 << 12, 7 << 12, False),
        (5 << 12, 7 << 12, 7 << 12, ON_STORAGE),
        (9 << 12, 10 << 12, 21 << 12, ON_STORAGE),
        (11 << 12, 12 << 12, 21 << 12, True),
    ]


def test_the_border_moves_only_where_written_bytes_end_and_unwritten_ones_go_on() -> None:
    """Any other map stays as it is."""
    held = filled((0, 8, 100, False), (8, 32, 100, True))
    assert held.move_border(8, 16)
    assert held.runs == [(0, 16, 100, False), (16, 32, 100, True)]
    for runs, begin, end in (
        ([(0, 8, 100, False), (8, 32, 100, True)], 8, 32),  # all of the unwritten run
        ([(0, 8, 100, False), (8, 32, 100, True)], 12, 16),  # within it
        ([(0, 8, 100, False), (8, 32, 200, True)], 8, 16),  # elsewhere in the pool
        ([(0, 7, 100, False), (8, 32, 100, True)], 8, 16),  # a hole between them
        ([(8, 32, 100, True)], 8, 16),  # nothing written before it
        ([], 0, 8),
    ):
        held = filled(*runs)
        assert not held.move_border(begin, end)
        assert held.runs == runs


def test_runs_are_looked_up_while_they_change() -> None:
    """`within` searches for the next run when the loop asks for it, so that the loop may change earlier runs."""
    held = filled((0, 8, 100, True), (16, 24, 100, True), (32, 40, 100, True))
    for begin, end, delta, _ in held.within(0, 64):
        held.put(begin, end, delta, False)
        if begin == 0:
            held.cut(16, 24)
    assert held.runs == [(0, 8, 100, False), (32, 40, 100, False)]
