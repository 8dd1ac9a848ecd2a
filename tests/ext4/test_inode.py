"""Inodes: layout, joined values and times by the kernel's rules, debugfs as the oracle both ways, hostile slots."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import inode as ext4_inode
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import descriptor
from daxfs.ext4.inode import (
    EXT4_EXTENTS_FL,
    EXT4_HUGE_FILE_FL,
    EXT4_INLINE_DATA_FL,
    TIMESTAMP_MAX,
    TIMESTAMP_MAX_SMALL,
    TIMESTAMP_MIN,
    InodeRecord,
    file_type_of_mode,
)
from daxfs.ext4.superblock import Superblock

MakeImage = Callable[..., Path]

# In the order of struct ext4_inode; i_block has its own accessor.
LAYOUT = """
i_mode 2 i_uid_lo 2 i_size_lo 4 i_atime 4 i_ctime 4 i_mtime 4 i_dtime 4 i_gid_lo 2 i_links_count 2 i_blocks_lo 4
i_flags 4 i_version_lo 4 - 60 i_generation 4 i_file_acl_lo 4 i_size_high 4 i_obso_faddr 4 i_blocks_high 2
i_file_acl_high 2 i_uid_high 2 i_gid_high 2 i_checksum_lo 2 i_reserved 2 i_extra_isize 2 i_checksum_hi 2
i_ctime_extra 4 i_mtime_extra 4 i_atime_extra 4 i_crtime 4 i_crtime_extra 4 i_version_hi 4 i_projid 4
""".split()  # noqa: SIM905

SECOND = 10**9
COMMANDS = """
write {source} f
mknod old c 4 5
mknod new b 259 300
symlink fast target
mkdir d
sif f uid 100000
sif f gid 70000
sif f mtime @0x180000000
sif f mtime_extra 5
sif f atime @0xffffffff
sif f ctime @1700000000
sif f ctime_extra 0x77359401
sif f generation 77
sif f projid 42
sif f version 0x300000009
quit
"""


class Image:
    """An image file and its inode slots."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.load()

    def load(self) -> None:
        self.memory = memoryview(bytearray(self.path.read_bytes()))
        self.geometry = Geometry.of(Superblock(self.memory, 1024))

    def inode(self, ino: int) -> InodeRecord:
        geometry = self.geometry
        group = geometry.group_of_inode(ino)
        block, offset = geometry.descriptor_position(group)
        table = descriptor(self.memory, block * geometry.block_size + offset, geometry).inode_table
        index = (ino - 1) % geometry.inodes_per_group
        return InodeRecord(self.memory, table * geometry.block_size + index * geometry.inode_size, geometry)

    def debugfs(self, commands: str) -> str:
        return subprocess.run(
            ["debugfs", "-w", "-f", "-", str(self.path)],
            input=commands,
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        ).stdout

    def stat(self, name: str) -> str:
        return self.debugfs(f"stat {name}\n")

    def save(self) -> None:
        self.path.write_bytes(self.memory)


@pytest.fixture
def populated(make_image: MakeImage, tmp_path: Path) -> Callable[..., Image]:
    def make(*options: str) -> Image:
        source = tmp_path / "source"
        source.write_bytes(b"hello")
        image = Image(make_image(*options, size="16M"))
        image.debugfs(COMMANDS.format(source=source))
        image.load()
        return image

    return make


@pytest.fixture
def blank(make_image: MakeImage) -> Callable[..., InodeRecord]:
    """A zeroed slot, with the extra fields that new inodes get."""

    def make(*options: str) -> InodeRecord:
        geometry = Image(make_image(*options, size="16M")).geometry
        record = InodeRecord(memoryview(bytearray(geometry.inode_size)), 0, geometry)
        record.set_extra_isize(geometry.want_extra_isize)
        record.i_mode = stat.S_IFREG | 0o644
        return record

    return make


def test_layout() -> None:
    offset = 0
    expected = []
    for name, size in zip(LAYOUT[::2], map(int, LAYOUT[1::2]), strict=True):
        if name != "-":
            expected.append((name, offset, size))
        offset += size
    assert offset == InodeRecord.SIZE
    assert [info[:3] for info in InodeRecord.FIELDS] == expected


