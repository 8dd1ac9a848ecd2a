"""The ioctl that remounts: permissions, refusals, and that a refusal changes nothing."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from daxfs.errors import FsError
from daxfs.fs.types import Options
from daxfs.fuse.kernel import abi, ioctls, remount
from daxfs.fuse.options import parse


class Core:
    """The part of the core that the handler uses."""

    def __init__(self) -> None:
        self.options = Options(dax="inode", mountpoint="/m")

    def remount(self, options: Options) -> None:
        self.options = options


def connection_with(*files: Any) -> Any:
    return SimpleNamespace(
        core=Core(),
        options=parse(["dax=inode"]),
        files=dict(enumerate(files)),
        process_forgets=lambda: None,
        scheduler=SimpleNamespace(works=[]),
    )


def ask(connection: Any, text: bytes, *, uid: int = 0, node: int = abi.ROOT_ID) -> None:
    request: Any = SimpleNamespace(uid=uid, node=node)
    assert ioctls.COMMANDS[remount.REMOUNT](connection, request, memoryview(text.ljust(remount.SIZE, b"\0"))) == b""


def test_options_reach_the_core() -> None:
    connection = connection_with(SimpleNamespace(writable=False))
    ask(connection, b"ro,commit=7,noatime,sync,nodiratime,nosuid")
    assert connection.core.options == Options(
        read_only=True,
        sync=True,
        commit_interval=7.0,
        atime="noatime",
        directory_atime=False,
        dax="inode",
        mountpoint="/m",
    )
    assert connection.options == parse(["dax=inode,ro,commit=7,noatime,sync,nodiratime,nosuid"])


@pytest.mark.parametrize(
    ("text", "caller", "number"),
    [
        (b"ro", {"uid": 1000}, errno.EPERM),
        (b"ro", {"node": 12}, errno.ENOTTY),
        (b"dax=never", {}, errno.EINVAL),
        (b"bogus", {}, errno.EINVAL),
        (b"usrquota", {}, errno.EINVAL),
        (b"\xff", {}, errno.EINVAL),
        (b"ro", {}, errno.EBUSY),
    ],
)
def test_what_is_refused_changes_nothing(text: bytes, caller: dict[str, int], number: int) -> None:
    connection = connection_with(SimpleNamespace(writable=True))
    before = connection.core.options, connection.options
    with pytest.raises(FsError) as caught:
        ask(connection, text, **caller)
    assert caught.value.errno == number
    assert (connection.core.options, connection.options) == before
