"""The grants of one file: changes that end an epoch, and changes that are counted."""

from __future__ import annotations

from collections.abc import Callable

from lease_rig import (
    RENEW,
    STORE,
    check,
    client,
    sparse,
    truncate,
)
from range_rig import COLLAPSE, PUNCH, ZERO

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import SetAttributes

BLOCK = 4096


def test_an_answer_ends(fs: FileSystem) -> None:
    """What makes an answer wrong begins an epoch, what does not leaves it."""
    held = sparse(fs)
    bystander = client(fs, b"g", b"x" * BLOCK)
    bystander.ask()

    def still_holds(action: Callable[[], object]) -> bool:
        held.ask(flags=RENEW)
        action()
        check(fs, [held, bystander])
        assert bystander.current
        return bool(held.current)

    ino, size = held.file.ino, 5 * BLOCK + 2000
    assert still_holds(lambda: fs.write(held.file, 0, b"z" * 5000))
    assert still_holds(lambda: fs.write(held.file, size, b"z" * 5000))
    assert still_holds(lambda: truncate(fs, ino, 10 * BLOCK))
    assert still_holds(lambda: fs.fallocate(held.file, ZERO, BLOCK, BLOCK))
    assert still_holds(lambda: fs.setattr(ino, SetAttributes(mode=0o600)))
    assert still_holds(fs.sync)
    assert not still_holds(lambda: fs.write(held.file, 4 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.write(held.file, 3 * BLOCK, b"z"))
    assert not still_holds(lambda: fs.fallocate(held.file, PUNCH, BLOCK, BLOCK))
    assert not still_holds(lambda: fs.fallocate(held.file, COLLAPSE, 0, BLOCK))
    assert not still_holds(lambda: truncate(fs, ino, 5))


OpenFs = Callable[..., FileSystem]


def test_each_change_is_counted(fs: FileSystem) -> None:
    """A client whose stores were made durable sees that they are not all there is."""
    held = client(fs, content=b"x" * BLOCK)
    held.ask(0, BLOCK, STORE)
    grants = fs.grants.by_ino[held.file.ino]
    for change in (
        lambda: fs.write(held.file, 0, b"y"),
        lambda: fs.write(held.file, BLOCK, b"y"),
        lambda: fs.link(held.file.ino, ROOT_INO, b"link"),
        lambda: fs.unlink(ROOT_INO, b"link"),
    ):
        before = grants.changes
        change()
        assert grants.changes > before
    held.close()