def test_values_set_by_debugfs_are_read(populated: Callable[..., Image]) -> None:
    image = populated("-O", "project")
    f = image.inode(12)
    assert (f.uid, f.gid, f.generation, f.i_projid, f.version) == (100000, 70000, 77, 42, 3 << 32 | 9)
    assert (f.size, f.blocks, f.links_count) == (5, 8, 1)
    assert f.mtime_ns == (-(1 << 31) + (1 << 32)) * SECOND + 1
    assert f.atime_ns == 0xFFFFFFFF * SECOND
    assert f.ctime_ns == (1_700_000_000 + (1 << 32)) * SECOND + 500_000_000
    assert f.is_regular
    assert f.has_extents
    assert image.inode(13).rdev == os.makedev(4, 5)
    assert image.inode(14).rdev == os.makedev(259, 300)
    fast = image.inode(15)
    assert fast.is_fast_symlink
    assert fast.is_symlink
    assert bytes(fast.block_area[: fast.size]) == b"target"
    assert len(fast.block_area) == 60
    directory = image.inode(16)
    assert directory.is_dir
    assert directory.links_count == 2
    assert [image.inode(ino).file_type for ino in range(12, 17)] == [1, 3, 4, 7, 2]


@pytest.mark.parametrize(
    "options",
    [(), ("-I", "128", "-b", "1024"), ("-I", "512"), ("-O", "metadata_csum_seed"), ("-O", "^metadata_csum")],
)
def test_checksums_verify_and_seal_identically(populated: Callable[..., Image], options: tuple[str, ...]) -> None:
    image = populated(*options)
    before = bytes(image.memory)
    for ino in (2, 7, 8, 11, 12, 13, 14, 15, 16):
        record = image.inode(ino)
        record.verify(ino, image.geometry)
        record.seal(ino, image.geometry)
        if image.geometry.metadata_csum:
            shown = re.search(r"Inode checksum: (0x[0-9a-f]+)", image.stat(f"<{ino}>"))
            assert shown
            assert int(shown[1], 16) == record.stored_checksum
    assert image.memory == before


@pytest.mark.parametrize(("size", "extra"), [(128, 0), (256, 0), (256, 2), (256, 4), (256, 32), (256, 128), (256, 132)])
def test_a_slot_is_sealed_where_it_lies(blank: Callable[..., InodeRecord], size: int, extra: int) -> None:
    """A slot inside a block is sealed with both halves of the checksum if the extra fields have room, else with one."""
    geometry = blank("-I", str(size)).geometry
    block = memoryview(bytearray(b"\xff" * 4 * size))
    if size > 128:
        block[2 * size + 128 : 2 * size + 130] = extra.to_bytes(2, "little")
    before = bytes(block)
    ext4_inode.seal_slot(geometry, 12, 2 * size, block)
    record = InodeRecord(block, 2 * size, geometry)
    assert record.stored_checksum == record.computed_checksum(12, geometry)
    assert record.i_extra_isize == (0 if size == 128 else extra)
    changed = {at - 2 * size for at in range(len(before)) if before[at] != block[at]}
    assert changed <= {0x7C, 0x7D} | ({0x82, 0x83} if 4 <= extra <= size - 128 else set())
    assert changed


@pytest.mark.parametrize("options", [(), ("-I", "128"), ("-I", "1024")])
def test_any_damaged_byte_is_noticed(populated: Callable[..., Image], options: tuple[str, ...]) -> None:
    image = populated(*options)
    record = image.inode(12)
    for offset in range(len(record.buffer)):
        record.buffer[offset] ^= 4
        with pytest.raises(Corrupt, match=r"inode .*: inode 12"):
            image.inode(12).verify(12, image.geometry)
        record.buffer[offset] ^= 4
    with pytest.raises(Corrupt, match="inode checksum"):
        record.verify(13, image.geometry)


@pytest.mark.parametrize("options", [("-O", "project"), ("-I", "128", "-O", "^project")])
def test_values_set_here_are_read_by_debugfs_and_accepted_by_e2fsck(
    populated: Callable[..., Image], options: tuple[str, ...]
) -> None:
    image = populated(*options)
    f = image.inode(12)
    f.uid, f.gid, f.generation = 0x7FFF0001, 0x12345678, 99
    f.mtime_ns = (1 << 33) * SECOND + 123456789
    f.atime_ns = -5 * SECOND + 7
    f.crtime_ns = 1_600_000_000 * SECOND + 1
    f.i_projid = 4321
    f.seal(12, image.geometry)
    node = image.inode(13)
    node.rdev = os.makedev(4000, 1_000_000)
    node.seal(13, image.geometry)
    image.save()
    shown = image.stat("f")
    large = image.geometry.inode_size > 128
    assert re.search(r"User: *2147418113 +Group: *305419896", shown)
    assert "Generation: 99 " in shown
    assert ("Project:  4321" in shown) == large
    assert "atime: 0xfffffffb" in shown
    assert ("mtime: 0x00000000:1d6f3456" in shown) == large
    assert ("mtime: 0x7fffffff --" in shown) != large
    assert ("crtime: 0x5f5e1000:00000004" in shown) == large
    assert "4000:1000000" in image.stat("old")
    check = subprocess.run(["e2fsck", "-fn", str(image.path)], check=False, timeout=60, capture_output=True)
    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize(
    "value",
    [
        0,
        1,
        -1,
        -SECOND,
        1_700_000_000 * SECOND + 999_999_999,
        (1 << 31) * SECOND,
        (1 << 32) * SECOND + 5,
        (3 << 32) * SECOND - 1,
        TIMESTAMP_MIN * SECOND,
        TIMESTAMP_MIN * SECOND + SECOND,
        TIMESTAMP_MAX * SECOND,
    ],
)
def test_times_round_trip(blank: Callable[..., InodeRecord], value: int) -> None:
    record = blank()
    for name in ("atime_ns", "mtime_ns", "ctime_ns", "crtime_ns"):
        setattr(record, name, value)
    # Each time is stored in its own field.
    assert record.i_atime_extra == record.i_mtime_extra == record.i_ctime_extra == record.i_crtime_extra
    assert [record.atime_ns, record.mtime_ns, record.ctime_ns, record.crtime_ns] == [value] * 4


