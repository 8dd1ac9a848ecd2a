"""Extended attributes in slots and blocks, shared or not, compared with debugfs and e2fsck; ACLs; damage; a model."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from directory_rig import ROOT, DirectoryRig, make_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import acl, xattr
from daxfs.structures import directories, inodes, xattrs
from daxfs.structures.inodes import Inode
from support import fsck, mke2fs, run

FORMATS = {
    "default": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "no checksums": ("-b", "4096", "-O", "^metadata_csum"),
    "small inodes": ("-b", "4096", "-I", "128"),
    "large inodes": ("-b", "4096", "-I", "1024"),
    "no ext_attr": ("-b", "2048", "-O", "^ext_attr"),
}
ENTRIES = (
    acl.Entry(acl.ACL_USER_OBJ, 7),
    acl.Entry(acl.ACL_USER, 5, 1000),
    acl.Entry(acl.ACL_GROUP_OBJ, 5),
    acl.Entry(acl.ACL_MASK, 7),
    acl.Entry(acl.ACL_OTHER, 0),
)
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


class XattrRig(DirectoryRig):
    """The attributes of one file, and their expected values."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.wanted: dict[bytes, bytes] = {}

    @property
    def file(self) -> Inode:
        return inodes.read(self.view, self.target)

    def set(self, name: bytes, value: bytes, flags: int = 0) -> None:
        with self.change(self.target) as (tx, inode):
            xattrs.set(tx, inode, name, value, flags)
        self.wanted[name] = value

    def remove_xattr(self, name: bytes) -> None:
        with self.change(self.target) as (tx, inode):
            xattrs.remove(tx, inode, name)
        del self.wanted[name]

    def get(self, name: bytes) -> bytes:
        return xattrs.get(self.view, self.file, name)

    def check(self) -> None:
        super().check()
        assert sorted(xattrs.listing(self.view, self.file)) == sorted(self.wanted)
        for name, value in self.wanted.items():
            assert self.get(name) == value
        taken = self.geometry.block_size // 512 if self.file.file_acl else 0
        assert self.file.blocks == taken

    def share(self) -> int:
        """Make another file that shares the attribute block; return its inode."""
        other = self.make_file(b"other")
        with self.change(other) as (tx, inode):
            number = inodes.read(tx, self.target).file_acl
            block = tx.edit(number, xattrs._sealer(tx.geometry, number))
            xattr.set_refcount(block, xattr.block_header(block, "test").h_refcount + 1)
            inode.file_acl = number
            inodes.add_blocks(inode, 1, tx.geometry)
        return other


@pytest.fixture(params=FORMATS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> XattrRig:
    return XattrRig(make_image(tmp_path / "pool", *FORMATS[request.param]))


@pytest.fixture
def plain(tmp_path: Path) -> XattrRig:
    return XattrRig(make_image(tmp_path / "pool", "-b", "4096"))


def refusal(action: Callable[[], object]) -> int | None:
    with pytest.raises(FsError) as caught:
        action()
    return caught.value.errno


def test_attributes_come_and_go(rig: XattrRig) -> None:
    rig.set(b"user.a", b"small")
    rig.set(b"user.empty", b"")
    rig.set(b"trusted.b", b"value" * 30)
    rig.set(b"security.selinux", b"label\0")
    rig.set(b"user.large", bytes(range(250)) * 2)
    rig.check()
    rig.remount()
    rig.check()
    rig.set(b"user.a", b"other")
    rig.set(b"user.a", b"larger" * 40)
    rig.set(b"user.large", b"tiny")
    rig.check()
    assert b"security.selinux" in run("debugfs", "-R", f"ea_list <{rig.target}>", committed(rig)).encode()
    for name in list(rig.wanted):
        rig.remove_xattr(name)
    assert rig.file.file_acl == 0
    rig.close()


def committed(rig: XattrRig) -> Path:
    rig.commit_consistent()
    return rig.path


def test_what_goes_where(plain: XattrRig) -> None:
    plain.set(b"user.small", b"in the slot")
    assert plain.file.file_acl == 0
    plain.set(b"user.large", bytes(1000))
    assert plain.file.file_acl != 0
    plain.set(b"user.small", b"x" * 200)
    plain.set(b"user.large", b"shrunk")
    assert plain.file.file_acl != 0
    plain.set(b"user.small", b"back again")
    assert plain.file.file_acl == 0
    plain.close()


def test_flags(rig: XattrRig) -> None:
    assert refusal(lambda: rig.set(b"user.a", b"1", xattrs.XATTR_REPLACE)) == errno.ENODATA
    rig.set(b"user.a", b"1", xattrs.XATTR_CREATE)
    assert refusal(lambda: rig.set(b"user.a", b"2", xattrs.XATTR_CREATE)) == errno.EEXIST
    rig.set(b"user.a", b"3", xattrs.XATTR_REPLACE)
    assert refusal(lambda: rig.remove_xattr(b"user.b")) == errno.ENODATA
    assert refusal(lambda: rig.get(b"user.b")) == errno.ENODATA
    rig.close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"user.", errno.EINVAL),
        (b"user", errno.EOPNOTSUPP),
        (b"system.other", errno.EOPNOTSUPP),
        (b"system.richacl", errno.EOPNOTSUPP),
        (b"gnu.translator", errno.EOPNOTSUPP),
        (b"nonsense.a", errno.EOPNOTSUPP),
        (b"user." + b"n" * 300, errno.ERANGE),
    ],
)
def test_names_that_can_not_be(plain: XattrRig, name: bytes, expected: int) -> None:
    assert refusal(lambda: plain.set(name, b"1")) == expected
    assert refusal(lambda: plain.get(name)) == expected
    assert refusal(lambda: plain.remove_xattr(name)) == expected
    plain.close()


