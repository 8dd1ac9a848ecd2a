"""Blocks made from nothing: values are read back, damage is named, and no hostile block causes an endless loop."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import dirent, extent, htree, limits, orphan, xattr
from daxfs.ext4.extent import Extent
from daxfs.ext4.inode import FT_REG_FILE

BLOCK = 1024
SEED = 0x12345678

# Directory blocks

NAMES = st.lists(st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name), unique=True, max_size=12)


def directory_block(names: list[bytes], limit: int) -> tuple[bytearray, list[bytes]]:
    """Make a block of as many of the names as fit; the last entry extends to the limit."""
    block = bytearray(BLOCK)
    at, kept, last = 0, [], 0
    for i, name in enumerate(names):
        size = dirent.space_needed(len(name))
        if at + size > limit:
            break
        entry = dirent.pack_entry(100 + i, size, name, FT_REG_FILE)
        block[at : at + len(entry)] = entry
        kept.append(name)
        last, at = at, at + size
    if kept:
        block[last + 4 : last + 6] = (limit - last).to_bytes(2, "little")
    else:
        block[0:8] = dirent.pack_entry(0, limit, b"", 0)
    return block, kept


@settings(max_examples=80, deadline=None)
@given(names=NAMES, tail=st.booleans())
def test_directory_entries_come_back(names: list[bytes], tail: bool) -> None:
    limit = BLOCK - dirent.TAIL_SIZE * tail
    block, kept = directory_block(names, limit)
    found = [bytes(block[at + 8 : at + 8 + n]) for at, ino, _, n, _ in dirent.walk(block, limit) if ino]
    assert found == kept
    for i, name in enumerate(kept):
        at = dirent.find(block, limit, name)
        assert int.from_bytes(block[at : at + 4], "little") == 100 + i
    assert dirent.find(block, limit, b"/") == -1


def test_names_in_slack_space_or_inside_others_are_not_found() -> None:
    block, _ = directory_block([b"one", b"someone", b"two"], BLOCK)
    block[4:6] = (12 + 16).to_bytes(2, "little")  # "one" swallows "someone"
    assert dirent.find(block, BLOCK, b"someone") == -1
    assert dirent.find(block, BLOCK, b"one") == 0
    assert dirent.find(block, BLOCK, b"two") == 28
    block[0:4] = bytes(4)  # "one" is removed, but its bytes stay
    assert dirent.find(block, BLOCK, b"one") == -1
    assert dirent.find(block, BLOCK, b"two") == 28


@settings(max_examples=80, deadline=None)
@given(
    names=st.lists(st.text("ab", min_size=1, max_size=9).map(str.encode), unique=True, min_size=1, max_size=12),
    removed=st.sets(st.integers(0, 11)),
    wanted=st.text("ab", min_size=1, max_size=5).map(str.encode),
)
def test_the_short_cut_finds_what_a_walk_does(names: list[bytes], removed: set[int], wanted: bytes) -> None:
    block, _ = directory_block(names, BLOCK)
    for i, (at, *_) in enumerate(list(dirent.walk(block, BLOCK))):
        if i in removed:
            block[at : at + 4] = bytes(4)
    walked = [at for at, ino, _, n, _ in dirent.walk(block, BLOCK) if ino and block[at + 8 : at + 8 + n] == wanted]
    assert dirent.find(block, BLOCK, wanted) == (walked[0] if walked else -1)


@pytest.mark.parametrize("rec_len", [0, 8, 13, 1024, 65535])
def test_a_bad_rec_len_is_named(rec_len: int) -> None:
    block, _ = directory_block([b"first", b"second"], BLOCK)
    block[16 + 4 : 16 + 6] = rec_len.to_bytes(2, "little")
    with pytest.raises(Corrupt, match=f"rec_len {rec_len} at 16"):
        list(dirent.walk(block, BLOCK))
    with pytest.raises(Corrupt, match=f"rec_len {rec_len} at 16"):
        dirent.find(block, BLOCK, b"second")


def test_an_entry_shorter_than_its_name_is_corrupt() -> None:
    block, _ = directory_block([b"a" * 20, b"b"], BLOCK)
    block[4:6] = (24).to_bytes(2, "little")
    with pytest.raises(Corrupt, match="name of 20 bytes"):
        list(dirent.walk(block, BLOCK))


def test_four_bytes_left_over_are_corrupt() -> None:
    block, _ = directory_block([b"a"], BLOCK)
    block[4:6] = (BLOCK - 4).to_bytes(2, "little")
    with pytest.raises(Corrupt, match="no room"):
        list(dirent.walk(block, BLOCK))


@settings(max_examples=80, deadline=None)
@given(noise=st.binary(min_size=BLOCK, max_size=BLOCK), name=st.binary(min_size=1, max_size=2))
def test_noise_in_a_directory_block_is_corrupt_or_entries(noise: bytes, name: bytes) -> None:
    with suppress(Corrupt):
        assert len(list(dirent.walk(noise, BLOCK))) <= BLOCK // 12
    with suppress(Corrupt):
        dirent.find(noise, BLOCK, name)


def test_the_tail_of_a_directory_block() -> None:
    block, _ = directory_block([b"name"], BLOCK - dirent.TAIL_SIZE)
    assert not dirent.has_tail(block)
    with pytest.raises(Corrupt, match="without checksum tail: inode 2"):
        dirent.verify_block(block, SEED, "inode 2")
    dirent.put_tail(block)
    dirent.seal_block(block, SEED)
    dirent.verify_block(block, SEED, "inode 2")
    with pytest.raises(Corrupt, match="directory block checksum: inode 2"):
        dirent.verify_block(block, SEED + 1, "inode 2")


# Index blocks


@pytest.mark.parametrize("csum", [False, True])
def test_pairs_of_an_index_stay_sorted_as_they_are_put_in(csum: bool) -> None:
    block = bytearray(BLOCK)
    w = htree.words(block)
    htree.initialize_node(w, csum)
    base = htree.NODE_BASE
    assert htree.limit(w, base) == htree.node_limit(BLOCK, csum) == (126 if csum else 127)
    htree.set_count(w, base, 1)
    htree.put_block(w, base, 0, 7)
    hashes = [(i * 2654435761) & 0xFFFFFFFE for i in range(1, htree.limit(w, base))]
    for i, major in enumerate(hashes):
        htree.insert(w, base, htree.find(w, base, major) + 1, major, 1000 + i)
        htree.check(w, base, csum, "node")
    assert htree.count(w, base) == htree.limit(w, base)
    for i, major in enumerate(hashes):
        assert htree.entry(w, base, htree.find(w, base, major))[1] == 1000 + i
    assert htree.entry(w, base, 0) == (0, 7)
    assert htree.find(w, base, 0) == 0
    if csum:
        htree.seal_block(block, SEED)
        htree.verify_block(block, SEED, "node")


def index_root(csum: bool = True) -> bytearray:
    block = bytearray(BLOCK)
    block[0:9] = dirent.pack_entry(2, 12, b".", 2)
    block[12:22] = dirent.pack_entry(2, BLOCK - 12, b"..", 2)
    htree.initialize_root(htree.words(block), 1, csum, 5)
    return block


def test_a_new_root_is_a_valid_one() -> None:
    block = index_root()
    w = htree.words(block)
    assert htree.root_info(w, "root") == htree.RootInfo(0, 1, 8, 0, 0)
    htree.check(w, htree.ROOT_BASE, True, "root")
    assert htree.entry(w, htree.ROOT_BASE, htree.find(w, htree.ROOT_BASE, 0xFFFFFFFE)) == (0, 5)
    htree.seal_block(block, SEED)
    htree.verify_block(block, SEED, "root")
    assert [length for *_, length, _ in dirent.walk(block, BLOCK)] == [1, 2]


@pytest.mark.parametrize(
    ("offset", "value"),
    [(4, 16), (16, 12), (24, 1), (29, 7), (30, 2), (31, 1)],
    ids=["dot", "dotdot", "reserved", "length", "levels", "flags"],
)
def test_a_bad_root_is_named(offset: int, value: int) -> None:
    block = index_root()
    block[offset] = value
    with pytest.raises(Corrupt, match="directory index root: root"):
        htree.root_info(htree.words(block), "root")


def test_three_levels_need_large_dir() -> None:
    block = index_root()
    block[30] = 2
    assert htree.root_info(htree.words(block), "root", large_dir=True).indirect_levels == 2


@pytest.mark.parametrize(("limit", "count"), [(123, 0), (122, 1), (124, 1), (123, 124), (0, 1), (65535, 65535)])
def test_a_bad_count_or_limit_is_named(limit: int, count: int) -> None:
    block = index_root()
    w = htree.words(block)
    htree.check(w, htree.ROOT_BASE, True, "root")
    w[htree.ROOT_BASE] = limit | count << 16
    with pytest.raises(Corrupt, match="directory index: root"):
        htree.check(w, htree.ROOT_BASE, True, "root")
    with pytest.raises(Corrupt, match="directory index"):
        htree.verify_block(block, SEED, "root")


def test_hashes_out_of_order_are_named() -> None:
    w = htree.words(index_root())
    htree.insert(w, htree.ROOT_BASE, 1, 8, 6)
    htree.insert(w, htree.ROOT_BASE, 2, 6, 7)
    with pytest.raises(Corrupt, match="out of order"):
        htree.check(w, htree.ROOT_BASE, True, "root")
    w[htree.ROOT_BASE + 4] = 8
    htree.check(w, htree.ROOT_BASE, True, "root")


# Extent blocks


@st.composite
def leaf_extents(draw: st.DrawFn) -> list[Extent]:
    result, free = [], 0
    for _ in range(draw(st.integers(0, 84))):
        lblk = free + draw(st.integers(0, 1000))
        unwritten = draw(st.booleans())
        length = draw(st.integers(1, extent.EXT_INIT_MAX_LEN - unwritten))
        pblk = draw(st.integers(1, extent.MAX_PBLK - length))
        result.append(Extent(lblk, pblk, length, unwritten))
        free = lblk + length
    return result


@settings(max_examples=30, deadline=None)
@given(leaf_extents())
def test_extents_come_back(extents: list[Extent]) -> None:
    block = bytearray(BLOCK)
    w = extent.words(block)
    extent.initialize(w, 0, generation=9)
    assert extent.maximum(w) == 84
    for e in reversed(extents):
        extent.open_gap(w, 0)
        extent.put_leaf(w, 0, *e)
    extent.check(w, 0, 1 << 48, "leaf")
    assert extent.leaves(w) == extents
    assert extent.header(w) == extent.Header(0xF30A, len(extents), 84, 0, 9)
    for i, e in enumerate(extents):
        assert extent.leaf(w, i) == e
        assert extent.find(w, e.lblk) == extent.find(w, e.lblk + e.length - 1) == i
    extent.seal_block(block, SEED)
    extent.verify_block(block, SEED, "leaf")
    while extents:
        i = len(extents) // 2
        extent.close_gap(w, i)
        del extents[i]
        assert extent.leaves(w) == extents


def test_index_entries_come_back() -> None:
    w = extent.words(bytearray(60))
    extent.initialize(w, 1)
    extent.set_entries(w, 4)
    pairs = [(0, 5), (10, (1 << 48) - 2), (20, 1 << 32), (0xFFFFFFF0, 9)]
    for i, pair in enumerate(pairs):
        extent.put_index(w, i, *pair)
    extent.check(w, None, 1 << 48, "root")
    assert extent.indexes(w) == pairs
    assert [extent.index(w, i) for i in range(4)] == pairs
    assert [extent.find(w, lblk) for lblk in (0, 9, 10, 25, 0xFFFFFFFF)] == [0, 0, 1, 2, 3]
    extent.set_depth(w, 3)
    assert extent.depth(w) == 3


def written(w: memoryview, *extents: tuple[int, int, int]) -> None:
    for i, (lblk, pblk, length) in enumerate(extents):
        extent.put_leaf(w, i, lblk, pblk, length, False)
    extent.set_entries(w, len(extents))


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("magic", lambda w: w.__setitem__(0, 0)),
        ("depth 6", lambda w: extent.set_depth(w, 6)),
        ("of 0", lambda w: w.__setitem__(1, 0)),
        ("of 5", lambda w: w.__setitem__(1, 5)),
        ("5 entries of 4", lambda w: extent.set_entries(w, 5)),
        ("blocks at 5, 8 was free", lambda w: written(w, (0, 10, 8), (5, 30, 1))),
        ("0 blocks at 0", lambda w: written(w, (0, 10, 0))),
        ("2 blocks on 999", lambda w: written(w, (0, 999, 2))),
        ("1 blocks on 0", lambda w: written(w, (0, 0, 1))),
        ("32768 blocks at 4294967295", lambda w: written(w, (0xFFFFFFFF, 1, 32768))),
        ("no entries", lambda w: extent.set_depth(w, 1)),
    ],
)
def test_a_bad_extent_node_is_named(message: str, damage: Callable[[memoryview], None]) -> None:
    w = extent.words(bytearray(60))
    extent.initialize(w, 0)
    damage(w)
    with pytest.raises(Corrupt, match=message):
        extent.check(w, None, 1000, "root of inode 12")


@pytest.mark.parametrize("pairs", [[(5, 10), (5, 11)], [(5, 10), (4, 11)], [(0, 0)], [(0, 1000)]])
def test_a_bad_extent_index_is_named(pairs: list[tuple[int, int]]) -> None:
    w = extent.words(bytearray(60))
    extent.initialize(w, 1)
    extent.set_entries(w, len(pairs))
    for i, pair in enumerate(pairs):
        extent.put_index(w, i, *pair)
    with pytest.raises(Corrupt, match="extent index: root"):
        extent.check(w, 1, 1000, "root")
    with pytest.raises(Corrupt, match="depth 1, expected 2"):
        extent.check(w, 2, 1000, "root")


def test_an_extent_block_without_room_for_its_checksum_is_corrupt() -> None:
    block = bytearray(BLOCK)
    w = extent.words(block)
    extent.initialize(w, 0)
    w[1] = 85
    with pytest.raises(Corrupt, match="no room"):
        extent.verify_block(block, SEED, "node")


@settings(max_examples=80, deadline=None)
@given(noise=st.binary(min_size=BLOCK, max_size=BLOCK), known=st.booleans())
def test_noise_in_tree_blocks_is_corrupt(noise: bytes, known: bool) -> None:
    block = bytearray(noise)
    if known:
        block[0:2] = b"\x0a\xf3"
        block[4:8] = b"\x54\0\0\0"
    w = extent.words(block)
    with suppress(Corrupt):
        extent.check(w, None, 1 << 32, "noise")
        extent.leaves(w)
    for verify in (extent.verify_block, dirent.verify_block, htree.verify_block):
        with pytest.raises(Corrupt):
            verify(noise, SEED, "noise")


# Attributes

ATTRIBUTES = st.lists(
    st.builds(
        xattr.Attribute,
        st.sampled_from([1, 4, 6]),
        st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name),
        st.binary(max_size=70),
    ),
    max_size=8,
    unique_by=lambda attribute: attribute[:2],
)


@settings(max_examples=80, deadline=None)
@given(ATTRIBUTES)
def test_attributes_come_back(attributes: list[xattr.Attribute]) -> None:
    block = xattr.build_block(attributes, BLOCK, refcount=3)
    assert len(block) == BLOCK
    found = xattr.parse_block(block, "block")
    assert found == sorted(attributes, key=lambda a: (a.prefix, len(a.name), a.name))
    assert xattr.block_header(block, "block").h_refcount == 3
    size = xattr.IBODY_HEADER_SIZE + xattr.space_needed(attributes)
    area = xattr.build_ibody(attributes, size)
    assert len(area) == size
    assert xattr.parse_ibody(area, "inode") == attributes
    if attributes:
        with pytest.raises(FsError) as caught:
            xattr.build_ibody(attributes, size - 4)
        assert caught.value.errno == errno.ENOSPC


def _slow_hash(name: bytes, value: bytes, signed: bool) -> int:
    result = 0
    for char in name:
        result = (result << 5 | result >> 27) & 0xFFFFFFFF
        result ^= (char - 256 if signed and char > 127 else char) & 0xFFFFFFFF
    padded = value + bytes(-len(value) % 4)
    for at in range(0, len(padded), 4):
        result = (result << 16 | result >> 16) & 0xFFFFFFFF ^ int.from_bytes(padded[at : at + 4], "little")
    return result


@settings(max_examples=80, deadline=None)
@given(name=st.binary(min_size=1, max_size=40), value=st.binary(max_size=50), signed=st.booleans())
def test_attribute_hashes_are_the_word_by_word_ones(name: bytes, value: bytes, signed: bool) -> None:
    assert xattr.entry_hash(name, value, signed=signed) == _slow_hash(name, value, signed)


def test_a_block_with_an_entry_without_hash_is_not_shared() -> None:
    assert xattr.block_hash([1, 0, 3]) == 0
    assert xattr.block_hash([0x10002, 3]) == 0x20001 ^ 3
    assert xattr.block_hash([]) == 0


def test_references_are_counted_in_the_header() -> None:
    block = bytearray(xattr.build_block([xattr.Attribute(1, b"a", b"b")], BLOCK))
    xattr.set_refcount(block, 1024)
    assert xattr.block_header(block, "block").h_refcount == 1024
    for count in (0, 1025):
        xattr.set_refcount(block, count)
        with pytest.raises(Corrupt, match="references"):
            xattr.parse_block(block, "block")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\1", "magic"),
        (8, b"\2", "2 blocks"),
        (32, b"\xff", "bad name"),
        (34, b"\x34\0", "value of"),  # the value would overlap the terminator
        (34, b"\xfc\3", "value of"),  # the value would end past the block
        (36, b"\x0c", "value in inode 12"),
        (43, b"\xff", "value of"),
        (49, b"\0", "bad name"),
    ],
)
def test_damaged_attributes_are_named(offset: int, value: bytes, message: str) -> None:
    block = bytearray(xattr.build_block([xattr.Attribute(1, b"name", b"value")], BLOCK))
    block[offset : offset + len(value)] = value
    with pytest.raises(Corrupt, match=message):
        xattr.parse_block(block, "block")


@settings(max_examples=120, deadline=None)
@given(noise=st.binary(min_size=0, max_size=200))
def test_noise_in_attributes_is_corrupt_or_attributes(noise: bytes) -> None:
    with suppress(Corrupt):
        xattr.parse_ibody(b"\0\0\x02\xea" + noise, "inode")
    with suppress(Corrupt):
        xattr.parse_block(b"\0\0\x02\xea\1\0\0\0\1\0\0\0" + bytes(20) + noise, "block")


def test_no_magic_no_attributes() -> None:
    assert xattr.parse_ibody(bytes(96), "inode") == []
    assert xattr.parse_ibody(b"", "inode") == []
    assert xattr.parse_ibody(xattr.build_ibody([], 96), "inode") == []
    assert xattr.ibody_room(0) == 0


@pytest.mark.parametrize(
    ("full", "prefix", "name"),
    [
        (b"user.comment", 1, b"comment"),
        (b"user.a.b", 1, b"a.b"),
        (b"trusted.x", 4, b"x"),
        (b"security.capability", 6, b"capability"),
        (b"system.posix_acl_access", 2, b""),
        (b"system.posix_acl_default", 3, b""),
        (b"gnu.translator", 10, b"translator"),
    ],
)
def test_names_are_split_and_joined(full: bytes, prefix: int, name: bytes) -> None:
    assert xattr.split_name(full) == (prefix, name)
    assert xattr.full_name(prefix, name) == full


@pytest.mark.parametrize(
    ("full", "number"),
    [
        (b"other.x", errno.EOPNOTSUPP),
        (b"system.richacl", errno.EOPNOTSUPP),
        (b"system.data", errno.EOPNOTSUPP),
        (b"user", errno.EOPNOTSUPP),
        (b"user.", errno.EINVAL),
        (b"user." + b"n" * 251, errno.ERANGE),
    ],
)
def test_invalid_names(full: bytes, number: int) -> None:
    with pytest.raises(FsError) as caught:
        xattr.split_name(full)
    assert caught.value.errno == number
    assert xattr.full_name(9, b"c") is None


def test_names_that_only_others_may_have_set_are_shown() -> None:
    assert xattr.full_name(8, b"") == b"system.richacl"
    assert xattr.full_name(7, b"data") == b"system.data"


# Sizes


def test_limits_follow_the_block() -> None:
    assert limits.symlink_max(1024) == 1023
    assert limits.symlink_max(4096) == limits.symlink_max(65536) == 4095
    assert orphan.inodes_per_block(4096) == 1022
