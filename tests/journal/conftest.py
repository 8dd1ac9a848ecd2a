"""Fixtures of this folder: a journal on an image in memory. A module may replace `rig`."""

from __future__ import annotations

import pytest
from in_memory import tmp_path
from journal_rig import JournalRig

from daxfs.journal.journal import Journal
from daxfs.pmem.memory import MemoryPool

__all__ = ["tmp_path"]


@pytest.fixture
def rig() -> JournalRig:
    return JournalRig()


@pytest.fixture
def pool(rig: JournalRig) -> MemoryPool:
    return MemoryPool(rig.content)


@pytest.fixture
def journal(rig: JournalRig, pool: MemoryPool) -> Journal:
    return Journal.open(pool, rig.geometry, rig.area, check_credits=True)
