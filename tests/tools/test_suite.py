"""How the tests run: what keeps a whole run short."""

from __future__ import annotations

import gc


def test_a_fork_need_not_visit_what_was_loaded_before() -> None:
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    assert len(gc.get_objects()) < frozen
