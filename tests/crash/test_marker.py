"""The marker ``crash``: a promise that the record does not keep fails the test, and so does a lost store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash_marker import Recorded, complete
from crash_rig import image
from recorder import Flush, Store

from daxfs.fs.types import ROOT_INO

IMAGES = 50


def recorded() -> tuple[Recorded, bytes]:
    """A file with content, synced; then unmounted."""
    made = Recorded(image("4k"))
    file, _ = made.fs.create(ROOT_INO, b"new", 0o644)
    made.fs.write(file, 0, b"content" * 1000)
    made.fs.fsync(file.ino)
    made.fs.release(file)
    return made, made.close()


def test_what_is_kept_passes(tmp_path: Path) -> None:
    made, content = recorded()
    assert complete(made.pool, content)
    assert made.check(IMAGES, random.Random(1), tmp_path) >= len(made.promises)


def test_a_promise_that_is_not_kept(tmp_path: Path) -> None:
    made, _ = recorded()
    made.pool.events[:] = [Flush(0, 0) if isinstance(event, Flush) else event for event in made.pool.events]
    with pytest.raises(AssertionError, match="cut at"):
        made.check(IMAGES, random.Random(1), tmp_path)


def test_a_store_around_the_pool_is_not_complete() -> None:
    made, content = recorded()
    last = max(at for at, event in enumerate(made.pool.events) if isinstance(event, Store) and event.data)
    del made.pool.events[last]
    assert not complete(made.pool, content)
