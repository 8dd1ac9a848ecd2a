"""``daxfs snapshot`` on a live mount: an export made while the file system goes on, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mount_rig import as_user, daxfs, mounted
from tree_rig import QUIET

from daxfs.fs.filesystem import FileSystem
from daxfs.fuse.kernel.snapshots import CREATE, LIST, QUESTION, SIZE, SNAPSHOTS
from daxfs.tools import snapshots
from support import fsck

Pool = Callable[..., Path]
FILES = 40


def contents(seed: int) -> dict[str, bytes]:
    rng = random.Random(seed)
    return {f"f{number}": rng.randbytes(rng.randrange(1, 60_000)) for number in range(FILES)}


def written(place: Path, seed: int) -> dict[str, bytes]:
    found = contents(seed)
    for name, content in found.items():
        (place / name).write_bytes(content)
    return found


def held(image: Path) -> dict[str, bytes]:
    fsck(image)
    with FileSystem.open(image, QUIET) as fs:
        return {name: fs.tree.read_bytes(name) for name in contents(0)}


@pytest.mark.parametrize("options", [(), ("-b", "1024")])
def test_an_export_is_the_tree_at_its_making_while_files_change(pool: Pool, options: tuple[str, ...]) -> None:
    path = pool(*options)
    image = path.with_name("image")
    with mounted(path) as mount:
        first = written(mount.place, 1)
        daxfs("snapshot", "create", mount.place, "one")
        second = written(mount.place, 2)
        daxfs("snapshot", "create", mount.place, "two")
        stop = threading.Event()

        def change() -> None:
            seed = 3
            while not stop.is_set():
                written(mount.place, seed)
                seed += 1

        busy = threading.Thread(target=change)
        busy.start()
        try:
            for name, expected in (("one", first), ("two", second)):
                daxfs("snapshot", "export", mount.place, name, image, "--force")
                assert held(image) == expected, name
        finally:
            stop.set()
            busy.join()
        daxfs("snapshot", "delete", mount.place, "two")
        written(mount.place, 99)
        daxfs("snapshot", "export", mount.place, "one", image, "--force")
        assert held(image) == first
        mount.unmount()
    fsck(path)
    with mounted(path) as mount:
        (found,) = json.loads(daxfs("snapshot", "list", mount.place, "--json"))
        assert (found["name"], found["lost"]) == ("one", "")
        assert " one " in daxfs("snapshot", "list", mount.place)
        daxfs("snapshot", "export", mount.place, "one", image, "--force")
        assert held(image) == first


def test_what_a_mapping_holds_in_the_page_cache_is_in_the_snapshot(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        file = mount.place / "f0"
        file.write_bytes(bytes(8192))
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapped:
            mapped[5000:5004] = b"mine"
            daxfs("snapshot", "create", mount.place, "s")
            mapped[5000:5004] = b"late"
        daxfs("snapshot", "export", mount.place, "s", path.with_name("image"))
    with FileSystem.open(path.with_name("image"), QUIET) as fs:
        assert fs.tree.read_bytes("f0")[5000:5004] == b"mine"


def test_bad_input_changes_nothing(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        daxfs("snapshot", "create", mount.place, "s")
        before = [row["uuid"] for row in snapshots.listing(str(mount.place))]
        (mount.place / "taken").touch()
        for code, arguments, words in (
            (1, ("create", mount.place, "s"), "there is a snapshot of this name"),
            (1, ("create", mount.place, "a/b"), "must not contain a slash"),
            (1, ("create", mount.place, "n" * 256), "longer than 255 bytes"),
            (1, ("delete", mount.place, "none"), "there is no snapshot of this name"),
            (1, ("export", mount.place, "none", path.with_name("image")), "there is no snapshot of this name"),
            (1, ("export", mount.place, "s", path), "is the pool itself"),
            (1, ("export", mount.place, "s", mount.place / "taken"), "exists; to replace it add --force"),
            (64, ("create", mount.place), "needs a mountpoint and a name"),
            (64, ("list", mount.place, "s"), "needs a mountpoint"),
            (64, ("export", mount.place, "s"), "needs a mountpoint, a name and a file"),
            (64, ("rename", mount.place, "s"), "is no command of snapshot"),
            (66, ("list", path.parent), "no daxfs is mounted"),
        ):
            assert words in daxfs("snapshot", *arguments, code=code)
        assert [row["uuid"] for row in snapshots.listing(str(mount.place))] == before
        assert not path.with_name("image").exists()


def test_a_read_only_mount_has_a_list_only(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        daxfs("snapshot", "create", mount.place, "s")
    with mounted(path, "ro") as mount:
        assert " s " in daxfs("snapshot", "list", mount.place)
        assert "the mount is read-only" in daxfs("snapshot", "create", mount.place, "t", code=1)
        assert "the mount is read-only" in daxfs("snapshot", "delete", mount.place, "s", code=1)


def ask(place: Path, what: int) -> None:
    """Send the ioctl."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SNAPSHOTS, bytearray(QUESTION.pack(what, 0, b"x").ljust(SIZE, b"\0")))
    finally:
        os.close(descriptor)


def test_only_root_may_ask_and_only_the_root_directory_answers(pool: Pool) -> None:
    with mounted(pool(), "allow_other") as mount:
        (mount.place / "f").touch()
        for place, what, number in ((mount.place / "f", CREATE, errno.ENOTTY), (mount.place, 99, errno.EINVAL)):
            with pytest.raises(OSError, match=os.strerror(number)):
                ask(place, what)
        assert as_user(lambda: ask(mount.place, LIST)) == errno.EPERM
        assert as_user(lambda: ask(mount.place, CREATE)) == errno.EPERM
        assert snapshots.listing(str(mount.place)) == []


def test_a_long_list_comes_whole(pool: Pool) -> None:
    with mounted(pool()) as mount:
        for number in range(30):
            (mount.place / ".daxfs/snapshots").mkdir(parents=True, exist_ok=True)
            (mount.place / ".daxfs/snapshots" / (f"{number:02}" + "n" * 240)).touch()
        assert len(snapshots.listing(str(mount.place))) == 30
