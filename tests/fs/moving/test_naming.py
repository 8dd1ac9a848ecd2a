"""How messages name inodes that stay where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_memory import tmp_path
from resizing_rig import made
from tree_rig import QUIET

from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.moving import naming
from daxfs.fs.steps import finish
from daxfs.structures import directories

__all__ = ["tmp_path"]


def shown(fs: FileSystem, *numbers: int) -> list[str]:
    texts = finish(naming.shown(fs.volume, set(numbers)))
    return [texts[ino] for ino in numbers]


def test_paths(tmp_path: Path) -> None:
    """Of files and directories, of names that no encoding knows, of what has no name, and of the root."""
    with FileSystem.open(made(tmp_path / "pool"), QUIET) as fs:
        fs.tree.mkdir("/a")
        fs.tree.mkdir("/a/b")
        fs.tree.write_bytes("/a/b/file", b"")
        fs.tree.write_bytes(b"/a/\xff\n", b"")
        nameless, _ = fs.tmpfile(ROOT_INO, 0o600)
        numbers = [fs.tree.stat(each).ino for each in ("/a/b/file", "/a/b", "/a", b"/a/\xff\n", "/")]
        assert shown(fs, *numbers, nameless.ino, 400) == [
            f"/a/b/file (inode {numbers[0]})",
            f"/a/b (inode {numbers[1]})",
            f"/a (inode {numbers[2]})",
            f"/a/\\xff\n (inode {numbers[3]})",
            f"inode {ROOT_INO}",
            f"inode {nameless.ino}",
            "inode 400",
        ]
        assert shown(fs) == []
        fs.release(nameless)


def test_a_long_path_is_shown_without_its_beginning(tmp_path: Path) -> None:
    with FileSystem.open(made(tmp_path / "pool"), QUIET) as fs:
        path = ""
        for level in range(naming.MOST_LEVELS + 5):
            path += f"/{level}"
            fs.tree.mkdir(path)
        deep = fs.tree.stat(path).ino
        (text,) = shown(fs, deep)
        assert text.startswith("...")
        assert path.endswith(text.removesuffix(f" (inode {deep})").removeprefix("..."))
        fs.tree.mkdir("/" + "x" * 250)
        fs.tree.write_bytes("/" + "x" * 250 + "/" + "y" * 250, b"")
        (text,) = shown(fs, fs.tree.stat("/" + "x" * 250 + "/" + "y" * 250).ino)
        assert text.startswith("..." + "y" * naming.MOST_SHOWN)


@pytest.mark.interpreted
def test_no_step_looks_at_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large directory is looked at in parts, and one that is removed between two of them is passed over."""
    with FileSystem.open(made(tmp_path / "pool", size="80M"), QUIET) as fs:
        fs.tree.mkdir("/large")
        for number in range(1000):
            fs.tree.write_bytes(f"/large/{number}", b"")
        last = fs.tree.stat("/large/999").ino
        portion, looked = directories.portion, [0]

        def counted(*arguments: object) -> object:
            listing, following = portion(*arguments)  # type: ignore[arg-type]
            looked[-1] += len(listing)
            return listing, following

        monkeypatch.setattr(directories, "portion", counted)
        for _ in naming.names(fs.volume, {last}):
            looked.append(0)
        assert sum(looked) > 1000
        assert max(looked) < 900
        monkeypatch.undo()
        assert shown(fs, last) == [f"/large/999 (inode {last})"]
        steps = naming.names(fs.volume, {last})
        next(steps)
        for number in range(1000):
            fs.tree.unlink(f"/large/{number}")
        fs.tree.rmdir("/large")
        assert finish(steps) == {}
        fs.check()
