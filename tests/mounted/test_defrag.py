"""``daxfs defrag`` on a live mount: files get 2 MiB pages, programs that map them keep theirs, and refusals."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from mount_rig import mounted

from daxfs import direct
from daxfs.tools import command, defrag, mapview, snapshots

Pool = Callable[..., Path]
CHUNK = 2 << 20


def interleaved(place: Path, names: tuple[str, ...], chunks: int = 2) -> dict[str, bytes]:
    """Files that lie in pieces of each other."""
    made = {name: random.Random(os.fsencode(name)).randbytes(chunks * CHUNK) for name in names}
    files = [(place / name).open("wb", buffering=0) for name in names]
    for offset in range(0, chunks * CHUNK, 1 << 16):
        for file, content in zip(files, made.values(), strict=True):
            file.write(content[offset : offset + (1 << 16)])
    for file in files:
        file.close()
    return made


def huge(path: Path) -> int:
    return mapview.examine(str(path)).huge


def test_files_get_pages_of_2_mib(pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path) as mount:
        (mount.place / "d").mkdir()
        made = interleaved(mount.place, ("a", "d/b", "d/c"))
        assert huge(mount.place / "a") == 0
        assert "is a directory; -r" in daxfs("defrag", str(mount.place / "d"), code=os.EX_USAGE)
        told = daxfs("defrag", str(mount.place / "a"))
        assert "4 MiB moved" in told
        assert "0 -> 100 % in 2 MiB pages" in told
        assert huge(mount.place / "a") == 2 * CHUNK
        told = daxfs("defrag", "--rate", "1G", str(mount.place))
        assert "d/b: 4 MiB moved" in told
        assert "/a:" not in told, "nothing is left to do there"
        assert {name: (mount.place / name).read_bytes() for name in made} == made


def test_what_a_program_maps_stays_and_is_named(pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path) as mount:
        interleaved(mount.place, ("a", "b"))
        with direct.map(mount.place / "a", 0, CHUNK) as mapping:
            assert mapping.direct
            told = daxfs("defrag", str(mount.place / "a"))
            assert "2 MiB moved" in told
            assert (
                f"2 MiB at 0 stay: programs map it, or may store to it and do not answer: process {os.getpid()}" in told
            )
        assert "2 MiB moved" in daxfs("defrag", str(mount.place / "a"))


def test_all_files_of_a_mount_that_can_be(pool: Pool, tmp_path: Path) -> None:
    """Stores of snapshots stay, a name of any bytes is one line, and what fails is named and ends nothing."""
    path = pool("-b", "4096")
    with mounted(path) as mount:
        odd = os.fsdecode(b"bad\xff\x1b[31m\nname")
        interleaved(mount.place, (odd, "b"))
        snapshots.create(str(mount.place), "monday")
        told = daxfs("defrag", str(mount.place))
        assert "bad\\udcff\\x1b[31m\\nname: 4 MiB moved" in told
        assert "/b: 4 MiB moved" in told
        store = mount.place / ".daxfs" / "snapshots" / "monday"
        assert "its blocks stay" in daxfs("defrag", str(store), code=os.EX_UNAVAILABLE)
        assert daxfs("map", str(mount.place / odd)).count("\n") == 4
    assert "not on a mount of daxfs" in daxfs("defrag", "-r", str(tmp_path), code=os.EX_NOINPUT)


def test_files_that_vanish_or_may_not_be_read(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pool("-b", "4096")
    with mounted(path) as mount:
        for name in ("a", "b", "c", "d"):
            (mount.place / name).write_bytes(b"x")
        interleaved(mount.place, ("y", "z"))
        ask = defrag._opened

        def opened(each: str) -> int:
            if each.endswith("/a"):
                (mount.place / "b").unlink()
            if each.endswith("/d"):
                raise PermissionError(errno.EACCES, "no", each)
            return ask(each)

        monkeypatch.setattr(defrag, "_opened", opened)
        assert defrag.run(str(mount.place)) == defrag.FAILED
        said = capsys.readouterr()
        assert said.err == f"daxfs: {mount.place}/d: Permission denied\n"
        assert said.out.count("4 MiB moved") == 2


def test_nobody_asks_for_holes(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many TiB with little in it takes few requests."""
    path = pool("-b", "4096")
    with mounted(path) as mount:
        with (mount.place / "sparse").open("wb") as file:
            for offset in (5, 3 << 40, (15 << 40) + 7):
                file.seek(offset)
                file.write(b"x")
        asked = []
        ask = defrag._ask
        monkeypatch.setattr(defrag, "_ask", lambda descriptor, offset: asked.append(offset) or ask(descriptor, offset))
        assert defrag.run(str(mount.place / "sparse")) == 0
        assert asked == [0, 3 << 40, 15 << 40]


def test_a_signal_between_two_steps_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon answers EINTR to a process that was stopped for a while; what has moved stays."""
    answers = [InterruptedError(errno.EINTR, "stopped"), b'{"moved":0,"stayed":[],"next":null}']

    def ioctl(_descriptor: int, _command: int, argument: bytearray) -> None:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        argument[:] = answer

    monkeypatch.setattr(command.fcntl, "ioctl", ioctl)
    assert defrag._ask(0, 0)["moved"] == 0
    assert not answers


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert "not on a mount of daxfs" in daxfs("defrag", str(tmp_path / "f"), code=os.EX_UNAVAILABLE)
    assert "No such file" in daxfs("defrag", str(tmp_path / "missing"), code=os.EX_NOINPUT)
    assert "not a size" in daxfs("defrag", "--rate", "fast", str(tmp_path / "f"), code=os.EX_USAGE)
