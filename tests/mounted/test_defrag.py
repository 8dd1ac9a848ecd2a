"""``daxfs defrag`` on a live mount: files get 2 MiB pages, programs that map them keep theirs, and refusals."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from cli_rig import daxfs
from mount_rig import mounted

from daxfs import direct
from daxfs.tools import mapview

Pool = Callable[..., Path]
CHUNK = 2 << 20


def interleaved(place: Path, names: tuple[str, ...], chunks: int = 2) -> dict[str, bytes]:
    """Files that lie in pieces of each other."""
    made = {name: random.Random(name).randbytes(chunks * CHUNK) for name in names}
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


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert "Inappropriate ioctl" in daxfs("defrag", str(tmp_path / "f"), code=os.EX_UNAVAILABLE)
    assert "No such file" in daxfs("defrag", str(tmp_path / "missing"), code=os.EX_NOINPUT)
    assert "not a size" in daxfs("defrag", "--rate", "fast", str(tmp_path / "f"), code=os.EX_USAGE)
