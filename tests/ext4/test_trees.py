"""Directory, index, extent, attribute and orphan blocks of real images: each is read, verified and sealed again.

The images come from mke2fs, debugfs and ``e2fsck -D``; e2fsck also checks the blocks that the tests make.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daxfs.errors import Corrupt
from daxfs.ext4 import acl, dirent, extent, htree, orphan, xattr
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.hash import dirhash, effective_version
from daxfs.ext4.inode import FT_REG_FILE, InodeRecord
from daxfs.ext4.superblock import Superblock

BLOCK = 1024
FILES = 6000


def run(*command: str | Path, stdin: str = "", ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [str(word) for word in command], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in ok, done.stdout + done.stderr
    return done.stdout


class Image:
    """An image that debugfs reads too: the records and block numbers of a path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray(path.read_bytes())
        self.view = memoryview(self.data)
        self.geometry = Geometry.of(Superblock(self.view[1024:2048]))

    def inode(self, name: str) -> tuple[int, InodeRecord]:
        found = run("debugfs", "-R", f"imap {name}", self.path)
        ino, block, offset = re.search(
            r"Inode (\d+) is.*\n.*located at block (\d+), offset (0x[0-9a-f]+)", found
        ).groups()  # type: ignore[union-attr]
        return int(ino), InodeRecord(self.block(int(block)), int(offset, 16), self.geometry)

    def seed(self, name: str) -> int:
        ino, inode = self.inode(name)
        return self.geometry.inode_seed(ino, inode.i_generation)

    def block(self, number: int) -> memoryview:
        return self.view[number * BLOCK : (number + 1) * BLOCK]

    def extents(self, name: str) -> Iterator[extent.Extent]:
        """Return all extents of an inode, after a check of every node."""
        _, inode = self.inode(name)
        seed = self.seed(name)
        levels = [(extent.words(inode.block_area), None)]
        while levels:
            w, depth = levels.pop(0)
            extent.check(w, depth, self.geometry.blocks_count, name)
            if not extent.depth(w):
                yield from extent.leaves(w)
                continue
            for _, node in extent.indexes(w):
                extent.verify_block(self.block(node), seed, f"{name}: block {node}")
                levels.append((extent.words(self.block(node)), extent.depth(w) - 1))

    def directory(self, name: str) -> list[memoryview]:
        blocks = {e.lblk + i: e.pblk + i for e in self.extents(name) for i in range(e.length)}
        return [self.block(blocks[i]) for i in range(len(blocks))]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("trees")
    tree = folder / "tree"
    many = tree / "many"
    many.mkdir(parents=True)
    for i in range(FILES):
        (many / f"file-{i:05d}-{'x' * (i % 40)}").touch()
    few = tree / "few"
    few.mkdir()
    for i in range(8):
        (few / f"n{i}").touch()
    with (tree / "sparse").open("wb") as file:
        for i in range(500):
            file.seek(i * 8192)
            file.write(b"data" * 1024)
    path = folder / "pool.img"
    options = ["-b", str(BLOCK), "-I", "256", "-N", "8000", "-O", "orphan_file,metadata_csum,64bit", "-J", "size=1"]
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, "-d", tree, path, "32M")
    (folder / "long").write_bytes(bytes(range(1, 200)))
    access = acl.to_wire((acl.Entry(1, 6), acl.Entry(2, 4, 1000), acl.Entry(4, 4), acl.Entry(16, 6), acl.Entry(32, 0)))
    (folder / "acl").write_bytes(access)
    commands = [
        "ea_set /sparse user.b first",
        "ea_set /sparse user.a 12345",
        "ea_set /sparse security.long -f " + str(folder / "long"),
        "ea_set /sparse user.very_long_name_of_an_attribute -f " + str(folder / "long"),
        "ea_set /sparse user.\xe9t\xe9 signed?",
        "ea_set /few/n0 system.posix_acl_access -f " + str(folder / "acl"),
    ]
    run("debugfs", "-w", "-f", "-", path, stdin="\n".join(commands))
    run("e2fsck", "-fyD", path, ok=(0, 1))
    return Image(path)


def test_extent_trees_are_read_and_sealed_as_they_are(image: Image) -> None:
    _, inode = image.inode("/sparse")
    root = extent.words(inode.block_area)
    assert extent.depth(root) >= 1
    listed = run("debugfs", "-R", "ex -l /sparse", image.path)
    lines = re.findall(r"^\s*\d+/\s*\d+\s+\d+/\s*\d+\s+(\d+) -\s+(\d+)\s+(\d+) -", listed, re.MULTILINE)
    expected = [(int(first), int(pblk), int(last) - int(first) + 1) for first, last, pblk in lines]
    found = list(image.extents("/sparse"))
    assert [(e.lblk, e.pblk, e.length) for e in found] == expected
    assert len(found) >= 500
    seed = image.seed("/sparse")
    _, node = extent.index(root, 0)
    block = bytearray(image.block(node))
    extent.seal_block(block, seed)
    assert block == image.block(node)
    block[20] ^= 1
    with pytest.raises(Corrupt, match="extent block checksum"):
        extent.verify_block(block, seed, "node")


