"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import mke2fs


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., Path]:
    """Make a pool: ``pool("-O", "^metadata_csum", size="32M")``."""
    made = 0

    def make(*options: str, size: str = "64M") -> Path:
        nonlocal made
        made += 1
        return mke2fs(tmp_path / f"pool{made}", *options, size=size)

    return make
