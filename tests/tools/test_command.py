"""Commands to the daemon of a mount: how long their argument is, and what the caller gets."""

from __future__ import annotations

import fcntl

import pytest

from daxfs.fuse.kernel import defragmenting, remount, resizing, snapshots, statistics, status, tiering
from daxfs.tools import command


@pytest.mark.parametrize(
    ("number", "size"),
    [
        (defragmenting.DEFRAGMENT, defragmenting.SIZE),
        (remount.REMOUNT, remount.SIZE),
        (resizing.RESIZE, resizing.SIZE),
        (snapshots.SNAPSHOTS, snapshots.SIZE),
        (statistics.STATISTICS, statistics.PIECE),
        (status.STATUS, status.SIZE),
        (tiering.TIER, tiering.SIZE),
    ],
)
def test_the_argument_has_the_size_of_the_command(monkeypatch: pytest.MonkeyPatch, number: int, size: int) -> None:
    def daemon(descriptor: int, sent: int, argument: bytearray) -> None:
        assert (descriptor, sent, bytes(argument)) == (3, number, b"question".ljust(size, b"\0"))
        argument[:10] = b'{"n":  7}\0'

    monkeypatch.setattr(fcntl, "ioctl", daemon)
    assert command.send(3, number, b"question") == b'{"n":  7}'.ljust(size, b"\0")
    assert command.ask(3, number, b"question") == {"n": 7}