def test_times_out_of_range_are_clamped_without_nanoseconds(blank: Callable[..., InodeRecord]) -> None:
    for options, largest in (((), TIMESTAMP_MAX), (("-I", "128"), TIMESTAMP_MAX_SMALL)):
        record = blank(*options)
        record.mtime_ns = 1 << 90
        assert record.mtime_ns == largest * SECOND
        record.mtime_ns = -(1 << 90)
        assert record.mtime_ns == TIMESTAMP_MIN * SECOND


def test_small_slots_have_no_extra_fields(blank: Callable[..., InodeRecord]) -> None:
    record = blank("-I", "128")
    extra = ("i_extra_isize", "i_checksum_hi", "i_ctime_extra", "i_crtime", "i_version_hi", "i_projid")
    before = bytes(record.buffer)
    for name in extra:
        setattr(record, name, 7)
        assert getattr(record, name) == 0
    record.crtime_ns = 5 * SECOND
    assert record.crtime_ns == 0
    assert record.buffer == before
    record.atime_ns = 5 * SECOND + 6
    assert record.atime_ns == 5 * SECOND


@pytest.mark.parametrize("extra", range(0, 33, 4))
def test_extra_fields_exist_as_far_as_they_are_covered(blank: Callable[..., InodeRecord], extra: int) -> None:
    record = blank()
    record.buffer[128:256] = b"\xff" * 128
    record.i_extra_isize = extra
    assert record.i_extra_isize == extra
    ends = {
        "i_checksum_hi": 4,
        "i_ctime_extra": 8,
        "i_mtime_extra": 12,
        "i_atime_extra": 16,
        "i_crtime": 20,
        "i_crtime_extra": 24,
        "i_version_hi": 28,
        "i_projid": 32,
    }
    for name, end in ends.items():
        setattr(record, name, 5)
        assert getattr(record, name) == (5 if end <= extra else 0), name
    # Nothing after the covered part was changed.
    assert bytes(record.buffer[128 + max(extra, 2) : 256]) == b"\xff" * (128 - max(extra, 2))
    record.crtime_ns = 1_000 * SECOND + 3
    assert record.crtime_ns == (0 if extra < 20 else 1_000 * SECOND + (3 if extra >= 24 else 0))


@pytest.mark.parametrize("extra", range(0, 33, 4))
def test_all_times_are_set_as_one_by_one(blank: Callable[..., InodeRecord], extra: int) -> None:
    together, apart = blank(), blank()
    for inode in (together, apart):
        inode.i_extra_isize = extra
    moment = (1 << 33) * SECOND + 123_456_789
    together.set_times(moment)
    apart.atime_ns = apart.mtime_ns = apart.ctime_ns = apart.crtime_ns = moment
    assert together.buffer == apart.buffer


@pytest.mark.parametrize(("size", "extra"), [("128", 0), ("256", 0), ("256", 4), ("256", 8), ("256", 12), ("256", 32)])
def test_the_times_of_a_change_are_set_together(blank: Callable[..., InodeRecord], size: str, extra: int) -> None:
    together, apart = blank("-I", size), blank("-I", size)
    for record in (together, apart):
        record.set_extra_isize(extra)
    moment = 0x123456789 * 1_000_000_000 + 123_456_789
    together.set_changed(moment)
    apart.mtime_ns = apart.ctime_ns = moment
    assert together.buffer == apart.buffer


@pytest.mark.parametrize("extra", [0, 4, 32, 0xFFFC])
def test_a_slot_that_is_filled_has_as_many_extra_fields_as_it_says(
    blank: Callable[..., InodeRecord], extra: int
) -> None:
    record, raw = blank(), bytearray(range(160))
    raw[128:130] = extra.to_bytes(2, "little")
    record.fill(raw)
    assert record.buffer[:160] == raw
    assert record.extra_end == InodeRecord(record.buffer, 0, record.geometry).extra_end
    short = blank("-I", "128")
    short.fill(bytes(range(128)))
    assert short.extra_end == 128


