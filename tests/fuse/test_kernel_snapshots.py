"""The ioctl of snapshots, without a mount: who may ask what, and how a list is divided."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace
from typing import Any

import pytest
from crash_rig import image
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import Steps, finish
from daxfs.fs.types import MappedFile, NewSnapshot, Snapshot
from daxfs.fuse.kernel import abi, snapshots
from daxfs.fuse.kernel.snapshots import CREATE, DELETE, LIST, QUESTION, SIZE, SKIP_MAPPED
from daxfs.pmem.memory import MemoryPool


@pytest.fixture
def fs() -> FileSystem:
    return FileSystem.open(MemoryPool(bytearray(image("4k"))), QUIET)


def ask(core: Any, what: int, name: bytes = b"", first: int = 0, *, node: int = abi.ROOT_ID, uid: int = 0) -> bytes:
    """The answer to a question."""
    return given(core, QUESTION.pack(what, first, name).ljust(SIZE, b"\0"), node=node, uid=uid)


def given(core: Any, argument: bytes, *, node: int = abi.ROOT_ID, uid: int = 0) -> bytes:
    connection: Any = SimpleNamespace(core=core)
    request: Any = SimpleNamespace(node=node, uid=uid)
    return finish(snapshots.command(connection, request, memoryview(argument)))


def names(core: Any) -> list[bytes]:
    return [each.name for each in core.list_snapshots()]


def test_snapshots_are_made_listed_and_deleted(fs: FileSystem) -> None:
    odd = "näme \udcff\n".encode(errors="surrogateescape")
    assert json.loads(ask(fs, CREATE, b"a"))["snapshot"]["name"] == "a"
    made = json.loads(ask(fs, CREATE, odd))
    assert made["snapshot"]["name"].encode(errors="surrogateescape") == odd
    assert (made["count"], made["files"]) == (0, [])
    assert names(fs) == [b"a", odd]
    rows = json.loads(ask(fs, LIST))
    assert [row["name"].encode(errors="surrogateescape") for row in rows] == [b"a", odd]
    assert [bytes.fromhex(row["uuid"]) for row in rows] == [each.uuid for each in fs.list_snapshots()]
    assert ask(fs, DELETE, b"a") == b""
    assert names(fs) == [odd]


@pytest.mark.parametrize(
    ("number", "arguments", "where"),
    [
        (errno.ENOTTY, (LIST,), {"node": 12}),
        (errno.ENOTTY, (CREATE, b"x"), {"node": 12}),
        (errno.EPERM, (LIST,), {"uid": 1000}),
        (errno.EPERM, (CREATE, b"x"), {"uid": 1000}),
        (errno.EINVAL, (99, b"x"), {}),
        (errno.EINVAL, (CREATE, b"x", 2), {}),
        (errno.EINVAL, (CREATE, b""), {}),
        (errno.EINVAL, (CREATE, b"a/b"), {}),
        (errno.EEXIST, (CREATE, b"a"), {}),
        (errno.ENAMETOOLONG, (CREATE, b"n" * 256), {}),
        (errno.ENOENT, (DELETE, b"x"), {}),
    ],
)
def test_what_is_refused_changes_nothing(
    fs: FileSystem, number: int, arguments: tuple[Any, ...], where: dict[str, int]
) -> None:
    fs.create_snapshot(b"a")
    with pytest.raises(FsError) as caught:
        ask(fs, *arguments, **where)
    assert caught.value.errno == number
    assert names(fs) == [b"a"]


def test_a_short_question_is_refused(fs: FileSystem) -> None:
    with pytest.raises(FsError) as caught:
        given(fs, QUESTION.pack(CREATE, 0, b"x")[:-1])
    assert caught.value.errno == errno.EINVAL
    assert names(fs) == []


def test_a_new_snapshot_comes_with_files_that_fit() -> None:
    asked = []
    files = tuple(MappedFile(number, 1 << 20, 1 << 40) for number in range(1000))

    def create(name: bytes, *, skip_mapped: bool) -> Steps[NewSnapshot]:
        asked.append((name, skip_mapped))
        yield
        return NewSnapshot(Snapshot(name, 1, 2, 3, bytes(16), "", 4, 5), files)

    core = SimpleNamespace(steps=SimpleNamespace(create_snapshot=create))
    for flags in (0, SKIP_MAPPED):
        answer = ask(core, CREATE, b"x", flags)
        assert len(answer) <= SIZE
        made = json.loads(answer)
        assert (made["snapshot"]["mapped"], made["snapshot"]["skipped"], made["count"]) == (4, 5, 1000)
        count = len(made["files"])
        assert count > 100
        assert made["files"] == [list(each) for each in files[:count]]
    assert asked == [(b"x", False), (b"x", True)]


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff" * 255])
def test_a_list_comes_in_parts_that_fit(name: bytes) -> None:
    """A name of bytes that are no text is six times as long in JSON."""
    many = [Snapshot(name, number, 1 << 40, 1 << 40, b"u" * 16, "why" * 20) for number in range(50)]
    core = SimpleNamespace(list_snapshots=lambda: many)
    found: list[dict[str, Any]] = []
    while True:
        answer = ask(core, LIST, first=len(found))
        assert len(answer) <= SIZE
        more = json.loads(answer)
        if not more:
            break
        found += more
    assert [row["created_ns"] for row in found] == [*range(50)]
