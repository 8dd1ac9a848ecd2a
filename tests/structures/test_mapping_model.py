"""Random sequences of map operations on both kinds of map, against a dict and e2fsck."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from in_memory import SHARED_MEMORY
from map_rig import MapRig, make_image

Image = Callable[[], Path]


class Machine(RuleBasedStateMachine):
    """The operations on the map of one file; the tests set ``image`` and the other attributes."""

    image: Path
    extent_mapped: bool
    reach: int

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
        path = self.directory / "pool"
        shutil.copyfile(self.image, path)
        self.rig = MapRig(path, extent_mapped=self.extent_mapped)

    @initialize(count=st.integers(0, 400), step=st.integers(2, 5), unwritten=st.booleans())
    def fragment(self, count: int, step: int, unwritten: bool) -> None:
        for at in range(count):
            self.rig.allocate(at * step, unwritten=unwritten and self.extent_mapped)

    @rule(data=st.data(), want=st.integers(1, 60), unwritten=st.booleans(), goal=st.integers(0, 16_000))
    def allocate(self, data: st.DataObject, want: int, unwritten: bool, goal: int) -> None:
        lblk = self.place(data)
        if lblk not in self.rig.model:
            self.rig.allocate(lblk, want, unwritten=unwritten and self.extent_mapped, goal=goal)

    @rule(data=st.data(), length=st.integers(1, 90), limit=st.integers(1, 40))
    def punch(self, data: st.DataObject, length: int, limit: int) -> None:
        first = self.place(data)
        self.rig.remove(first, first + length - 1, limit)

    @rule(data=st.data(), length=st.integers(1, 90))
    def reallocate(self, data: st.DataObject, length: int) -> None:
        first = self.place(data)
        self.rig.reallocate(first, first + length - 1)

    @rule(data=st.data(), limit=st.integers(1, 200))
    def cut(self, data: st.DataObject, limit: int) -> None:
        self.rig.remove(self.place(data), None, limit)

    @rule(data=st.data(), length=st.integers(1, 300))
    def mark_written(self, data: st.DataObject, length: int) -> None:
        self.rig.mark_written(self.place(data), length)

    @rule(data=st.data())
    def lookup(self, data: st.DataObject) -> None:
        self.rig.check_lookup(self.place(data))

    @rule()
    def commit(self) -> None:
        self.rig.journal.commit()

    @invariant()
    def agrees(self) -> None:
        self.rig.check()

    def place(self, data: st.DataObject) -> int:
        """Draw a block, often one near a mapped block, where borders are."""
        if self.rig.model and data.draw(st.booleans(), "near"):
            at = data.draw(st.integers(0, len(self.rig.model) - 1), "at")
            return max(sorted(self.rig.model)[at] + data.draw(st.integers(-2, 2), "off"), 0)
        return data.draw(st.integers(0, self.reach), "block")

    def teardown(self) -> None:
        self.rig.close()
        shutil.rmtree(self.directory)


CASES = {
    "extents": ((), True),
    "extents-plain": (("-O", "^metadata_csum,^64bit,^flex_bg"), True),
    "pointers": ((), False),
}


@pytest.mark.parametrize("case", CASES)
def test_maps_agree_with_the_model(tmp_path: Path, case: str) -> None:
    options, extent_mapped = CASES[case]
    image = make_image(tmp_path / "image", "-b", "1024", *options)
    kind = type(
        "MachineOf" + case.title().replace("-", ""),
        (Machine,),
        {"image": image, "extent_mapped": extent_mapped, "reach": 2500 if extent_mapped else 67_000},
    )
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
