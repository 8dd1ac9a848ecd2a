"""A fixture for folders of tests that make many pools: their files lie in memory.

On a disk these tests would spend most of their time in fsync(2) and msync(2), which here prove nothing: what makes
stores durable on each kind of medium is tested in tests/pmem and tests/mounted, on files as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import run

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty folder on a tmpfs. If the test fails, its files are copied to pytest's own folder of that name."""
    failed = request.session.testsfailed
    with tempfile.TemporaryDirectory(prefix="daxfs-tests-", dir=SHARED_MEMORY) as folder:
        yield Path(folder)
        if request.session.testsfailed != failed:
            run("cp", "-r", "--sparse=always", f"{folder}/.", tmp_path)
