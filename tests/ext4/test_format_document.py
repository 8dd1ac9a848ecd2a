"""docs/FORMAT.md agrees with the code: every table of fields, features, flags, limits and journal sizes.

Structures that are classes are compared field by field. For the others the code's own functions make a sample
with a different value in each field, and the test reads it at the offsets that the document gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import IntFlag
from pathlib import Path
from typing import Literal

import log_blocks
import pytest

from daxfs.errors import CorruptKind
from daxfs.ext4 import (
    acl,
    dirent,
    extent,
    fast_commit,
    features,
    group,
    htree,
    inode,
    jbd2,
    limits,
    orphan,
    superblock,
    xattr,
)
from daxfs.ext4.record import Record
from daxfs.tools import mkfs
from daxfs.tools.sizes import parse_size

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = dict(
    re.findall(r"^#{2,3} (.+?)\n(.*?)(?=^#{2,3} |\Z)", (ROOT / "docs/FORMAT.md").read_text(), re.MULTILINE | re.DOTALL)
)
Fields = dict[str, tuple[int, int]]
Order = Literal["little", "big"]
Sample = tuple[bytes, Order, Mapping[str, int | bytes]]

RECORDS: dict[str, type[Record]] = {
    "`superblock.Superblock`": superblock.Superblock,
    "`group.GroupDescriptor`": group.GroupDescriptor,
    "`group.GroupDescriptor64`": group.GroupDescriptor64,
    "`inode.InodeRecord`": inode.InodeRecord,
}


def rows(section: str) -> list[list[str]]:
    """Return the cells of all table rows of a section, without headings."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not row[0].startswith(("offset", "bit", "flag", "name", "index"))]


def fields(section: str) -> Fields:
    """Return name -> (offset, size), from the table and from the lists below it."""
    found = {row[2]: (int(row[0], 16), int(row[1])) for row in rows(section) if row[1].isdecimal()}
    for offset, size, name in re.findall(r"`0x([0-9A-F]+)/(\d+)\s+(\w+)`", SECTIONS[section]):
        assert name not in found
        found[name] = int(offset, 16), int(size)
    return found


@pytest.mark.parametrize("section", RECORDS)
def test_records_have_these_fields(section: str) -> None:
    kind = RECORDS[section]
    inherited = {info.name for base in kind.__bases__ for info in getattr(base, "FIELDS", ())}
    expected = {info.name: (info.offset, info.size) for info in kind.FIELDS if info.name not in inherited}
    assert fields(section) == expected


def extent_samples() -> Iterator[tuple[str, Sample]]:
    w = extent.words(bytearray(1024))
    extent.initialize(w, 3, 0x01020304)
    extent.set_entries(w, 2)
    header = {"eh_magic": 0xF30A, "eh_entries": 2, "eh_max": 84, "eh_depth": 3, "eh_generation": 0x01020304}
    extent.put_leaf(w, 0, 0x11121314, 0x212223242526, 0x77, True)
    extent.put_index(w, 1, 0x11121314, 0x212223242526)
    data = w.tobytes()
    leaf = {"ee_block": 0x11121314, "ee_len": 0x8077, "ee_start_hi": 0x2122, "ee_start_lo": 0x23242526}
    index = {"ei_block": 0x11121314, "ei_leaf_lo": 0x23242526, "ei_leaf_hi": 0x2122, "ei_unused": 0}
    yield "`extent.header`", (data, "little", header)
    yield "`extent.leaf`", (data[12:], "little", leaf)
    yield "`extent.index`", (data[24:], "little", index)


def directory_samples() -> Iterator[tuple[str, Sample]]:
    entry = {"inode": 0x01020304, "rec_len": 0x0506, "name_len": 4, "file_type": 7}
    yield "`dirent.entry`", (dirent.pack_entry(0x01020304, 0x0506, b"name", 7), "little", entry)
    block = bytearray(1024)
    dirent.put_tail(block)
    dirent.seal_block(block, 5)
    checksum = int.from_bytes(block[-4:], "little")
    assert checksum
    tail = {"det_reserved_zero1": 0, "det_rec_len": 12, "det_reserved_zero2": 0, "det_reserved_ft": 0xDE}
    yield "`dirent.tail`", (bytes(block[-12:]), "little", {**tail, "det_checksum": checksum})
    w = htree.words(bytearray(1024))
    htree.initialize_root(w, 4, True, 0x111213)
    htree.put_root_info(w, 4, 1)
    htree.insert(w, htree.ROOT_BASE, 1, 0x21222324, 0x313233)
    info = {"reserved_zero": 0, "hash_version": 4, "info_length": 8, "indirect_levels": 1, "unused_flags": 0}
    pairs = {"limit": 123, "count": 2, "block": 0x111213, "hash": 0x21222324, "block_1": 0x313233}
    yield "`htree.info`", (w.tobytes(), "little", {**info, **pairs})