@pytest.mark.parametrize("extra", [1, 2, 132, 0xFFFC])
def test_a_wrong_extra_size_is_corrupt_and_covers_nothing_outside(
    blank: Callable[..., InodeRecord], extra: int
) -> None:
    record = blank()
    record.halves[64] = extra
    again = InodeRecord(record.buffer, 0, record.geometry)
    assert again.extra_end <= 256
    again.seal(12, record.geometry)
    with pytest.raises(Corrupt, match="inode extra size"):
        again.verify(12, record.geometry)
    with pytest.raises(ValueError, match="i_extra_isize"):
        record.i_extra_isize = extra


def test_sizes_join_in_regular_files_and_large_directories(blank: Callable[..., InodeRecord]) -> None:
    record = blank()
    record.size = 5 << 40 | 3
    assert (record.size, record.i_size_high, record.i_size_lo) == (5 << 40 | 3, 5 << 8, 3)
    record.i_mode = stat.S_IFDIR | 0o755
    assert record.size == 3
    with pytest.raises(FsError, match="does not fit"):
        record.size = 1 << 32
    record.size = 4096
    assert (record.size, record.i_size_high) == (4096, 0)
    large = blank("-O", "large_dir")
    large.i_mode = stat.S_IFDIR | 0o755
    large.size = 1 << 33
    assert large.size == 1 << 33


def test_blocks_follow_huge_file(blank: Callable[..., InodeRecord]) -> None:
    record = blank()
    record.i_flags = EXT4_EXTENTS_FL
    for count, stored, huge in ((8, 8, False), (1 << 40, 1 << 40, False), (1 << 49, 1 << 46, True)):
        record.blocks = count
        assert record.blocks == count
        assert record.i_blocks_lo | record.i_blocks_high << 32 == stored
        assert record.i_flags == (EXT4_EXTENTS_FL | EXT4_HUGE_FILE_FL if huge else EXT4_EXTENTS_FL)
    plain = blank("-O", "^huge_file")
    plain.i_blocks_high = 1
    plain.i_blocks_lo = 16
    assert plain.blocks == 16
    with pytest.raises(FsError, match="huge_file"):
        plain.blocks = 1 << 32


def test_xattr_block_joins_with_64bit(blank: Callable[..., InodeRecord]) -> None:
    record = blank()
    record.file_acl = 3 << 32 | 4
    assert (record.file_acl, record.i_file_acl_high, record.i_file_acl_lo) == (3 << 32 | 4, 3, 4)
    small = blank("-O", "^64bit")
    small.i_file_acl_high = 9
    small.file_acl = 77
    assert small.file_acl == 77


@pytest.mark.parametrize(
    ("major", "minor", "old"),
    [(0, 1, True), (255, 255, True), (256, 0, False), (8, 256, False), (4095, 0xFFFFF, False)],
)
def test_device_numbers(blank: Callable[..., InodeRecord], major: int, minor: int, old: bool) -> None:
    record = blank()
    record.block_area[:] = b"\xff" * 60
    record.rdev = os.makedev(major, minor)
    assert record.rdev == os.makedev(major, minor)
    assert bool(record.words[10]) == old
    assert record.words[12] == 0
    with pytest.raises(FsError, match="32 bits"):
        record.rdev = os.makedev(4096, 0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda r: setattr(r, "i_mode", 0o030644), "mode"),
        (lambda r: setattr(r, "i_mode", 0o170000), "mode"),
        (lambda r: setattr(r, "i_flags", EXT4_INLINE_DATA_FL), "flags"),
        (lambda r: setattr(r, "i_size_high", 0x80000000), "size"),
        (lambda r: setattr(r, "file_acl", 1 << 40), "xattr block"),
        (lambda r: setattr(r, "file_acl", 4096), "xattr block"),
    ],
)
def test_hostile_values_under_a_right_checksum(
    blank: Callable[..., InodeRecord], change: Callable[[InodeRecord], None], kind: str
) -> None:
    record = blank()
    record.seal(12, record.geometry)
    record.verify(12, record.geometry)
    change(record)
    record.seal(12, record.geometry)
    with pytest.raises(Corrupt, match=f"inode {kind}: inode 12"):
        record.verify(12, record.geometry)


def test_bindings_out_of_place_are_refused(blank: Callable[..., InodeRecord]) -> None:
    geometry = blank().geometry
    memory = memoryview(bytearray(1024))
    for offset in (2, 800, 1024, -256):
        with pytest.raises(ValueError, match="cannot be bound"):
            InodeRecord(memory, offset, geometry)


def test_types_of_modes() -> None:
    for file_type, mode in enumerate(ext4_inode.MODE_OF_FILE_TYPE):
        assert file_type_of_mode(mode | 0o7777) == file_type
