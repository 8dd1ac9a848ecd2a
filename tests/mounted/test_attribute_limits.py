"""Extended attributes of every kind and size up to the limit (the steps of xfstests generic/020), and the kernel's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_memory import tmp_path
from kernel_rig import kernel_mount
from mount_rig import Mounted

__all__ = ["tmp_path"]

BLOCK = 4096
HEADER, ENTRY = 32, 16
"""Bytes of the attribute block's header (struct ext4_xattr_header), and of an entry before its name."""
MANY = (BLOCK - HEADER) // 40
"""Attributes named attribute_NN with values of 8 bytes that xfstests takes for one block."""


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """An empty file on a mount of daxfs, and one on a mount of the kernel."""
    with kernel_mount(pool("-b", str(BLOCK))) as place:
        files = mount.place / "file", place / "file"
        for file in files:
            file.touch()
        yield files


def outcome(action: Callable[..., object], *arguments: object) -> object:
    """What an attempt returns, or its errno's name."""
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def dump(file: Path) -> dict[str, bytes]:
    """All attributes, but the label that the system's security module gives."""
    return {name: os.getxattr(file, name) for name in os.listxattr(file) if name != "security.selinux"}


def test_they_come_change_and_go(sides: tuple[Path, Path]) -> None:
    for file in sides:
        missing = file.with_name("missing")
        assert outcome(os.listxattr, missing) == "ENOENT"
        assert dump(file) == {}
        assert outcome(os.getxattr, file, "user.nonexistent") == "ENODATA"
        assert outcome(os.removexattr, file, "user.nonexistent") == "ENODATA"
        os.setxattr(file, "user.fish", b"fish\n")
        assert dump(file) == {"user.fish": b"fish\n"}
        os.setxattr(file, "user.snrub", b"fish2\n")
        os.setxattr(file, "user.fish", b"a longer value than before\n")
        os.setxattr(file, "trusted.t", b"")
        expected = {"user.fish": b"a longer value than before\n", "user.snrub": b"fish2\n", "trusted.t": b""}
        assert dump(file) == expected
        os.removexattr(file, "user.fish")
        del expected["user.fish"]
        assert dump(file) == expected


def test_as_many_as_a_block_holds(sides: tuple[Path, Path]) -> None:
    def fill(file: Path) -> int:
        expected: dict[str, bytes] = {}
        for number in range(2 * MANY):
            name, value = f"user.attribute_{number:02}", b"value_%02d" % number
            if outcome(os.setxattr, file, name, value) == "ENOSPC":
                break
            expected[name] = value
            if number == MANY:
                assert dump(file) == expected
        else:
            pytest.fail("there is no limit")
        assert dump(file) == expected
        for name in list(expected)[1::2]:
            os.removexattr(file, name)
            del expected[name]
        assert dump(file) == expected
        for name in expected:
            os.removexattr(file, name)
        assert dump(file) == {}
        return number

    ours, theirs = map(fill, sides)
    assert ours == theirs >= MANY


@pytest.mark.parametrize("kind", ["user", "trusted", "security"])
def test_the_longest_value(sides: tuple[Path, Path], kind: str) -> None:
    name, entry = f"{kind}.long_attr", HEADER + ENTRY + 12 + 4
    largest = BLOCK - entry

    def attempts(file: Path) -> list[object]:
        found: list[object] = []
        for size in (0, 1, largest - 4, largest, largest + 1, largest + 64, 65536, 65537):
            value = os.urandom(1) * size
            found.append(outcome(os.setxattr, file, name, value))
            if found[-1] is None:
                assert os.getxattr(file, name) == value
        return found

    ours, theirs = map(attempts, sides)
    assert ours == theirs
    assert ours == [None, None, None, None, "ENOSPC", "ENOSPC", "ENOSPC", "E2BIG"]


def test_the_longest_name(sides: tuple[Path, Path]) -> None:
    def attempts(file: Path) -> list[object]:
        return [
            outcome(os.setxattr, file, f"{kind}.{'n' * length}", b"v")
            for kind in ("user", "trusted", "security", "system", "unknown")
            for length in (0, 1, 255 - len(kind) - 1, 255 - len(kind))
        ]

    ours, theirs = map(attempts, sides)
    assert ours[:12] == theirs[:12]
    assert all(isinstance(answer, str) for answer in ours[12:]), "no such kinds"
    files = [dump(file) for file in sides]
    assert files[0] == files[1]
    assert max(map(len, files[0])) == 255


def test_how_they_are_set(sides: tuple[Path, Path]) -> None:
    for file in sides:
        assert outcome(os.setxattr, file, "user.a", b"1", os.XATTR_REPLACE) == "ENODATA"
        os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
        assert outcome(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
        os.setxattr(file, "user.a", b"3", os.XATTR_REPLACE)
        assert dump(file) == {"user.a": b"3"}
