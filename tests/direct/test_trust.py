"""Mount verification by both clients: a user's own mount must not make root open files for writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from direct_rig import FakeDaemon
from mount_rig import NOBODY, SESSIONS, mounted
from preload_rig import agent, compile_program, said

from daxfs import direct
from daxfs.direct import trust
from daxfs.fs.grants import epochs

LINE = "{id} 1 {device} / /mnt/a\\040b rw,nosuid shared:7 - {kind} {source} rw,{options},default_permissions\n"
OWN = os.getuid()
ATTEMPTS = 10


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program that prints which mounts and pools the preload library believes."""
    return compile_program("trust", tmp_path_factory.mktemp("trust") / "trust")


@pytest.mark.parametrize(("user", "expected"), [(0, True), (NOBODY, False)])
def test_only_the_mounts_of_root_and_of_the_own_user_give_memory(
    pool: Callable[..., Path],
    library: Path,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    expected: bool,
) -> None:
    made = pool("-b", "4096")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: user)  # what the daemon, a fork of this process, tells mount(2)
        mount = mounted(made, *SESSIONS["kernel"], "allow_other")
        place = mount.__enter__().place
    try:
        path = place / "file"
        path.write_bytes(b"x" * 4096)
        assert said(None, program, "mount", path) == ("yes\n" if expected else "no\n")
        with agent(library) as worker:
            worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
            got, calls = worker("direct(lambda: os.pread(fd, 4096, 0))")  # type: ignore[misc]
            assert (got, calls) == (b"x" * 4096, 0 if expected else 1)
            mapped = worker("{pool} in open('/proc/self/maps').read()", pool=str(made))
            assert mapped == expected
        with direct.open(path, "r+b") as file:
            assert file.direct == expected
            assert expected or file.why == f"the mount is user {NOBODY}'s, not root's or this process's"
            assert file.pread(0, 2) == b"xx"
    finally:
        mount.__exit__(None, None, None)


def test_a_mount_that_takes_the_place_of_a_trusted_one(
    pool: Callable[..., Path], library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool may stay mapped while no file is open; a mount that gives the same answers later is verified again."""
    made = pool("-b", "4096")
    monkeypatch.setattr(epochs.secrets, "randbits", lambda _: 4711)
    content = b"x" * 4096
    with agent(library) as worker:

        def number_of_a_mount(user: int) -> int:
            with monkeypatch.context() as patch:
                patch.setattr(os, "getuid", lambda: user)
                mount = mounted(made, *SESSIONS["kernel"], "allow_other")
                place = mount.__enter__().place
            try:
                path = place / "file"
                path.write_bytes(content)
                for _ in range(20):
                    worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
                    got, calls = worker("direct(lambda: os.pread(fd, 4096, 0))")  # type: ignore[misc]
                    assert (got, calls) == (content, 0 if user == 0 else 1)
                    worker("os.close(fd)")
                assert user or worker("{pool} in open('/proc/self/maps').read()", pool=str(made))
                return path.stat().st_dev
            finally:
                mount.__exit__(None, None, None)

        # The number becomes free with the first mount; whoever mounts something else meanwhile may get it.
        assert any(number_of_a_mount(0) == number_of_a_mount(NOBODY) for _ in range(ATTEMPTS))


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("fuse.daxfs", "user_id=0,group_id=0", ""),
        ("fuse.daxfs", f"user_id={OWN},group_id=0", ""),
        ("fuse.daxfs", "user_id=4711,group_id=0", "user 4711"),
        ("fuse.daxfs", "user_id=0,user_id=4711", "user 4711"),
        ("fuse.daxfs", "user_id=4711,user_id=0", "user 4711"),
        ("fuse.daxfs", "group_id=0", "none of daxfs"),
        ("fuse.sshfs", "user_id=0,group_id=0", "none of daxfs"),
        ("ext4", "errors=continue", "none of daxfs"),
    ],
)
def test_the_table_of_mounts_says_whose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, why: str
) -> None:
    device = tmp_path.stat().st_dev
    own = f"{os.major(device)}:{os.minor(device)}"
    other = LINE.format(id=7, device="0:4711", kind="fuse.daxfs", source="user_id=0,x", options="user_id=4711")
    table = tmp_path / "mountinfo"
    table.write_text(other + LINE.format(id=8, device=own, kind=kind, source="-", options=options) + other)
    monkeypatch.setattr(trust, "MOUNTS", str(table))
    with table.open() as file:
        if not why:
            trust.check_mount(file.fileno())
            return
        with pytest.raises(trust.Refused, match=why):
            trust.check_mount(file.fileno())


def test_a_mount_that_is_not_in_the_table_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text("")
    monkeypatch.setattr(trust, "MOUNTS", str(tmp_path / "mountinfo"))
    with (tmp_path / "mountinfo").open() as file, pytest.raises(trust.Refused, match="can't be seen"):
        trust.check_mount(file.fileno())
    monkeypatch.setattr(trust, "MOUNTS", str(tmp_path / "missing"))
    with (tmp_path / "mountinfo").open() as file, pytest.raises(trust.Refused, match="can't be read"):
        trust.check_mount(file.fileno())


def make(kind: str, place: Path) -> Path:
    """Make something that is no pool."""
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.with_suffix(".to").write_bytes(bytes(1 << 20))
        place.symlink_to(place.with_suffix(".to"))
    elif kind == "short":
        place.write_bytes(bytes(1024))
    else:
        place.mkdir()
    return place


@pytest.mark.parametrize("kind", ["fifo", "link", "short", "folder"])
def test_only_a_pool_is_opened(
    daemon: FakeDaemon, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = make(kind, tmp_path / "named")
    status = place.stat()
    daemon.record = daemon.record._replace(path=os.fsencode(place), device=status.st_dev, inode=status.st_ino)
    opened: list[str] = []
    really = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **how: (opened.append(str(path)), really(path, *more, **how))[1]
    )
    with direct.open(daemon.file, "r+b") as file:
        assert not file.direct
    assert str(place) not in opened
    for flags in (os.O_RDWR, os.O_RDONLY):
        assert said(None, program, "pool", place, place, str(flags)) == "no\n"


def test_another_file_than_the_one_named_is_not_opened(program: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(8192))
    (tmp_path / "two").write_bytes(bytes(8192))
    assert said(None, program, "pool", tmp_path / "one", tmp_path / "one", "2") == "yes\n"
    assert said(None, program, "pool", tmp_path / "one", tmp_path / "two", "2") == "no\n"


def test_the_file_system_must_be_in_the_pool(daemon: FakeDaemon, program: Path, tmp_path: Path) -> None:
    uuid = bytes(range(16))
    good = bytearray(4096)
    good[1024 + 56 : 1024 + 58] = b"\x53\xef"
    good[1024 + 104 : 1024 + 120] = uuid
    for at, expected in ((None, "yes\n"), (1024 + 56, "no\n"), (1024 + 110, "no\n")):
        content = bytearray(good)
        if at is not None:
            content[at] ^= 1
        (tmp_path / "image").write_bytes(content)
        assert said(None, program, "superblock", tmp_path / "image") == expected
        with daemon.pool.open("r+b") as image:
            image.write(content[:2048])
        daemon.record = daemon.record._replace(uuid=uuid)
        with direct.open(daemon.file, "r+b") as file:
            assert file.direct == (expected == "yes\n")
