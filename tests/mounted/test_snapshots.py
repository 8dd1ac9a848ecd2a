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

import mount_rig
import pytest
from cli_rig import daxfs
from mount_rig import Mounted, as_user, mounted, mountpoint
from tree_rig import QUIET

from daxfs.errors import FsError
from daxfs.fs import imaging
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Snapshot
from daxfs.fuse.kernel.snapshots import CREATE, LIST, QUESTION, SIZE, SNAPSHOTS
from daxfs.tools import snapshotsource
from support import HANG_SECONDS, fsck, run

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


def listed(place: Path) -> list[Snapshot]:
    """The snapshots of a mount."""
    with snapshotsource.opened(str(place)) as source:
        return source.listing()


def killed(mount: Mounted) -> None:
    """End the daemon without its knowledge."""
    mount.daemon.kill()
    mount.daemon.wait(HANG_SECONDS)
    mount.down()


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
            while not stop.wait(0.02):
                written(mount.place, seed)
                seed += 1

        busy = threading.Thread(target=change)
        busy.start()
        try:
            for name, expected in (("one", first), ("two", second)):
                mount_rig.daxfs("snapshot", "export", mount.place, name, image, "--force")
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


def test_an_export_goes_on_while_snapshots_come_and_go(pool: Pool) -> None:
    path = pool()
    image = path.with_name("image")
    with mounted(path) as mount:
        first = written(mount.place, 1)
        daxfs("snapshot", "create", mount.place, "one")
        with snapshotsource.opened(str(mount.place)) as source:
            past = source.past(snapshotsource.valid(source, "one"))
            found = bytearray(past.read(0, 4096).ljust(source.pool.size, b"\0"))
            for step, (offset, content) in enumerate(imaging.pieces(source.pool, past)):
                found[offset : offset + len(content)] = content
                if step < 4:
                    written(mount.place, 2 + step)
                    daxfs(
                        "snapshot",
                        *(("create", mount.place, "two") if step % 2 == 0 else ("delete", mount.place, "two")),
                    )
                    written(mount.place, 12 + step)
            assert step >= 4
            image.write_bytes(found)
            imaging.clean(image)
            assert held(image) == first
            daxfs("snapshot", "delete", mount.place, "one")
            with pytest.raises(FsError, match="the snapshot is deleted"):
                past.read(0, 4096)


def test_a_mount_that_is_read_can_not_be_unmounted_and_a_killed_one_is_no_longer_believed(pool: Pool) -> None:
    path = pool()
    with mountpoint() as place:
        mount = Mounted(path, place)
        written(mount.place, 1)
        daxfs("snapshot", "create", mount.place, "one")
        with snapshotsource.opened(str(mount.place)) as source:
            past = source.past(snapshotsource.valid(source, "one"))
            past.read(0, 4096)
            assert "is busy" in daxfs("umount", mount.place, code=32)
            killed(mount)
            with pytest.raises(FsError, match="its daemon has ended"):
                past.read(0, 4096)
    run("e2fsck", "-fp", path)


def test_a_pool_that_is_not_mounted_is_listed_and_exported_as_it_is(pool: Pool) -> None:
    path = pool()
    image = path.with_name("image")
    with mounted(path) as mount:
        first = written(mount.place, 1)
        daxfs("snapshot", "create", mount.place, "one")
        written(mount.place, 2)
    with mountpoint() as place:
        mount = Mounted(path, place)
        written(place, 3)
        killed(mount)
    before = path.read_bytes()
    assert " one " in daxfs("snapshot", "list", path)
    daxfs("snapshot", "export", path, "one", image)
    assert held(image) == first
    assert "there is no snapshot of this name" in daxfs("snapshot", "export", path, "two", image, "--force", code=1)
    assert path.read_bytes() == before
    run("e2fsck", "-fy", path)
    assert "lost: another program has changed the pool" in daxfs("snapshot", "list", path)
    assert "is lost" in daxfs("snapshot", "export", path, "one", image, "--force", code=1)
    assert held(image) == first
    image.write_bytes(bytes(1 << 20))
    assert "not an ext4 pool" in daxfs("snapshot", "list", image, code=1)


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
        before = [each.uuid for each in listed(mount.place)]
        (mount.place / "taken").touch()
        for code, arguments, words in (
            (1, ("create", mount.place, "s"), "there is a snapshot of this name"),
            (1, ("create", mount.place, "a/b"), "must not contain a slash"),
            (1, ("create", mount.place, "n" * 256), "longer than 255 bytes"),
            (1, ("delete", mount.place, "none"), "there is no snapshot of this name"),
            (1, ("export", mount.place, "none", path.with_name("image")), "there is no snapshot of this name"),
            (1, ("export", mount.place, "s", path), "is the pool itself"),
            (1, ("export", mount.place, "s", mount.place / "taken"), "exists; to replace it add --force"),
            (1, ("delete", mount.place, "n" * 256), "longer than 255 bytes"),
            (64, ("create", mount.place), "Missing argument 'NAME'"),
            (64, ("list", mount.place, "s"), "unexpected extra argument"),
            (64, ("export", mount.place, "s"), "Missing argument 'FILE'"),
            (64, ("rename", mount.place, "s"), "No such command 'rename'"),
            (66, ("list", path.parent), "no daxfs is mounted"),
            (66, ("create", path, "t"), "no daxfs is mounted"),
            (32, ("list", path), f"has it mounted on {mount.place}"),
            (32, ("export", path, "s", path.with_name("image")), f"has it mounted on {mount.place}"),
        ):
            assert words in daxfs("snapshot", *arguments, code=code)
        assert [each.uuid for each in listed(mount.place)] == before
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
        assert listed(mount.place) == []


def test_a_long_list_comes_whole(pool: Pool) -> None:
    with mounted(pool()) as mount:
        for number in range(30):
            (mount.place / ".daxfs/snapshots").mkdir(parents=True, exist_ok=True)
            (mount.place / ".daxfs/snapshots" / (f"{number:02}" + "n" * 240)).touch()
        assert len(listed(mount.place)) == 30