def test_linear_directories_are_walked(image: Image) -> None:
    (block,) = image.directory("/few")
    seed = image.seed("/few")
    dirent.verify_block(block, seed, "few")
    limit = BLOCK - dirent.TAIL_SIZE
    names = {
        bytes(block[at + 8 : at + 8 + length]): (ino, kind)
        for at, ino, _, length, kind in dirent.walk(block, limit)
        if ino
    }
    assert set(names) == {b".", b"..", *(b"n%d" % i for i in range(8))}
    assert names[b"n3"] == (image.inode("/few/n3")[0], FT_REG_FILE)
    for name in names:
        at = dirent.find(block, limit, name)
        assert int.from_bytes(block[at : at + 4], "little") == names[name][0]
    assert dirent.find(block, limit, b"n9") == -1
    copy = bytearray(block)
    dirent.seal_block(copy, seed)
    assert copy == block
    copy[40] ^= 1
    with pytest.raises(Corrupt, match="directory block checksum"):
        dirent.verify_block(copy, seed, "few")


def _leaves(
    image: Image, blocks: list[memoryview], seed: int, block: int, base: int, levels: int
) -> Iterator[tuple[int, int]]:
    """Return (lowest hash, logical block) of all leaves below an index block, after a check of every node."""
    w = htree.words(blocks[block])
    htree.verify_block(blocks[block], seed, f"index block {block}")
    htree.check(w, base, True, f"index block {block}")
    for i in range(htree.count(w, base)):
        low, child = htree.entry(w, base, i)
        if levels:
            first = True
            for inner, leaf in _leaves(image, blocks, seed, child, htree.NODE_BASE, levels - 1):
                yield (low if first else inner), leaf
                first = False
        else:
            yield low, child


def test_indexed_directories_are_read(image: Image) -> None:
    blocks = image.directory("/many")
    seed = image.seed("/many")
    root = htree.words(blocks[0])
    assert htree.is_root(root)
    info = htree.root_info(root, "/many")
    assert info.indirect_levels == 1
    geometry = image.geometry
    version = effective_version(info.hash_version, geometry.hash_unsigned)
    leaves = list(_leaves(image, blocks, seed, 0, htree.ROOT_BASE, info.indirect_levels))
    seen = 0
    for (low, leaf), (high, _) in zip(leaves, [*leaves[1:], (1 << 32, 0)], strict=True):
        dirent.verify_block(blocks[leaf], seed, f"leaf {leaf}")
        names = [
            bytes(blocks[leaf][at + 8 : at + 8 + length])
            for at, ino, _, length, _ in dirent.walk(blocks[leaf], BLOCK - dirent.TAIL_SIZE)
            if ino
        ]
        seen += len(names)
        majors = [dirhash(name, version, geometry.hash_seed)[0] for name in names]
        assert low & ~1 <= min(majors)
        assert max(majors) <= high
    assert seen == FILES
    # Find the name as the kernel does.
    name = b"file-00777-" + b"x" * (777 % 40)
    major = dirhash(name, version, geometry.hash_seed)[0]
    node = htree.entry(root, htree.ROOT_BASE, htree.find(root, htree.ROOT_BASE, major))[1]
    w = htree.words(blocks[node])
    leaf = htree.entry(w, htree.NODE_BASE, htree.find(w, htree.NODE_BASE, major))[1]
    assert dirent.find(blocks[leaf], BLOCK - dirent.TAIL_SIZE, name) >= 0


def test_index_blocks_are_sealed_as_they_are(image: Image) -> None:
    blocks = image.directory("/many")
    seed = image.seed("/many")
    node = htree.entry(htree.words(blocks[0]), htree.ROOT_BASE, 1)[1]
    for block in (blocks[0], blocks[node]):
        copy = bytearray(block)
        htree.seal_block(copy, seed)
        assert copy == block
        copy[44] ^= 1
        with pytest.raises(Corrupt, match="directory index checksum"):
            htree.verify_block(copy, seed, "index")
    with pytest.raises(Corrupt, match="neither root nor node"):
        htree.verify_block(image.directory("/few")[0], seed, "leaf")


def _area(inode: InodeRecord) -> memoryview:
    return inode.buffer[128 + inode.i_extra_isize :]


