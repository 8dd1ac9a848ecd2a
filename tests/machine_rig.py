"""How state machines run: a few walks, the same each time, or many that are new each time; and their last check."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from in_memory import SHARED_MEMORY

from support import fsck, write_image

_COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)


def run_few(machine: Callable[[], RuleBasedStateMachine], walks: int, *, steps: int) -> None:
    """Run so many walks of up to so many steps, the same each time; a failure is not made smaller."""
    few = settings(_COMMON, max_examples=walks, stateful_step_count=steps, derandomize=True, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=few)


def run_many(machine: Callable[[], RuleBasedStateMachine], walks: int, *, steps: int) -> None:
    """Run so many walks of up to so many steps, other ones each time."""
    many = settings(_COMMON, max_examples=walks, stateful_step_count=steps)
    run_state_machine_as_test(machine, settings=many)


def fsck_content(content: bytes | bytearray) -> None:
    """Have e2fsck look at the bytes of a pool."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as place:
        path = Path(place) / "pool"
        write_image(path, content)
        fsck(path)