def test_no_room(rig: XattrRig) -> None:
    assert refusal(lambda: rig.set(b"user.huge", bytes(5000))) == errno.ENOSPC
    rig.check()
    rig.set(b"user.large", bytes(rig.geometry.block_size - 100))
    assert refusal(lambda: rig.set(b"user.more", bytes(900))) == errno.ENOSPC
    assert refusal(lambda: rig.set(b"user.large", bytes(5000))) == errno.ENOSPC
    rig.close()


def test_a_full_pool(tmp_path: Path) -> None:
    rig = XattrRig(make_image(tmp_path / "pool", "-b", "1024", "-N", "32", size="300K"))
    with pytest.raises(FsError):
        rig.insert_many([b"%d" % i * 40 for i in range(10000)], 1)
    rig.set(b"user.a", b"fits into the slot")
    names = [b"user.%d" % i for i in range(10)]
    others = [rig.make_file(name) for name in names]

    def fill() -> None:
        for other in others:
            with rig.change(other) as (tx, inode):
                xattrs.set(tx, inode, b"user.b", bytes(500))

    assert refusal(fill) == errno.ENOSPC
    assert refusal(lambda: rig.set(b"user.b", bytes(500))) == errno.ENOSPC
    rig.close()


def test_a_rollback(rig: XattrRig) -> None:
    rig.set(b"user.a", b"1" * 50)
    rig.set(b"user.b", bytes(400))

    def fail() -> None:
        with rig.change(rig.target) as (tx, inode):
            xattrs.set(tx, inode, b"user.c", b"3")
            xattrs.remove(tx, inode, b"user.b")
            xattrs.set(tx, inode, b"user.a", bytes(400))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    rig.close()


def test_shared_blocks(rig: XattrRig) -> None:
    rig.set(b"user.a", b"a" * 60)
    rig.set(b"user.b", b"b" * 880)
    other = rig.share()
    shared = rig.file.file_acl
    rig.set(b"user.b", b"c" * 880)
    assert rig.file.file_acl != shared
    sharer = inodes.read(rig.view, other)
    assert sharer.file_acl == shared
    assert xattrs.get(rig.view, sharer, b"user.b") == b"b" * 880
    assert xattr.block_header(rig.view.block(shared), "").h_refcount == 1
    with rig.change(other) as (tx, inode):
        xattrs.drop(tx, inode)
    assert inodes.read(rig.view, other).blocks == 0
    rig.close()


def test_the_last_share(rig: XattrRig) -> None:
    rig.set(b"user.b", b"b" * 900)
    other = rig.share()
    shared = rig.file.file_acl
    with rig.change(rig.target) as (tx, inode):
        xattrs.drop(tx, inode)
    rig.wanted.clear()
    rig.check()
    free = rig.view.superblock().free_blocks_count
    rig.journal.commit()
    assert rig.view.superblock().free_blocks_count == free
    with rig.change(other) as (tx, inode):
        xattrs.remove(tx, inode, b"user.b")
    rig.journal.commit()
    assert rig.view.superblock().free_blocks_count == free + 1
    assert shared
    rig.close()


