"""The superblock: its layout against the C declaration, its figures against dumpe2fs, its checksum against mke2fs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daxfs.errors import Corrupt
from daxfs.ext4 import features
from daxfs.ext4.superblock import (
    EXT4_ERR_EFSCORRUPTED,
    EXT4_ERROR_FS,
    SUPERBLOCK_OFFSET,
    Superblock,
)

MakeImage = Callable[..., Path]

# The members in the order of struct ext4_super_block; their sizes determine the offsets.
LAYOUT = """
s_inodes_count 4 s_blocks_count_lo 4 s_r_blocks_count_lo 4 s_free_blocks_count_lo 4 s_free_inodes_count 4
s_first_data_block 4 s_log_block_size 4 s_log_cluster_size 4 s_blocks_per_group 4 s_clusters_per_group 4
s_inodes_per_group 4 s_mtime 4 s_wtime 4 s_mnt_count 2 s_max_mnt_count 2 s_magic 2 s_state 2 s_errors 2
s_minor_rev_level 2 s_lastcheck 4 s_checkinterval 4 s_creator_os 4 s_rev_level 4 s_def_resuid 2 s_def_resgid 2
s_first_ino 4 s_inode_size 2 s_block_group_nr 2 s_feature_compat 4 s_feature_incompat 4 s_feature_ro_compat 4
s_uuid 16 s_volume_name 16 s_last_mounted 64 s_algorithm_usage_bitmap 4 s_prealloc_blocks 1
s_prealloc_dir_blocks 1 s_reserved_gdt_blocks 2 s_journal_uuid 16 s_journal_inum 4 s_journal_dev 4
s_last_orphan 4 s_hash_seed 16 s_def_hash_version 1 s_jnl_backup_type 1 s_desc_size 2 s_default_mount_opts 4
s_first_meta_bg 4 s_mkfs_time 4 s_jnl_blocks 68 s_blocks_count_hi 4 s_r_blocks_count_hi 4
s_free_blocks_count_hi 4 s_min_extra_isize 2 s_want_extra_isize 2 s_flags 4 s_raid_stride 2
s_mmp_update_interval 2 s_mmp_block 8 s_raid_stripe_width 4 s_log_groups_per_flex 1 s_checksum_type 1
s_encryption_level 1 s_reserved_pad 1 s_kbytes_written 8 s_snapshot_inum 4 s_snapshot_id 4
s_snapshot_r_blocks_count 8 s_snapshot_list 4 s_error_count 4 s_first_error_time 4 s_first_error_ino 4
s_first_error_block 8 s_first_error_func 32 s_first_error_line 4 s_last_error_time 4 s_last_error_ino 4
s_last_error_line 4 s_last_error_block 8 s_last_error_func 32 s_mount_opts 64 s_usr_quota_inum 4
s_grp_quota_inum 4 s_overhead_clusters 4 s_backup_bgs_0 4 s_backup_bgs_1 4 s_encrypt_algos 4
s_encrypt_pw_salt 16 s_lpf_ino 4 s_prj_quota_inum 4 s_checksum_seed 4 s_wtime_hi 1 s_mtime_hi 1
s_mkfs_time_hi 1 s_lastcheck_hi 1 s_first_error_time_hi 1 s_last_error_time_hi 1 s_first_error_errcode 1
s_last_error_errcode 1 s_encoding 2 s_encoding_flags 2 s_orphan_file_inum 4 s_reserved 376 s_checksum 4
""".split()  # noqa: SIM905 (a list of 200 literals would hide the order)


def load(path: Path) -> Superblock:
    with path.open("rb") as file:
        file.seek(SUPERBLOCK_OFFSET)
        return Superblock(memoryview(bytearray(file.read(1024))))


def store(path: Path, sb: Superblock) -> None:
    with path.open("r+b") as file:
        file.seek(SUPERBLOCK_OFFSET)
        file.write(sb.buffer)


def dumpe2fs(path: Path) -> dict[str, str]:
    output = subprocess.run(
        ["dumpe2fs", "-h", str(path)], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    return dict(re.findall(r"^([^:\n]+):\s*(.*)$", output, re.MULTILINE))


def test_layout() -> None:
    offset = 0
    expected = []
    for name, size in zip(LAYOUT[::2], map(int, LAYOUT[1::2]), strict=True):
        expected.append((name, offset, size))
        offset += size
    assert offset == 1024
    assert [info[:3] for info in Superblock.FIELDS] == expected


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-O", "^64bit,^metadata_csum,uninit_bg", "-b", "1024"),
        ("-O", "metadata_csum_seed,orphan_file", "-b", "2048", "-L", "pool", "-E", "stride=512,stripe_width=512"),
        ("-O", "quota,project,^has_journal", "-I", "512", "-m", "3"),
        ("-O", "sparse_super2,meta_bg,^resize_inode", "-b", "1024"),
    ],
)
def test_figures_are_those_of_dumpe2fs(make_image: MakeImage, options: tuple[str, ...]) -> None:
    path = make_image(*options)
    sb, shown = load(path), dumpe2fs(path)
    numbers = {
        "Inode count": sb.s_inodes_count,
        "Block count": sb.blocks_count,
        "Reserved block count": sb.reserved_blocks_count,
        "Free blocks": sb.free_blocks_count,
        "Free inodes": sb.s_free_inodes_count,
        "First block": sb.s_first_data_block,
        "Block size": sb.block_size,
        "Blocks per group": sb.s_blocks_per_group,
        "Inodes per group": sb.s_inodes_per_group,
        "First inode": sb.first_ino,
        "Inode size": sb.inode_size,
        "Mount count": sb.s_mnt_count,
        "Maximum mount count": sb.s_max_mnt_count,
    }
    for name, value in numbers.items():
        assert int(shown[name]) == value, name
    for name, value in {
        "Flex block group size": 1 << sb.s_log_groups_per_flex,
        "Group descriptor size": sb.desc_size,
        "RAID stride": sb.s_raid_stride,
        "RAID stripe width": sb.s_raid_stripe_width,
        "Orphan file inode": sb.s_orphan_file_inum,
        "Journal inode": sb.s_journal_inum,
        "User quota inode": sb.s_usr_quota_inum,
        "Group quota inode": sb.s_grp_quota_inum,
        "Project quota inode": sb.s_prj_quota_inum,
        "Desired extra isize": sb.s_want_extra_isize,
        "Reserved GDT blocks": sb.s_reserved_gdt_blocks,
    }.items():
        assert int(shown.get(name, value)) == value, name
    assert set(shown["Filesystem features"].split()) == set(sb.feature_names)
    assert shown["Filesystem UUID"].replace("-", "") == sb.s_uuid.hex()
    assert shown["Filesystem volume name"] in (sb.label, "<none>")
    assert shown.get("Directory Hash Seed", "").replace("-", "") == sb.s_hash_seed.hex()
    if "Checksum seed" in shown:
        assert int(shown["Checksum seed"], 16) == sb.s_checksum_seed
    if "Checksum" in shown:
        assert int(shown["Checksum"], 16) == sb.s_checksum


def test_the_checksum_of_mke2fs_verifies_and_seals_identically(make_image: MakeImage) -> None:
    sb = load(make_image())
    sb.verify()
    before = bytes(sb.buffer)
    sb.seal()
    assert sb.buffer == before


def test_any_damaged_byte_is_noticed(make_image: MakeImage) -> None:
    sb = load(make_image())
    # Without the feature bit the checksum is not checked.
    unseen = next(info.offset for info in Superblock.FIELDS if info.name == "s_feature_ro_compat") + 1
    for offset in range(1024):
        if offset != unseen:
            sb.buffer[offset] ^= 0x40
            with pytest.raises(Corrupt, match="superblock"):
                sb.verify()
            sb.buffer[offset] ^= 0x40
    sb.verify()


def test_without_metadata_csum_nothing_is_sealed(make_image: MakeImage) -> None:
    sb = load(make_image("-O", "^metadata_csum"))
    sb.seal()
    assert sb.s_checksum == 0
    sb.verify()


def test_block_counts_join_with_64bit_only(make_image: MakeImage) -> None:
    sb = load(make_image())
    sb.free_blocks_count = 5 << 32 | 7
    assert (sb.s_free_blocks_count_hi, sb.s_free_blocks_count_lo, sb.free_blocks_count) == (5, 7, 5 << 32 | 7)
    sb.s_feature_incompat &= ~int(features.Incompat.bit64)
    assert sb.free_blocks_count == 7
    with pytest.raises(ValueError, match="invalid value"):
        sb.free_blocks_count = 1 << 32
    sb.blocks_count, sb.reserved_blocks_count = 12, 13
    assert (sb.s_blocks_count_lo, sb.s_r_blocks_count_lo) == (12, 13)


def test_recorded_errors_are_shown_by_dumpe2fs(make_image: MakeImage) -> None:
    path = make_image()
    sb = load(path)
    sb.record_error(1_700_000_000, EXT4_ERR_EFSCORRUPTED, "read_block", line=9, ino=12, block=345)
    sb.record_error((1 << 32) + 5, EXT4_ERR_EFSCORRUPTED, "a_name_that_is_longer_than_the_room_for_it")
    sb.seal()
    store(path, sb)
    shown = dumpe2fs(path)
    assert shown["FS Error count"] == "2"
    assert shown["First error function"] == "read_block"
    assert shown["First error inode #"] == "12"
    assert shown["First error block #"] == "345"
    assert shown["First error err"] == "EFSCORRUPTED"
    assert shown["Last error function"] == "a_name_that_is_longer_than_the_r"
    assert "with errors" in shown["Filesystem state"]
    assert (sb.first_error_time, sb.last_error_time) == (1_700_000_000, (1 << 32) + 5)
    assert sb.s_state & EXT4_ERROR_FS


def test_a_block_size_out_of_range_is_no_large_shift(make_image: MakeImage) -> None:
    sb = load(make_image())
    sb.s_log_block_size = 0xFFFFFFFF
    with pytest.raises(Corrupt, match="block size"):
        _ = sb.block_size


def test_unknown_features_have_e2fsprogs_names() -> None:
    assert features.names(features.Incompat(1 << 18 | 0x80)) == ("64bit", "FEATURE_I18")
    assert features.names(features.RoCompat(1 << 31 | 0x1000)) == ("read-only", "FEATURE_R31")
    assert features.names(features.Compat(0x1)) == ("dir_prealloc",)
