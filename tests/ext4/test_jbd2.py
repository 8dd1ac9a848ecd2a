"""The log format: daxfs reads logs of debugfs, e2fsck replays logs made here, and damage is named."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import log_blocks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, Unsupported
from daxfs.ext4 import jbd2
from daxfs.ext4.features import Incompat as FsIncompat
from daxfs.ext4.jbd2 import Format, Incompat, JournalSuperblock, Tag
from daxfs.ext4.superblock import Superblock

BLOCK = 1024
UUID = bytes(range(16))
LAYOUTS = [bit64 | csum for bit64 in (0, Incompat.BIT64) for csum in (0, Incompat.CSUM_V2, Incompat.CSUM_V3)]


def layout(incompat: int, block_size: int = BLOCK) -> Format:
    return Format.of(JournalSuperblock.new(block_size, 1024, UUID, incompat))


def debugfs(image: Path, *commands: str) -> str:
    result = subprocess.run(
        ["debugfs", "-w", "-f", "-", str(image)],
        input="\n".join(commands),
        text=True,
        capture_output=True,
        timeout=30,
        check=True,
    )
    return result.stdout


class Log:
    """The journal of an image as a list of blocks."""

    def __init__(self, image: Path) -> None:
        self.image = image
        listed = debugfs(image, "blocks <8>").split("\n", 1)[1]
        self.home = [int(word) for word in listed.split() if word.isdigit()]
        self.data = image.read_bytes()

    def block(self, number: int) -> bytes:
        at = self.home[number] * BLOCK
        return self.data[at : at + BLOCK]

    def write(self, number: int, content: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(self.home[number] * BLOCK)
            file.write(content)


@pytest.fixture(params=["64bit", "^64bit"])
def image(request: pytest.FixtureRequest, make_image: Callable[..., Path]) -> Path:
    return make_image("-b", str(BLOCK), "-J", "size=1", "-O", request.param, size="16M")


@pytest.mark.parametrize("version", [0, 2, 3])
def test_a_log_written_by_debugfs_is_read(image: Path, tmp_path: Path, version: int) -> None:
    content = jbd2.MAGIC_BYTES + os.urandom(BLOCK - 4) + os.urandom(BLOCK)
    (tmp_path / "data").write_bytes(content)
    debugfs(
        image,
        f"jo -c -v {version}" if version else "jo",
        f"jw -b 9000,9001 {tmp_path / 'data'}",
        "jw -r 9000",
        "jc",
    )
    log = Log(image)
    sb = jbd2.verify_superblock(log.block(0), BLOCK, len(log.home))
    form = Format.of(sb)
    assert form.csum_version == version
    assert sb.s_start == 1
    assert sb.pack() == log.block(0)[: jbd2.SUPERBLOCK_SIZE]
    at, sequence = 1, sb.s_sequence
    tags: list[Tag] = []
    revoked: list[int] = []
    commits = 0
    while (head := jbd2.header(log.block(at))) and head.h_sequence == sequence:
        block = log.block(at)
        if head.h_blocktype == jbd2.DESCRIPTOR_BLOCK:
            assert jbd2.tail_is_valid(form, block)
            tags = jbd2.unpack_tags(block, form)
            for i, tag in enumerate(tags):
                at += 1
                logged = log.block(at)
                assert tag.checksum == jbd2.block_checksum(form, sequence, logged)
                escaped = bool(tag.flags & jbd2.FLAG_ESCAPE)
                assert escaped == (i == 0)
                assert (jbd2.MAGIC_BYTES + logged[4:] if escaped else logged) == content[i * BLOCK :][:BLOCK]
        elif head.h_blocktype == jbd2.REVOKE_BLOCK:
            assert jbd2.tail_is_valid(form, block)
            revoked += jbd2.unpack_revoke(block, form)
        else:
            assert head.h_blocktype == jbd2.COMMIT_BLOCK
            assert jbd2.commit_is_valid(form, block)
            assert jbd2.unpack_commit(block).h_sequence == sequence
            commits += 1
            sequence += 1
        at += 1
    assert [tag.blocknr for tag in tags] == [9000, 9001]
    assert revoked == [9000]
    assert commits == 2


def _write_log(image: Path, csum: int, blocks: dict[int, bytes], revoke: int) -> None:
    """Make a transaction with ``blocks`` and one that revokes, in the format for the image's word size."""
    log = Log(image)
    old = JournalSuperblock.unpack(log.block(0))
    with image.open("r+b") as file:
        file.seek(1024)
        fs = bytearray(file.read(1024))
        sb = Superblock(memoryview(fs))
        sb.s_feature_incompat |= FsIncompat.needs_recovery
        sb.seal()
        file.seek(1024)
        file.write(fs)
    bit64 = Incompat.BIT64 if sb.s_feature_incompat & FsIncompat.bit64 else 0
    new = JournalSuperblock.new(BLOCK, old.s_maxlen, old.s_uuid, Incompat.REVOKE | bit64 | csum)
    new = new._replace(s_sequence=77, s_start=3)
    form = Format.of(new)
    logged = [_ZERO + block[4:] if jbd2.escapes(block) else block for block in blocks.values()]
    tags = [
        Tag(number, jbd2.FLAG_ESCAPE if jbd2.escapes(block) else 0, jbd2.block_checksum(form, 77, copy))
        for (number, block), copy in zip(blocks.items(), logged, strict=True)
    ]
    parts = [log_blocks.descriptor(form, 77, tags), *logged, log_blocks.commit(form, 77, 1_700_000_000, 5)]
    parts += [log_blocks.revoke(form, 78, [revoke]), log_blocks.commit(form, 78, 1_700_000_001, 0)]
    log.write(0, new.pack())
    for i, part in enumerate(parts):
        assert len(part) == BLOCK
        log.write(3 + i, part)