# Access control lists


def test_acls(rig: XattrRig) -> None:
    wire = acl.to_wire(ENTRIES)
    assert xattrs.get_acl(rig.view, rig.file) is None
    rig.set(ACCESS, wire)
    assert xattrs.get_acl(rig.view, rig.file) == ENTRIES
    assert xattrs.get_acl(rig.view, rig.file, default=True) is None
    rig.check()
    stored = run("debugfs", "-R", f"ea_get -x <{rig.target}> system.posix_acl_access", committed(rig))
    # debugfs converts to this form too, except for ids without meaning.
    assert stored.replace(" ", "").splitlines()[0].endswith("=" + wire.hex().replace("f" * 8, "0" * 8))
    with rig.change(rig.target) as (tx, inode):
        xattrs.set_acl(tx, inode, None)
        xattrs.set_acl(tx, inode, None)
    del rig.wanted[ACCESS]
    assert refusal(lambda: rig.get(ACCESS)) == errno.ENODATA
    rig.close()


def test_acls_of_directories(rig: XattrRig) -> None:
    with rig.change() as (tx, inode):
        xattrs.set_acl(tx, inode, ENTRIES, default=True)
        xattrs.set(tx, inode, ACCESS, acl.to_wire(ENTRIES))
    assert xattrs.get_acl(rig.view, rig.inode, default=True) == ENTRIES
    assert sorted(xattrs.listing(rig.view, rig.inode)) == [ACCESS, DEFAULT]
    inherited = acl.inherit(ENTRIES, 0o100666)
    with rig.change(rig.target) as (tx, inode):
        xattrs.set_inherited(tx, inode, inherited)
    assert xattrs.get_acl(rig.view, rig.file) == inherited.access
    rig.wanted[ACCESS] = acl.to_wire(inherited.access or ())
    with rig.change() as (tx, inode):
        xattrs.set(tx, inode, DEFAULT, acl.to_wire(()))
    assert xattrs.get_acl(rig.view, rig.inode, default=True) is None
    rig.close()


@pytest.mark.parametrize("value", [b"", b"abc", acl.to_wire(ENTRIES[1:]), b"\x01\0\0\0"])
def test_acls_that_can_not_be(plain: XattrRig, value: bytes) -> None:
    assert refusal(lambda: plain.set(ACCESS, value)) in (errno.EINVAL, errno.EOPNOTSUPP)
    plain.close()


# Attributes that other programs wrote


def test_trees_of_mke2fs(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    values = {b"user.one": b"1" * 20, b"user.two": b"2" * 700, b"user.three": b""}
    (source / "file").touch()
    for name, value in values.items():
        os.setxattr(source / "file", name, value)
    path = mke2fs(tmp_path / "pool", "-O", "^has_journal", "-d", str(source), size="8M")
    for name, value in (("user.three", "from debugfs"), ("security.x", "y" * 100)):
        run("debugfs", "-w", "-R", f'ea_set file {name} "{value}"', path)
    values[b"user.three"] = b"from debugfs"
    values[b"security.x"] = b"y" * 100
    fsck(path)
    rig = XattrRig(path)
    root = inodes.read(rig.view, ROOT)
    assert xattrs.listing(rig.view, root) == []
    ino = directories.find(rig.view, root, b"file").ino
    inode = inodes.read(rig.view, ino)
    assert {name: xattrs.get(rig.view, inode, name) for name in xattrs.listing(rig.view, inode)} == values
    with rig.change(ino) as (tx, inode):
        xattrs.set(tx, inode, b"user.two", b"3" * 800)
        xattrs.remove(tx, inode, b"security.x")
    rig.close()
    assert "3" * 800 in run("debugfs", "-R", f"ea_get <{ino}> user.two", path)


# Damage


def entry_of(rig: XattrRig, name: bytes) -> tuple[memoryview, int]:
    """Return the area of the pool that holds an attribute, for changing it directly, and where its entry begins."""
    with rig.change(rig.target) as (tx, inode):
        areas = [inode.buffer[inode.extra_end :]]
        if inode.file_acl:
            areas.append(tx.edit(inode.file_acl, xattrs._sealer(tx.geometry, inode.file_acl)))
        for area in areas:
            at = bytes(area).find(name)
            if at >= 0:
                return area, at - xattr.ENTRY_SIZE
    raise AssertionError(name)


@pytest.mark.parametrize("size", [20, 700], ids=["slot", "block"])
@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [(0, "<B", 250), (2, "<H", 0xFFF0), (2, "<H", 4), (4, "<I", 12), (8, "<I", 0xFFFFFFFF), (8, "<I", 5000)],
    ids=["name_len", "offset beyond", "offset in the entries", "ea_inode", "size", "size beyond"],
)
def test_damaged_entries(plain: XattrRig, offset: int, layout: str, value: int, size: int) -> None:
    plain.set(b"user.name", b"v" * size)
    area, at = entry_of(plain, b"name")
    struct.pack_into(layout, area, at + offset, value)
    plain.remount()
    actions: list[Callable[[], object]] = [
        lambda: plain.get(b"user.name"),
        lambda: xattrs.listing(plain.view, plain.file),
        lambda: xattrs.get_acl(plain.view, plain.file),
        lambda: plain.set(b"user.new", b"1"),
        lambda: plain.remove_xattr(b"user.name"),
    ]
    for action in actions:
        with pytest.raises(Corrupt):
            action()
    plain.pool.close()


