"""Poisoned pages of a pool: the operation that needs one gets EIO, the daemon lives, every other file can be read.

A change that needs poisoned metadata makes a pool read-only that daxfs has made; poisoned data never does.

Each case has a pool file of its own on a host file system with dax, since poison stays.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from device_rig import daxfs, kernel_mounted, mounted
from poison_injection import PAGE, poison

from support import run

FILES = 40
"""Files in the root directory, more than the 16 inodes of a block of the inode table."""


def content(name: str) -> bytes:
    """The content of a file: two pages and some."""
    return (name.encode() * 2000)[: 2 * PAGE + 100]


@pytest.fixture(scope="module")
def host(devices: dict[str, Path]) -> Iterator[Path]:
    """A host file system with dax on the namespace for poison."""
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", devices["poison"])
    with kernel_mounted(devices["poison"], "dax") as place:
        yield place


@pytest.fixture
def pool(host: Path, request: pytest.FixtureRequest) -> Path:
    """A pool with files in two directories, not mounted."""
    made = host / re.sub(r"\W", "-", request.node.name)
    daxfs("mkfs", made, "--size", "24M")
    with mounted(made) as mount:
        (mount.place / "directory").mkdir()
        for number in range(FILES):
            (mount.place / f"file{number}").write_bytes(content(f"file{number}"))
        for name in ("inside", "beside"):
            (mount.place / "directory" / name).write_bytes(content(name))
    return made


def shown(pool: Path, request: str, pattern: str) -> int:
    """Return a number from what debugfs says of the pool."""
    said = run("debugfs", "-R", request, pool)
    found = re.search(pattern, said)
    assert found, said
    return int(found[1])


def block_of(pool: Path, path: str, index: int = 0) -> int:
    """The block of a file or directory at an index."""
    return shown(pool, f"bmap {path} {index}", r"(?m)^(\d+)$")


def error_of(action: Callable[[], object]) -> int:
    """The errno of an action, 0 if it succeeds."""
    try:
        action()
    except OSError as error:
        assert error.errno
        return error.errno
    return 0


def unreadable(root: Path) -> set[str]:
    """Read all files by their names; return the names of those that give EIO. The others have their content."""
    bad = set()
    for name in [*(f"file{number}" for number in range(FILES)), "directory/inside", "directory/beside"]:
        found: list[bytes] = []
        number = error_of(lambda: found.append((root / name).read_bytes()))  # noqa: B023
        if number:
            assert number == errno.EIO, os.strerror(number)
            bad.add(name)
        else:
            assert found == [content(name.rpartition("/")[2])]
    return bad


def changes_no_more(root: Path) -> bool:
    """Whether a change fails with EROFS. It must succeed otherwise."""
    error = error_of(lambda: (root / "file0").chmod(0o640))
    assert error in (0, errno.EROFS), os.strerror(error)
    return error == errno.EROFS


def test_data(pool: Path) -> None:
    poison(pool, block_of(pool, "/file7", 1) * PAGE)
    with mounted(pool) as mount:
        assert unreadable(mount.place) == {"file7"}
        with (mount.place / "file7").open("rb", buffering=0) as file:
            assert file.read(PAGE) == content("file7")[:PAGE]
            assert error_of(lambda: os.pread(file.fileno(), PAGE, PAGE)) == errno.EIO
            assert os.pread(file.fileno(), PAGE, 2 * PAGE) == content("file7")[2 * PAGE :]
        (mount.place / "new").write_bytes(content("new"))
        assert (mount.place / "new").read_bytes() == content("new")
        with (mount.place / "file7").open("r+b", buffering=0) as file:
            assert error_of(lambda: os.pwrite(file.fileno(), b"a part", PAGE + 5)) == errno.EIO
        assert not changes_no_more(mount.place)
        assert mount.daemon.poll() is None


def test_a_directory(pool: Path) -> None:
    poison(pool, block_of(pool, "/directory") * PAGE)
    with mounted(pool) as mount:
        assert unreadable(mount.place) == {"directory/inside", "directory/beside"}
        assert error_of(lambda: os.listdir(mount.place / "directory")) == errno.EIO
        assert len(os.listdir(mount.place)) == FILES + 2
        assert not changes_no_more(mount.place), "nobody but readers has met it"
        assert error_of((mount.place / "directory" / "new").mkdir) == errno.EIO
        assert mount.daemon.poll() is None


def test_the_inode_table(pool: Path) -> None:
    block = shown(pool, "imap /file20", r"located at block (\d+)")
    poison(pool, block * PAGE)
    with mounted(pool) as mount:
        bad = unreadable(mount.place)
        assert "file20" in bad
        assert len(bad) <= 16
        assert not changes_no_more(mount.place), "nobody but readers has met it"
        assert error_of(lambda: (mount.place / "file20").rename(mount.place / "renamed")) == errno.EIO
        assert mount.daemon.poll() is None


@pytest.mark.parametrize("name", ["block", "inode"])
def test_a_bitmap(pool: Path, name: str) -> None:
    poison(pool, shown(pool, "stats", rf"{name} bitmap at (\d+)") * PAGE)
    with mounted(pool) as mount:
        assert unreadable(mount.place) == set()
        assert error_of(lambda: (mount.place / "new").write_bytes(content("new"))) == errno.EIO
        assert changes_no_more(mount.place)
        assert unreadable(mount.place) == set()
        assert "the volume is read-only from now on" in mount.said()
        assert mount.daemon.poll() is None
    with mounted(pool, "errors=continue") as mount:
        assert error_of(lambda: (mount.place / "new").write_bytes(content("new"))) == errno.EIO
        assert not changes_no_more(mount.place)
        assert unreadable(mount.place) == set()
        assert mount.daemon.poll() is None


def test_the_superblock(pool: Path) -> None:
    """A pool whose superblock can't be read is mounted by its backup, or refused with a line that says why."""
    poison(pool, 0)
    said = daxfs("mount", pool, pool.parent, code=32)
    assert re.fullmatch(rf"daxfs: {re.escape(str(pool))}.*\n", said), said
    assert "Traceback" not in said