def attribute_samples() -> Iterator[tuple[str, Sample]]:
    attribute = xattr.Attribute(xattr.INDEX_TRUSTED, b"name", b"value")
    block = bytearray(xattr.build_block([attribute], 1024, refcount=3))
    xattr.seal_block(block, 5, 6)
    digest = xattr.entry_hash(b"name", b"value")
    header = {"h_magic": 0xEA020000, "h_refcount": 3, "h_blocks": 1, "h_hash": xattr.block_hash([digest])}
    checksum = xattr.block_header(block, "sample").h_checksum
    assert checksum
    yield "`xattr.block`", (bytes(block), "little", {**header, "h_checksum": checksum})
    entry = {"e_name_len": 4, "e_name_index": 4, "e_value_offs": 1016, "e_value_inum": 0, "e_value_size": 5}
    yield "`xattr.entry`", (bytes(block[32:]), "little", {**entry, "e_hash": digest})
    yield "`xattr.inode`", (xattr.build_ibody([attribute], 96), "little", {"h_magic": 0xEA020000})
    named = (acl.Entry(1, 7), acl.Entry(2, 5, 0x01020304))
    disk = {"a_version": 1, "e_tag": 1, "e_perm": 7, "e_tag_1": 2, "e_perm_1": 5, "e_id": 0x01020304}
    yield "`acl.disk`", (acl.to_disk(named), "little", disk)
    wire = {"a_version": 2, "e_tag": 1, "e_perm": 7, "e_id": 0xFFFFFFFF}
    yield "`acl.wire`", (acl.to_wire(named), "little", wire)


def orphan_samples() -> Iterator[tuple[str, Sample]]:
    block = bytearray(1024)
    orphan.initialize(block)
    orphan.seal_block(block, 5, 6)
    checksum = int(orphan.words(block)[-1])
    assert checksum
    yield "`orphan.tail`", (bytes(block[-8:]), "little", {"ob_magic": 0x0B10CA04, "ob_checksum": checksum})


def journal_samples() -> Iterator[tuple[str, Sample]]:
    plain = jbd2.JournalSuperblock.new(1024, 2048, bytes(range(16)))
    values = [at + 1 if isinstance(value, int) else value for at, value in enumerate(plain)]
    # A version 1 superblock has no checksum, whatever its other fields hold.
    made = jbd2.JournalSuperblock._make(values)._replace(
        h_blocktype=jbd2.SUPERBLOCK_V1, s_padding=b"p" * 160, s_users=b"u" * 768
    )
    yield "`jbd2.superblock`", (made.pack(), "big", made._asdict())
    yield (
        "`jbd2.header`",
        (log_blocks.header(5, 77), "big", {"h_magic": jbd2.MAGIC, "h_blocktype": 5, "h_sequence": 77}),
    )
    number, digest = 0x112131415161, 0x71727374
    for section, incompat in (("`jbd2.tag3`", jbd2.Incompat.CSUM_V3), ("`jbd2.tag`", jbd2.Incompat.CSUM_V2)):
        form = jbd2.Format.of(plain._replace(s_feature_incompat=int(incompat | jbd2.Incompat.BIT64)))
        checksum = digest if form.csum_version == 3 else digest & 0xFFFF
        data = log_blocks.descriptor(form, 77, [jbd2.Tag(number, jbd2.FLAG_ESCAPE, checksum)])
        tag = {"t_blocknr": number & 0xFFFFFFFF, "t_flags": 9, "t_blocknr_high": number >> 32, "t_checksum": checksum}
        yield section, (data[12:], "big", tag)
    form = jbd2.Format.of(plain)
    yield "`jbd2.revoke`", (log_blocks.revoke(form, 77, [1, 2, 3]), "big", {"r_count": 28})
    commit = {"h_chksum_type": 1, "h_chksum_size": 4, "h_chksum": 99, "h_commit_sec": 0x100000002, "h_commit_nsec": 3}
    yield "`jbd2.commit`", (log_blocks.commit(form, 77, 0x100000002, 3, 99), "big", commit)


def fast_commit_samples() -> Iterator[tuple[str, Sample]]:
    yield "`fast_commit.HEADER`", (fast_commit.HEADER.pack(7, 300), "little", {"fc_tag": 7, "fc_len": 300})
    yield "`fast_commit.HEAD`", (fast_commit.HEAD.pack(1, 77), "little", {"fc_features": 1, "fc_tid": 77})
    yield "`fast_commit.TAIL`", (fast_commit.TAIL.pack(77, 99), "little", {"fc_tid": 77, "fc_crc": 99})
    leaf = {"ee_block": 0x11121314, "ee_len": 0x8077, "ee_start_hi": 0x2122, "ee_start_lo": 0x23242526}
    added = fast_commit.ADD_RANGE.pack(12, *leaf.values())
    yield "`fast_commit.ADD_RANGE`", (added, "little", {"fc_ino": 12, **leaf})
    hole = {"fc_ino": 12, "fc_lblk": 5, "fc_len": 9}
    yield "`fast_commit.DEL_RANGE`", (fast_commit.DEL_RANGE.pack(*hole.values()), "little", hole)
    yield "`fast_commit.NAME`", (fast_commit.NAME.pack(2, 12), "little", {"fc_parent_ino": 2, "fc_ino": 12})
    yield "`fast_commit.INODE`", (fast_commit.INODE.pack(12), "little", {"fc_ino": 12})


