"""``daxfs snapshot mount``: the tree of a snapshot beside the mount that goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cli_rig
import pytest
from cli_rig import daxfs
from mount_rig import mounted, mountpoint
from tree_rig import KernelSide, kernel_tree, same

from daxfs.fuse import mounts
from support import fsck

Pool = Callable[..., Path]
COUNT = 30


def fill(place: Path, seed: int) -> None:
    """Write, replace and remove files."""
    rng = random.Random(seed)
    side = KernelSide(place)
    for number in range(COUNT):
        path = place / f"f{number}"
        if rng.randrange(4) == 0:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(rng.randbytes(rng.randrange(1, 60_000)))
    if not (place / "d").exists():
        side.mkdir(b"d")
        side.symlink(b"target", b"d/link")
    side.write(b"d/sparse", rng.randrange(1 << 20), rng.randbytes(5000))


@contextmanager
def view(place: Path, name: str, *options: str) -> Iterator[Path]:
    """Mount a snapshot; unmount it at the end."""
    with mountpoint() as directory:
        daxfs("snapshot", "mount", place, name, directory, *options)
        yield directory
        if mounts.top_mount(str(directory)) is not None:
            daxfs("umount", directory)


def test_a_view_is_the_tree_at_its_making_while_files_and_snapshots_change(pool: Pool) -> None:
    path = pool()
    with mounted(path, "noatime") as mount:
        place = mount.place
        fill(place, 1)
        expected = kernel_tree(place)
        daxfs("snapshot", "create", place, "one")
        stop = threading.Event()

        def change() -> None:
            seed = 2
            while not stop.wait(0.02):
                fill(place, seed)
                seed += 1

        busy = threading.Thread(target=change)
        busy.start()
        try:
            with view(place, "one", "-o", "noatime") as seen:
                daxfs("snapshot", "create", place, "two")
                found = kernel_tree(seen)
                daxfs("snapshot", "delete", place, "two")
                same(kernel_tree(seen), found)
                same(found, expected)
                assert "is busy" in daxfs("umount", place, code=32)
                assert f"shows the snapshot {path}@one" in daxfs("snapshot", "list", seen, code=1)
                with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                    (seen / "new").touch()
        finally:
            stop.set()
            busy.join()
        mount.unmount()
    fsck(path)


def test_the_tools_show_what_a_view_shows(pool: Pool) -> None:
    path = pool("-L", "before")
    path = path.rename(path.with_name("pool@home"))
    with mounted(path, "noatime") as mount:
        (mount.place / "f").write_bytes(b"x" * 8192)
        cli_rig.daxfs("snapshot", "create", mount.place, "one@noon")
        (mount.place / "f").unlink()
        (mount.place / "g").write_bytes(b"y" * (1 << 20))
        with view(mount.place, "one@noon") as seen:
            facts = json.loads(cli_rig.daxfs("info", seen, "--json"))
            assert facts["pool"] == f"{path}@one@noon"
            assert facts["mountpoint"] == str(seen)
            assert facts["state"] == "mounted"
            assert facts["label"] == "before"
            found = os.statvfs(seen)
            assert (facts["free_blocks"], facts["free_inodes"]) == (found.f_bfree, found.f_ffree)
            assert json.loads(cli_rig.daxfs("map", seen / "f", "--json"))["size"] == 8192
            cli_rig.daxfs("snapshot", "delete", mount.place, "one@noon")
            assert "there is no snapshot of this name" in cli_rig.daxfs("info", seen, code=1)


def test_a_deleted_snapshot_is_an_error(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount:
        (mount.place / "f").write_bytes(b"x" * (4 << 20))
        daxfs("snapshot", "create", mount.place, "one")
        with view(mount.place, "one") as seen:
            daxfs("snapshot", "delete", mount.place, "one")
            (mount.place / "f").write_bytes(b"y" * (4 << 20))
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (seen / "f").read_bytes()


def test_a_pool_that_is_not_mounted_is_claimed(pool: Pool) -> None:
    path = pool()
    with mounted(path, "noatime") as mount:
        fill(mount.place, 1)
        expected = kernel_tree(mount.place)
        daxfs("snapshot", "create", mount.place, "one")
        fill(mount.place, 2)
    before = path.read_bytes()
    with view(path, "one", "-o", "noatime") as seen, mountpoint() as other:
        same(kernel_tree(seen), expected)
        assert "is in use" in daxfs("mount", path, other, code=32)
        assert json.loads(cli_rig.daxfs("info", seen, "--json"))["pool"] == f"{path}@one"
    assert path.read_bytes() == before
    with mounted(path):
        pass


def test_bad_input_mounts_nothing(pool: Pool) -> None:
    path = pool()
    with mounted(path) as mount, mountpoint() as directory:
        cli_rig.daxfs("snapshot", "create", mount.place, "one")
        for code, arguments, words in (
            (1, (mount.place, "two", directory), "there is no snapshot of this name"),
            (1, (mount.place, "a/b", directory), "there is no snapshot of this name"),
            (1, (mount.place, "one", directory / "none"), "does not exist"),
            (1, (mount.place, "one", directory, "-o", "rw"), "mounted read-only"),
            (1, (mount.place, "one", directory, "-o", "session=pyfuse3"), "mounted read-only"),
            (66, (directory, "one", directory), "no daxfs is mounted"),
            (32, (path, "one", directory), "has it mounted on"),
            (32, (path.with_name("none"), "one", directory), "does not exist"),
            (64, (mount.place, "one"), "Missing argument 'DIRECTORY'"),
        ):
            said = cli_rig.daxfs("snapshot", "mount", *arguments, code=code)
            assert words in said
            assert said.count("\n") == 1
            assert mounts.top_mount(str(directory)) is None