_ZERO = bytes(4)


@pytest.mark.parametrize("csum", [0, Incompat.CSUM_V2, Incompat.CSUM_V3])
def test_a_log_made_here_is_replayed_by_e2fsck(image: Path, csum: int) -> None:
    blocks = {9000 + i: os.urandom(BLOCK) for i in range(20)}
    blocks[9003] = jbd2.MAGIC_BYTES + bytes(BLOCK - 4)
    _write_log(image, csum, blocks, revoke=9007)
    listed = debugfs(image, "logdump -a").split("\n")
    assert "Found sequence" not in "".join(line for line in listed if "not" in line)
    done = subprocess.run(
        ["e2fsck", "-fy", "-E", "journal_only", str(image)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode in (0, 1), done.stdout
    assert "rror" not in done.stdout + done.stderr.replace("e2fsck 1.", ""), done.stdout
    after = image.read_bytes()
    for number, block in blocks.items():
        found = after[number * BLOCK :][:BLOCK]
        assert found == (block if number != 9007 else bytes(BLOCK)), number
    final = jbd2.verify_superblock(Log(image).block(0), BLOCK, 1024)
    assert final.s_start == 0


# Vectors and limits without an image


@pytest.mark.parametrize(
    ("incompat", "size"),
    [
        (0, 8),
        (Incompat.BIT64, 12),
        (Incompat.CSUM_V2, 10),
        (Incompat.CSUM_V2 | Incompat.BIT64, 14),
        (Incompat.CSUM_V3, 16),
        (Incompat.CSUM_V3 | Incompat.BIT64, 16),
    ],
)
def test_tags_are_as_long_as_the_kernel_says(incompat: int, size: int) -> None:
    assert jbd2.tag_bytes(incompat | Incompat.REVOKE) == size


@settings(max_examples=60, deadline=None)
@given(incompat=st.sampled_from(LAYOUTS), data=st.data())
def test_tags_come_back_as_they_were_given(incompat: int, data: st.DataObject) -> None:
    form = layout(incompat)
    top = 1 << (48 if form.is_64bit else 32)
    bits = {0: 0, 2: 16, 3: 32}[form.csum_version]
    tag = st.builds(
        Tag,
        st.integers(1, top - 1),
        st.sampled_from([0, jbd2.FLAG_ESCAPE, jbd2.FLAG_DELETED]),
        st.integers(0, (1 << bits) - 1),
    )
    tags = data.draw(st.lists(tag, min_size=1, max_size=form.tags_per_descriptor))
    block = log_blocks.descriptor(form, 2**32 - 1, tags)
    assert len(block) == BLOCK
    assert jbd2.tail_is_valid(form, block)
    kept = jbd2.FLAG_ESCAPE | jbd2.FLAG_DELETED
    assert [tag._replace(flags=tag.flags & kept) for tag in jbd2.unpack_tags(block, form)] == tags


@pytest.mark.parametrize("incompat", LAYOUTS)
def test_what_a_block_held_is_gone_when_it_is_filled(incompat: int) -> None:
    """A descriptor and a commit block overwrite all bytes: the log assembles its blocks in the same memory again."""
    form = layout(incompat)
    memory = memoryview(bytearray(b"\xa5" * 3 * BLOCK))
    block = memory[BLOCK : 2 * BLOCK]
    for tags in ([Tag(5, 0, 7)], [Tag(i + 1, 0, 9) for i in range(20)], [Tag(6, jbd2.FLAG_ESCAPE)]):
        jbd2.fill_descriptor(form, block, 3, tags)
        assert block == log_blocks.descriptor(form, 3, tags)
    jbd2.fill_commit(form, block, 4, 1 << 33, 8)
    assert block == log_blocks.commit(form, 4, 1 << 33, 8)
    assert memory[:BLOCK] == memory[2 * BLOCK :] == b"\xa5" * BLOCK


@pytest.mark.parametrize("incompat", LAYOUTS)
def test_full_blocks_fit_and_one_more_revoke_is_refused(incompat: int) -> None:
    form = layout(incompat)
    full = [Tag(i + 1, 0) for i in range(form.tags_per_descriptor)]
    assert len(log_blocks.descriptor(form, 1, full)) == BLOCK
    revoked = list(range(1, form.revokes_per_block + 1))
    assert jbd2.unpack_revoke(log_blocks.revoke(form, 1, revoked), form) == revoked
    with pytest.raises(ValueError, match="limit"):
        log_blocks.revoke(form, 1, [*revoked, 1])


def test_a_large_block_number_needs_a_64bit_journal() -> None:
    with pytest.raises(ValueError, match="32-bit"):
        log_blocks.descriptor(layout(0), 1, [Tag(1 << 32, 0)])


@settings(max_examples=60, deadline=None)
@given(incompat=st.sampled_from(LAYOUTS), noise=st.binary(min_size=BLOCK, max_size=BLOCK))
def test_noise_never_leads_out_of_the_block(incompat: int, noise: bytes) -> None:
    form = layout(incompat)
    assert len(jbd2.unpack_tags(noise, form)) <= BLOCK // form.tag_bytes
    jbd2.unpack_commit(noise)
    jbd2.header(noise)
    with suppress(Corrupt):
        jbd2.unpack_revoke(noise, form)


def test_a_revoke_block_that_claims_more_than_itself_is_corrupt() -> None:
    form = layout(Incompat.CSUM_V3)
    block = bytearray(log_blocks.revoke(form, 1, [5]))
    block[12:16] = (BLOCK - 3).to_bytes(4, "big")
    with pytest.raises(Corrupt, match="revoke"):
        jbd2.unpack_revoke(block, form)
    block[12:16] = bytes(4)
    assert jbd2.unpack_revoke(block, form) == []


@pytest.mark.parametrize("incompat", [Incompat.CSUM_V2, Incompat.CSUM_V3])
def test_one_changed_bit_breaks_each_checksum(incompat: int) -> None:
    form = layout(incompat)
    for make, valid in (
        (log_blocks.descriptor(form, 1, [Tag(5, 0)]), jbd2.tail_is_valid),
        (log_blocks.revoke(form, 1, [5]), jbd2.tail_is_valid),
        (log_blocks.commit(form, 1, 2, 3), jbd2.commit_is_valid),
    ):
        assert valid(form, make)
        for at in (8, 19, 40, BLOCK - 1):
            broken = bytearray(make)
            broken[at] ^= 4
            assert not valid(form, broken)


def test_the_transaction_checksum_is_the_kernels_crc32_be() -> None:
    # MSB-first CRC-32 of "123456789" with all ones at the start and no final inversion (CRC-32/MPEG-2).
    assert jbd2.crc32_be(0xFFFFFFFF, b"123456789") == 0x0376E6E7
    assert jbd2.crc32_be(jbd2.crc32_be(0xFFFFFFFF, b"1234"), b"56789") == 0x0376E6E7
    commit = jbd2.unpack_commit(log_blocks.commit(layout(0), 9, 1, 2, 0x1234))
    assert commit.checksum_matches(0x1234)
    assert not commit.checksum_matches(0x1235)
    assert jbd2.unpack_commit(log_blocks.commit(layout(0), 9, 1, 2)).checksum_matches(0x1235)


def _broken_superblocks() -> Iterator[tuple[str, JournalSuperblock]]:
    good = JournalSuperblock.new(BLOCK, 1024, UUID, Incompat.CSUM_V3)
    yield "magic", good._replace(h_magic=1)
    yield "block type", good._replace(h_blocktype=2)
    yield "block size", good._replace(s_blocksize=4096)
    yield "blocks claimed", good._replace(s_maxlen=1025)
    yield "log from", good._replace(s_first=0)
    yield "log from", good._replace(s_first=1024)
    yield "log starts", good._replace(s_start=1024)
    yield "checksum type", good._replace(s_checksum_type=1)
    yield "more than one", good._replace(s_feature_incompat=Incompat.CSUM_V2 | Incompat.CSUM_V3)
    yield "more than one", good._replace(s_feature_compat=1)
    yield "log from", good._replace(s_feature_incompat=Incompat.CSUM_V3 | Incompat.FAST_COMMIT, s_num_fc_blks=1023)


@pytest.mark.parametrize(("message", "superblock"), list(_broken_superblocks()))
def test_an_impossible_superblock_is_corrupt(message: str, superblock: JournalSuperblock) -> None:
    with pytest.raises(Corrupt, match=message):
        jbd2.verify_superblock(superblock.pack(), BLOCK, 1024)


def test_a_superblock_is_what_it_was() -> None:
    good = JournalSuperblock.new(BLOCK, 1024, UUID, Incompat.CSUM_V3 | Incompat.FAST_COMMIT)
    good = good._replace(s_errno=-5, s_num_fc_blks=24, s_head=7, s_users=UUID + bytes(752))
    read = jbd2.verify_superblock(good.pack(), BLOCK, 1024)
    assert read._replace(s_checksum=0) == good
    assert read.log_end == 1000
    assert read.feature_names == ["journal_checksum_v3", "journal_fast_commit"]
    broken = bytearray(good.pack())
    broken[0x18] ^= 1
    with pytest.raises(Corrupt, match="checksum"):
        jbd2.verify_superblock(broken, BLOCK, 1024)
    with pytest.raises(Corrupt, match="too few"):
        jbd2.verify_superblock(bytes(100), BLOCK, 1024)


def test_unknown_features_are_named() -> None:
    odd = JournalSuperblock.new(BLOCK, 1024, UUID, 0x100)
    with pytest.raises(Unsupported, match="0x100"):
        jbd2.verify_superblock(odd.pack(), BLOCK, 1024)


def test_a_version_1_superblock_has_no_features() -> None:
    old = JournalSuperblock.new(BLOCK, 1024, UUID)._replace(h_blocktype=jbd2.SUPERBLOCK_V1, s_feature_incompat=0xFF)
    assert jbd2.verify_superblock(old.pack(), BLOCK, 1024).incompat == 0