def test_attributes_are_read_and_built_as_e2fsprogs_does(image: Image) -> None:
    _, inode = image.inode("/sparse")
    number = inode.file_acl
    block = image.block(number)
    xattr.verify_block(block, image.geometry.csum_seed, number, "block")
    long = bytes(range(1, 200))
    stored = xattr.parse_ibody(_area(inode), "inode") + xattr.parse_block(block, "block")
    found = {xattr.full_name(prefix, name): value for prefix, name, value in stored}
    assert found == {
        b"user.b": b"first",
        b"user.a": b"12345",
        b"security.long": long,
        b"user.very_long_name_of_an_attribute": long,
        "user.\xe9t\xe9".encode(): b"signed?",
    }
    assert xattr.parse_ibody(_area(inode), "inode")
    attributes = xattr.parse_block(block, "block")
    copy = bytearray(xattr.build_block(attributes, BLOCK))
    xattr.seal_block(copy, image.geometry.csum_seed, number)
    xattr.verify_block(copy, image.geometry.csum_seed, number, "copy")
    assert sorted(xattr.parse_block(copy, "copy")) == sorted(attributes)
    stored_hashes = {bytes(block[at + 16 : at + 16 + block[at]]): _hash(block, at) for at in _entries(block)}
    for _, name, value in attributes:
        assert stored_hashes[name] == xattr.entry_hash(name, value)
    copy[100] ^= 1
    with pytest.raises(Corrupt, match="attribute block checksum"):
        xattr.verify_block(copy, image.geometry.csum_seed, number, "copy")


def _entries(block: memoryview) -> Iterator[int]:
    at = 32
    while block[at]:
        yield at
        at += xattr.entry_size(bytes(block[at]))


def _hash(block: memoryview, at: int) -> int:
    value: int = struct.unpack_from("<I", block, at + 12)[0]
    return value


def test_attributes_made_here_please_e2fsck(image: Image, tmp_path: Path) -> None:
    copy = tmp_path / "pool.img"
    copy.write_bytes(image.path.read_bytes())
    mine = Image(copy)
    ino, inode = mine.inode("/sparse")
    number = inode.file_acl
    in_inode = [xattr.Attribute(1, b"empty", b""), xattr.Attribute(1, b"z", b"abcde")]
    in_block = [
        xattr.Attribute(6, b"cap", os.urandom(33)),
        xattr.Attribute(1, b"nothing", b""),
        xattr.Attribute(1, "\xfcmlaut".encode(), os.urandom(64)),
        xattr.Attribute(4, b"overlay", os.urandom(300)),
    ]
    _area(inode)[:] = xattr.build_ibody(in_inode, len(_area(inode)))
    inode.seal(ino, mine.geometry)
    block = mine.block(number)
    block[:] = xattr.build_block(in_block, BLOCK)
    xattr.seal_block(block, mine.geometry.csum_seed, number)
    copy.write_bytes(mine.data)
    checked = subprocess.run(["e2fsck", "-fn", str(copy)], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stdout
    listed = run("debugfs", "-R", "ea_list /sparse", copy)
    for prefix, name, value in in_inode + in_block:
        if name.isascii():
            assert f"{xattr.full_name(prefix, name).decode()} ({len(value)})" in listed  # type: ignore[union-attr]


def test_access_control_lists_are_read_from_the_disk(image: Image) -> None:
    _, inode = image.inode("/few/n0")
    ((prefix, name, value),) = xattr.parse_ibody(_area(inode), "inode")
    assert (prefix, name) == (xattr.INDEX_POSIX_ACL_ACCESS, b"")
    entries = acl.from_disk(value, "inode")
    assert [tuple(entry)[:2] for entry in entries] == [(1, 6), (2, 4), (4, 4), (16, 6), (32, 0)]
    assert entries[1].id == 1000
    assert acl.to_disk(entries) == value


def test_orphan_blocks_are_verified_and_sealed_as_they_are(image: Image) -> None:
    superblock = Superblock(image.view[1024:2048])
    name = f"<{superblock.s_orphan_file_inum}>"
    seed = image.seed(name)
    numbers = [e.pblk + i for e in image.extents(name) for i in range(e.length)]
    assert len(numbers) >= 32
    for number in numbers:
        orphan.verify_block(image.block(number), seed, number, "orphan file")
    number = numbers[3]
    block = bytearray(BLOCK)
    orphan.initialize(block)
    orphan.seal_block(block, seed, number)
    assert block == image.block(number)
    orphan.words(block)[orphan.inodes_per_block(BLOCK) - 1] = 12
    with pytest.raises(Corrupt, match="orphan file block checksum"):
        orphan.verify_block(block, seed, number, "orphan file")
    orphan.seal_block(block, seed, number)
    orphan.verify_block(block, seed, number, "orphan file")
    with pytest.raises(Corrupt, match="orphan file block checksum"):
        orphan.verify_block(block, seed, number + 1, "orphan file")
    with pytest.raises(Corrupt, match="magic 0x0"):
        orphan.verify_block(bytes(BLOCK), seed, number, "orphan file")
