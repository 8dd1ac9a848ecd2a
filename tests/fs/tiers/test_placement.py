"""Where the data of files belongs: which values are accepted, and who inherits them."""

from __future__ import annotations

import errno
import os

import pytest
from in_memory import tmp_path
from tier_rig import fs, tiered

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import placement
from daxfs.fs.tiers.placement import ATTRIBUTE, AUTO, MEMORY, STORAGE
from daxfs.fs.types import ROOT_INO
from daxfs.structures import inodes, xattrs

__all__ = ["fs", "tiered", "tmp_path"]


def place_of(fs: FileSystem, ino: int) -> bytes:
    return placement.of(fs.volume.view, inodes.read(fs.volume.view, ino))


@pytest.mark.parametrize("value", [MEMORY, STORAGE, AUTO])
def test_new_files_and_directories_belong_where_their_directory_does(fs: FileSystem, value: bytes) -> None:
    before = fs.mkdir(ROOT_INO, b"before", 0o755).ino
    fs.setxattr(ROOT_INO, ATTRIBUTE, value)
    folder = fs.mkdir(ROOT_INO, b"folder", 0o755).ino
    file, _ = fs.create(folder, b"file", 0o600)
    nameless, _ = fs.tmpfile(folder, 0o600, os.O_RDWR)
    node = fs.mknod(folder, b"node", 0o600).ino
    for ino in (folder, file.ino, nameless.ino, node):
        assert fs.getxattr(ino, ATTRIBUTE) == value
        assert place_of(fs, ino) == value
    assert place_of(fs, before) == AUTO
    link = fs.symlink(folder, b"link", b"file").ino
    assert not xattrs.present(inodes.read(fs.volume.view, link))
    fs.release(file)
    fs.release(nameless)
    fs.removexattr(folder, ATTRIBUTE)
    assert place_of(fs, fs.mknod(folder, b"later", 0o600).ino) == AUTO


@pytest.mark.parametrize("value", [b"", b"Memory", b"memory ", b"disk", bytes(7)])
def test_other_values_are_refused(fs: FileSystem, value: bytes) -> None:
    ino = fs.mknod(ROOT_INO, b"file", 0o600).ino
    fs.setxattr(ino, ATTRIBUTE, MEMORY)
    with pytest.raises(FsError) as bad:
        fs.setxattr(ino, ATTRIBUTE, value)
    assert bad.value.errno == errno.EINVAL
    assert place_of(fs, ino) == MEMORY


def test_what_another_program_has_stored_and_means_nothing_is_auto(fs: FileSystem) -> None:
    ino = fs.mknod(ROOT_INO, b"file", 0o600).ino
    with fs.volume.handle(8) as tx:
        xattrs.set(tx, inodes.edit(tx, ino), ATTRIBUTE, b"disk")
    assert place_of(fs, ino) == AUTO


def test_an_inherited_default_acl_and_the_place_are_both_there(fs: FileSystem) -> None:
    folder = fs.mkdir(ROOT_INO, b"folder", 0o755).ino
    fs.setxattr(folder, ATTRIBUTE, STORAGE)
    acl = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
    fs.setxattr(folder, b"system.posix_acl_default", acl)
    inner = fs.mkdir(folder, b"inner", 0o777).ino
    assert place_of(fs, inner) == STORAGE
    assert fs.getxattr(inner, b"system.posix_acl_default") == acl
