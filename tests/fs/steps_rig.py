"""What tests of operations in steps call."""

from __future__ import annotations

from collections.abc import Callable

from daxfs.fs.steps import Steps


def count(steps: Steps[object], between: Callable[[], object]) -> int:
    """Run all steps, with something between each two; return their number."""
    number = 0
    for _ in steps:
        between()
        number += 1
    return number