@pytest.mark.parametrize(
    ("word", "value"), [(0, 0), (1, 0), (1, 5000), (2, 2)], ids=["magic", "unused", "shares", "blocks"]
)
@pytest.mark.parametrize("checksums", [True, False])
def test_damaged_headers(tmp_path: Path, word: int, value: int, checksums: bool) -> None:
    rig = XattrRig(make_image(tmp_path / "pool", *(() if checksums else ("-O", "^metadata_csum"))))
    rig.set(b"user.name", b"v" * 700)
    with rig.change(rig.target) as (tx, inode):
        tx.edit(inode.file_acl, xattrs._sealer(tx.geometry, inode.file_acl)).cast("I")[word] = value
    rig.remount()
    with pytest.raises(Corrupt):
        rig.get(b"user.name")
    with pytest.raises(Corrupt), rig.change(rig.target) as (tx, inode):
        xattrs.drop(tx, inode)
    rig.pool.close()


def test_a_wrong_checksum(plain: XattrRig) -> None:
    plain.set(b"user.name", b"v" * 700)
    plain.commit_consistent()
    at = (plain.file.file_acl + 1) * plain.geometry.block_size - 1
    plain.pool.write(at, b"w")
    plain.remount()
    with pytest.raises(Corrupt) as caught:
        plain.get(b"user.name")
    assert caught.value.kind == "attribute block checksum"
    plain.pool.close()


def test_an_extra_size_without_meaning(plain: XattrRig) -> None:
    """A slot without extra fields has no attributes, whatever it holds."""
    with plain.change(plain.target) as (_, inode):
        inode.set_extra_isize(0)
        inode.words[32] = xattr.EXT4_XATTR_MAGIC
    assert xattrs.listing(plain.view, plain.file) == []
    plain.set(b"user.a", b"1")
    assert plain.file.file_acl != 0
    plain.pool.close()


# A model

NAMES = st.tuples(st.sampled_from([b"user.", b"trusted.", b"security."]), st.binary(min_size=1, max_size=60)).map(
    lambda pair: pair[0] + pair[1].replace(b"\0", b"0")
)
STEPS = st.lists(st.tuples(st.sampled_from("ssssr"), st.integers(0, 7), st.binary(max_size=600)), max_size=40)


@given(
    names=st.lists(NAMES, min_size=8, max_size=8, unique=True), steps=STEPS, format_=st.sampled_from(sorted(FORMATS))
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_walk(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes], steps: list[tuple[str, int, bytes]], format_: str
) -> None:
    rig = XattrRig(make_image(tmp_path_factory.mktemp("walk") / "pool", *FORMATS[format_], size="4M"))
    for kind, which, value in steps:
        name = names[which]
        try:
            if kind == "s":
                rig.set(name, value)
            elif name in rig.wanted:
                rig.remove_xattr(name)
        except FsError as error:
            assert error.errno == errno.ENOSPC
    rig.check()
    rig.remount()
    rig.close()
