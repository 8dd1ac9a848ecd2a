"""The status of a mount: its content, permissions, and the limit of its size."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace
from typing import Any

import pytest

from daxfs.errors import FsError
from daxfs.ext4.superblock import RecordedError
from daxfs.fs.types import MetadataErrors
from daxfs.fuse.kernel import abi, ioctls, status
from daxfs.fuse.kernel.abi import Init
from daxfs.fuse.kernel.negotiation import Agreement
from daxfs.fuse.options import parse

ERRORS = MetadataErrors(3, RecordedError(1, 2, "missing memory", 0, 0, 33), None, "remount-ro", True)


def query(text: str, node: int = abi.ROOT_ID, agreed: int = 0, *, journal: bool = True) -> dict[str, Any]:
    core = SimpleNamespace(metadata_errors=lambda: ERRORS, has_atomic_writes=journal)
    connection: Any = SimpleNamespace(options=parse([text]), agreement=Agreement(45, Init(agreed), 1 << 20), core=core)
    request: Any = SimpleNamespace(uid=1000, node=node)
    found: dict[str, Any] = json.loads(ioctls.COMMANDS[status.STATUS](connection, request, memoryview(b"")))
    return found


def test_the_options_in_force() -> None:
    found = query("noatime,commit=30,nosuid,nodev,poll=0,wake=off,dax=inode,log=/l,context=a,stats")["options"]
    assert found[:5] == ["rw", "nosuid", "nodev", "async", "noatime"]
    assert {"commit=30", "poll=0", "wake=off", "dax=inode", "session=kernel", "log=/l", "context=a", "stats"} <= {
        *found
    }
    assert query("ro,sync")["options"][:3] == ["ro", "sync", "relatime"]


@pytest.mark.parametrize("text", ["", "ro,nosuid,strictatime,sync", "wake=20,poll=7,commit=9,dax=never,allow_other"])
def test_the_options_in_force_make_the_same_mount_again(text: str) -> None:
    assert parse([",".join(query(text)["options"])]) == parse([text])


def test_errors_of_metadata() -> None:
    first = {"when": 1, "errcode": 2, "where": "missing memory", "line": 0, "ino": 0, "block": 33}
    expected = {"count": 3, "first": first, "last": None, "behaviour": "remount-ro", "stopped": True}
    assert query("")["errors"] == expected


def test_the_longest_write_that_is_one_request() -> None:
    """The kernel sends 256 pages at most, and a buffer that does not begin with a page takes one more."""
    assert query("")["atomic_write"] == (1 << 20) - 4096
    assert query("", journal=False)["atomic_write"] == 0


def test_only_the_root_directory_tells() -> None:
    with pytest.raises(FsError) as caught:
        query("", node=12)
    assert caught.value.errno == errno.ENOTTY


def test_an_answer_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(status.FACTS, "long", lambda _: "x" * status.SIZE)
    with pytest.raises(FsError) as caught:
        query("")
    assert caught.value.errno == errno.EOVERFLOW


def test_what_makes_changes_durable() -> None:
    """sync(2) makes changes durable if the kernel passes it on; a read-only mount has nothing to make durable."""
    assert query("")["durability"]["sync"].startswith("nothing")
    rows = query("commit=7", agreed=Init.HAS_SYNCFS)["durability"]
    assert rows["sync"] == rows["syncfs"] == "everything"
    assert "7 s" in rows["time"]
    assert next(iter(query("sync")["durability"].values())) == "the change (sync)"
    assert query("ro")["durability"] == {}
