"""Fixtures of the tests of grants."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the images that a module's tests begin with."""
    return tmp_path_factory.mktemp("images")
