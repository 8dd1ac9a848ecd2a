"""Operations on names and attributes are one handle: no commit can come into the middle of one.

When the log is full a commit may come before any handle. Here one comes before every handle, and whatever a power cut
between two commits leaves must be the tree before the operation or after it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from crash_rig import FORMATS, SINGLE, Run, image, recover

from daxfs.fs.types import Caller
from daxfs.fs.volume import SUPERUSER, Volume
from daxfs.journal.handle import Handle
from support import fsck, write_image

IN_PARTS = (
    *("append", "write new", "write new in d", "overwrite and append", "write unwritten", "write unwritten whole"),
    *("copy", "copy blocks", "copy within", "copy holes", "write beyond", "fill a hole", "write to unlinked"),
    *("append a byte", "overwrite", "overwrite a word", "overwrite moved", "tmpfile", "append far"),
    *("allocate", "punch", "punch unaligned", "punch to the end", "zero", "zero unaligned", "zero within"),
)
"""Operations on data, which may be several handles or stores in place."""
WHOLE = [name for name in SINGLE if name not in IN_PARTS]


@pytest.fixture
def _commits_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Volume.handle

    def handle(volume: Volume, credits: int, caller: Caller = SUPERUSER) -> Handle:
        if not volume.read_only:
            volume.journal.commit()
        return begin(volume, credits, caller)

    monkeypatch.setattr(Volume, "handle", handle)


def commits(name: str, operation: str, path: Path) -> None:
    """Cut at each fence, with all that was stored by then."""
    run = Run(image(name), [(operation, "")])
    for left in run.images(random.Random(1), prefixes=0, subsets=0):
        if left.choice == "none":
            continue
        found = recover(left.image)
        faults = run.judge(found, left.position)
        assert not faults, run.describe(left) + "\n" + "\n".join(faults)
        write_image(path, left.image)
        fsck(path)


@pytest.mark.usefixtures("_commits_everywhere")
@pytest.mark.interpreted
def test_an_operation_on_names_is_one_handle(tmp_path: Path) -> None:
    for operation in WHOLE:
        commits("1k", operation, tmp_path / "pool")


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("_commits_everywhere")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.interpreted
def test_an_operation_on_names_is_one_handle_in_full(tmp_path: Path, name: str) -> None:
    for operation in WHOLE:
        commits(name, operation, tmp_path / "pool")