def test_tags_of_fast_commits() -> None:
    described = re.search(r"\| fc_tag \| (.*?) \|", SECTIONS["`fast_commit.HEADER`"])
    assert described
    assert described[1] == ", ".join(f"{tag.value} {tag.name}" for tag in fast_commit.Tag)


SAMPLES: dict[str, Sample] = {
    name: sample
    for make in (
        extent_samples,
        directory_samples,
        attribute_samples,
        orphan_samples,
        journal_samples,
        fast_commit_samples,
    )
    for name, sample in make()
}


@pytest.mark.parametrize("section", SAMPLES)
def test_samples_have_their_values_there(section: str) -> None:
    data, order, expected = SAMPLES[section]
    found = {}
    for name, (offset, size) in fields(section).items():
        part = data[offset : offset + size]
        assert len(part) == size, name
        found[name] = part if isinstance(expected.get(name), bytes) else int.from_bytes(part, order)
    assert found == expected


def test_no_table_is_left_out() -> None:
    named = {title for title in SECTIONS if re.fullmatch(r"`\w+\.\w+`", title)}
    assert named == {*RECORDS, *SAMPLES, "`features.Compat`", "`features.Incompat`", "`features.RoCompat`"}


@pytest.mark.parametrize(
    ("kind", "supported", "otherwise"),
    [
        (features.Compat, None, ""),
        (features.Incompat, features.SUPPORTED_INCOMPAT, "no"),
        (features.RoCompat, features.SUPPORTED_RO_COMPAT, "read-only"),
    ],
)
def test_features(kind: type[IntFlag], supported: IntFlag | None, otherwise: str) -> None:
    shown = [(int(row[0], 16), row[1], row[2]) for row in rows(f"`features.{kind.__name__}`")]
    assert shown == [
        (int(flag), features.names(flag)[0], "yes" if supported is None or flag in supported else otherwise)
        for flag in kind
    ]


def test_journal_features() -> None:
    shown = {int(row[0], 16): row[1] for row in rows("`jbd2.superblock`") if len(row) == 4 and row[1].startswith("j")}
    assert shown == {int(bit): name for bit, name in jbd2.INCOMPAT_NAMES.items()}


def test_inode_flags() -> None:
    for names, bits, _ in rows("Inode flags"):
        for name, bit in zip(names.split(", "), bits.split(", "), strict=True):
            assert getattr(inode, f"EXT4_{name}") == int(bit, 16), name


def test_attribute_prefixes() -> None:
    shown = {int(row[0]): (row[1], row[2].startswith("no")) for row in rows("`xattr.entry`") if row[0].isdecimal()}
    assert {index: name.encode() for index, (name, _) in shown.items()} == xattr.PREFIXES
    for prefix, refused in shown.values():
        name = prefix.encode() + (b"x" if prefix.endswith(".") else b"")
        assert refused == bool(catch(lambda name=name: xattr.split_name(name)))  # type: ignore[misc]


def catch(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return str(error)
    return ""


def test_limits() -> None:
    shown = {row[0]: int(row[1], 0) for row in rows("Limits")}
    assert shown
    assert shown == {name: getattr(limits, name) for name in shown}


def test_words_of_refusal_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "daxfs").rglob("*.py")))
    words = re.findall(r"`([^`]+)`", SECTIONS["What is refused"])
    assert len(words) > 10
    for quoted in words:
        for part in re.split(r"<[^>]*>|: ", quoted):
            assert part.strip(" ,_") in source, quoted


def test_kinds_of_damage_are_those_of_the_code() -> None:
    shown = [
        kind for row in rows("Kinds of damage") if row[0] != "structure" for kind in re.findall(r"`([^`]+)`", row[1])
    ]
    assert sorted(shown) == sorted(CorruptKind)


def test_each_kind_of_damage_is_found_somewhere() -> None:
    source = "\n".join(path.read_text() for path in sorted((ROOT / "daxfs").rglob("*.py")))
    assert {f"CorruptKind.{kind.name}" for kind in CorruptKind} == set(re.findall(r"CorruptKind\.[A-Z_]+", source))


def test_journal_sizes() -> None:
    sizes = {row[0]: row[1] for row in rows("What mkfs chooses") if re.fullmatch(r"\d+[MGT]", row[0])}
    assert len(sizes) > 5
    for pool, journal in sizes.items():
        chosen = mkfs._defaults(mkfs._parse(()), parse_size(pool), True)
        assert chosen[chosen.index("-J") + 1] == f"size={journal}", pool
        assert any("stride=512,stripe_width=512" in word for word in chosen)
