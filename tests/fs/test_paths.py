"""Paths and file objects over the facade: how paths resolve, and how a binary file behaves."""

from __future__ import annotations

import errno
import io
import os

import pytest
from range_rig import refused

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.paths import MAX_LINKS, MODES, Tree
from daxfs.fs.types import ROOT_INO


@pytest.fixture
def tree(memory_fs: FileSystem) -> Tree:
    """Return the paths of a pool with the directory ``/d`` and the file ``/d/f``."""
    tree = memory_fs.tree
    tree.mkdir("/d")
    tree.write_bytes("/d/f", b"content")
    return tree


@pytest.mark.parametrize("path", ["/d/f", "d/f", "//d///f", "/d/f/", b"/d/f", "/d/./f", "/d/../d/f"])
def test_spellings_of_one_path(tree: Tree, path: str | bytes) -> None:
    assert tree.resolve(path) == tree.fs.lookup(tree.fs.lookup(ROOT_INO, b"d").ino, b"f").ino


def test_the_root_has_no_name(tree: Tree) -> None:
    for path in ("", "/", "//", "/.", "/.."):
        assert tree.resolve(path) == ROOT_INO


def test_paths_that_lead_nowhere(tree: Tree) -> None:
    for path, number in (("/none", errno.ENOENT), ("/d/none/f", errno.ENOENT), ("/d/f/x", errno.ENOTDIR)):
        with refused(number):
            tree.resolve(path)


def test_names_are_bytes(tree: Tree) -> None:
    """A name that is no UTF-8 survives the way through ``str`` and back (surrogateescape)."""
    tree.write_bytes(b"/\xff\xfe", b"x")
    name = os.fsdecode(b"\xff\xfe")
    assert tree.read_bytes("/" + name) == b"x"
    assert b"\xff\xfe" in tree.listdir()


def test_symbolic_links(tree: Tree) -> None:
    """A target is relative to the link's directory or absolute in the pool; the last link is followed on request."""
    tree.symlink("f", "/d/near")
    tree.symlink("/d/near", "/far")
    tree.symlink("d", "/dir")
    for path in ("/d/near", "/far", "/dir/near", "/dir/f"):
        assert tree.resolve(path) == tree.resolve("/d/f")
    assert tree.resolve("/far", follow=False) != tree.resolve("/far")
    assert tree.resolve("/dir/near", follow=False) == tree.resolve("/d/near", follow=False)
    assert tree.stat("/far", follow=False).size == len("/d/near")


def test_links_without_end(tree: Tree) -> None:
    tree.symlink("/loop", "/loop")
    with refused(errno.ELOOP):
        tree.resolve("/loop")
    assert tree.resolve("/loop", follow=False)
    tree.symlink("/d", "/0")
    for number in range(MAX_LINKS):
        tree.symlink(f"/{number}", f"/{number + 1}")
    assert tree.resolve(f"/{MAX_LINKS - 1}") == tree.resolve("/d")
    with refused(errno.ELOOP):
        tree.resolve(f"/{MAX_LINKS}")


def test_links_are_counted_over_the_whole_path(tree: Tree) -> None:
    """As the kernel does: otherwise links that lead to two links each would take 2**40 steps."""
    tree.symlink("/d", "/d/l")
    assert tree.resolve("/d/" + "l/" * MAX_LINKS) == tree.resolve("/d")
    with refused(errno.ELOOP):
        tree.resolve("/d/" + "l/" * (MAX_LINKS + 1))
    tree.symlink("/d", "/0")
    for number in range(30):
        tree.symlink(f"/{number}/../{number}", f"/{number + 1}")
    with refused(errno.ELOOP):
        tree.resolve("/30")


def test_parents(tree: Tree) -> None:
    assert tree.parent("/d/new") == (tree.resolve("/d"), b"new")
    assert tree.parent("/new/") == (ROOT_INO, b"new")


def test_names_come_and_go(tree: Tree) -> None:
    tree.mkdir("/d/e", 0o700)
    assert tree.stat("/d/e").mode & 0o777 == 0o700
    assert set(tree.listdir("/d")) == {b"e", b"f"}
    tree.rename("/d/f", "/d/e/g")
    assert (tree.listdir("/d"), tree.listdir("/d/e")) == ([b"e"], [b"g"])
    tree.unlink("/d/e/g")
    tree.rmdir("/d/e")
    assert tree.listdir("/d") == []
    assert not tree.fs.volume.nodes.open  # type: ignore[attr-defined]


def test_modes_of_open(tree: Tree) -> None:
    """The modes are those of the built-in ``open``."""
    for mode in ("r+b", "rb"):
        with refused(errno.ENOENT):
            tree.open("/none", mode)
    with refused(errno.EEXIST):
        tree.open("/d/f", "xb")
    with tree.open("/d/f", "ab") as file:
        file.write(b"!")
        assert file.tell() == 8
    with tree.open("/d/f", "r+b") as file:
        file.write(b"C")
        file.seek(0)
        assert file.read() == b"Content!"
    with tree.open("/d/f", "w+b") as file:
        assert file.read() == b""
    with tree.open("/d/new", "xb", 0o600) as file:
        assert (file.readable(), file.writable()) == (False, True)
    assert tree.stat("/d/new").mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="expected one of " + " ".join(MODES).replace("+", "[+]")):
        tree.open("/d/f", "r")


def test_a_file_is_a_raw_stream(tree: Tree) -> None:
    with tree.open("/d/f", "r+b") as file:
        assert isinstance(file, io.RawIOBase)
        assert file.seekable()
        assert io.BufferedReader(file).read(3) == b"con"
        assert file.seek(-2, os.SEEK_END) == 5
        assert file.seek(-1, os.SEEK_CUR) == 4
        assert file.read(2) == b"en"
        with refused(errno.EINVAL):
            file.seek(-1)
        assert file.seek(3) == 3
        assert file.truncate() == 3
        assert file.truncate(5) == 5
        assert tree.read_bytes("/d/f") == b"con\0\0"


def test_a_view_is_the_pools_memory(tree: Tree) -> None:
    with tree.open("/d/f", "r+b") as file:
        view = file.view(0, 7)
        assert isinstance(view, memoryview)
        assert view.readonly
        file.write(b"CON")
        assert bytes(view) == b"CONtent"


def test_the_file_is_closed_once(memory_fs: FileSystem, tree: Tree) -> None:
    file = tree.open("/d/f")
    assert memory_fs.statistics().open_files == 1
    file.close()
    file.close()
    assert memory_fs.statistics().open_files == 0


def test_long_content_is_written_whole(tree: Tree) -> None:
    content = os.urandom(3 << 20)
    tree.write_bytes("/long", content)
    assert tree.read_bytes("/long") == content
    tree.write_bytes("/long", b"short")
    assert tree.read_bytes("/long") == b"short"
