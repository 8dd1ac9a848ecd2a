"""Random operations against a model, with syncs, remounts and power cuts among them; e2fsck at the end of each run."""

from __future__ import annotations

import pytest
from machine_rig import run_few, run_many
from model_machine import FORMATS
from tree_machine import Machine


@pytest.mark.parametrize("name", FORMATS)
def test_random_operations(name: str) -> None:
    run_few(lambda: Machine(name), 25, steps=40)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_many_random_operations(name: str) -> None:
    run_many(lambda: Machine(name), 1000, steps=80)
