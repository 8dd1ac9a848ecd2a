"""Replay of logs: those of debugfs, of every format, and damaged ones; e2fsck gives the expected result."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import log_blocks
import pytest
from fast_commit_rig import FastCommits
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import FORMATS, JournalRig

from daxfs.errors import Corrupt, FsError, Unsupported
from daxfs.ext4 import jbd2
from daxfs.ext4.fast_commit import NameChange, Tag
from daxfs.ext4.jbd2 import Compat, Format, Incompat
from daxfs.journal import fast_scan, recovery
from daxfs.pmem.memory import MemoryPool
from support import run

# How a log can be protected: (s_feature_compat, s_feature_incompat)
CHECKSUMS = {
    "none": (0, 0),
    "v1": (Compat.CHECKSUM, 0),
    "v2": (0, Incompat.CSUM_V2),
    "v3": (0, Incompat.CSUM_V3),
    "v1 async": (Compat.CHECKSUM, Incompat.ASYNC_COMMIT),
    "v3 async": (0, Incompat.CSUM_V3 | Incompat.ASYNC_COMMIT),
}


class Writer:
    """A writer of logs of any kind, valid or damaged, that uses the format alone."""

    def __init__(
        self,
        *,
        checksums: str = "v3",
        is_64bit: bool = True,
        start: int = 1,
        sequence: int = 100,
        log_blocks: int = 60,
        **fields: int,
    ) -> None:
        self.rig = JournalRig()
        self.pool = MemoryPool(self.rig.content)
        compat, incompat = CHECKSUMS[checksums]
        self.rig.change_superblock(
            self.pool,
            s_feature_compat=int(compat),
            s_feature_incompat=int(incompat | Incompat.REVOKE | (Incompat.BIT64 if is_64bit else 0)),
            s_checksum_type=jbd2.CRC32C_CHKSUM if incompat & (Incompat.CSUM_V2 | Incompat.CSUM_V3) else 0,
            s_maxlen=log_blocks,
            s_start=start,
            s_sequence=sequence,
            **fields,
        )
        self.form = Format.of(self.rig.superblock(self.pool))
        self.v1 = bool(compat)
        self.sequence = sequence
        self.at = start
        self.end = self.rig.superblock(self.pool).log_end
        self.seconds = 1000
        self.sum = 0xFFFFFFFF
        self.positions: dict[str, int] = {}

    def put(self, block: bytes, name: str = "") -> None:
        self.positions[name] = self.at
        self.pool.write(self.rig.place(self.at), block)
        self.at = self.at + 1 if self.at + 1 < self.end else 1

    def blocks(self, contents: dict[int, bytes], **changed: int) -> Writer:
        tags, copies = [], []
        for number, content in contents.items():
            escaped = jbd2.escapes(content)
            logged = bytes(4) + content[4:] if escaped else content
            checksum = jbd2.block_checksum(self.form, self.sequence, logged)
            tags.append(jbd2.Tag(changed.get("home", number), jbd2.FLAG_ESCAPE * escaped, checksum))
            copies.append(logged)
        descriptor = log_blocks.descriptor(self.form, self.sequence, tags)
        for name, block in (("descriptor", descriptor), *((f"copy {i}", copy) for i, copy in enumerate(copies))):
            self.sum = jbd2.crc32_be(self.sum, block)
            self.put(block, name)
        return self

    def revoke(self, *numbers: int) -> Writer:
        self.put(log_blocks.revoke(self.form, self.sequence, numbers), "revoke")
        return self

    def commit(self, *, seconds: int = 0) -> Writer:
        self.seconds = seconds or self.seconds + 1
        record = log_blocks.commit(self.form, self.sequence, self.seconds, 0, self.sum if self.v1 else None)
        self.put(record, "commit")
        self.sum = 0xFFFFFFFF
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        return self

    def damage(self, name: str, at: int = -100) -> Writer:
        """Change a byte of the block that was written last under a name."""
        offset = self.rig.place(self.positions[name]) + at % self.rig.block_size
        self.pool.write(offset, bytes([self.pool.memory[offset] ^ 0x55]))
        return self

    def replay(self) -> recovery.RecoveryReport:
        return recovery.replay(self.pool, self.rig.geometry, self.rig.area)

    def refused(self, error: type[FsError], match: str) -> None:
        """Check that replay raises an error and leaves the pool unchanged."""
        before = self.pool.image()
        with pytest.raises(error, match=match):
            self.replay()
        assert self.pool.image() == before


every_kind = pytest.mark.parametrize("is_64bit", [True, False], ids=["64bit", "32bit"])
every_checksum = pytest.mark.parametrize("checksums", CHECKSUMS)


@every_checksum
@every_kind
def test_logs_of_every_kind(tmp_path: Path, checksums: str, is_64bit: bool) -> None:
    writer = Writer(checksums=checksums, is_64bit=is_64bit, start=50, sequence=0xFFFFFFFE)
    rig = writer.rig
    a, b, c, d = rig.free[:4]
    writer.blocks({a: rig.filled(1), b: rig.filled(2, escaped=True), c: rig.filled(3)}).commit()
    writer.blocks({d: rig.filled(4)}).revoke(a, c).commit()
    writer.blocks({c: rig.filled(5)}).blocks({d: rig.filled(6, escaped=True)}).commit()
    writer.blocks({b: rig.filled(9), d: rig.filled(9)})  # never committed
    image = writer.pool.image()
    report = writer.replay()
    expected = {b: rig.filled(2, escaped=True), c: rig.filled(5), d: rig.filled(6, escaped=True)}
    assert rig.contents(writer.pool) == expected
    assert (report.transactions, report.first_sequence, report.next_sequence) == (3, 0xFFFFFFFE, 1)
    assert (report.replayed, report.revoked, report.clean) == (3, 2, False)
    sb = rig.superblock(writer.pool)
    assert sb.s_start == 0
    assert sb.has_checksum or sb.s_sequence == 2
    assert rig.contents(rig.after_e2fsck(image, tmp_path / "pool")) == expected
    again = writer.replay()
    assert again.clean
    assert again.next_sequence == sb.s_sequence + 1 & 0xFFFFFFFF


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("opening", ["jo", "jo -c", "jo -c -v 2"])
def test_logs_of_debugfs(tmp_path: Path, name: str, opening: str) -> None:
    rig = JournalRig(name)
    rng = random.Random(name + opening)
    path, data = tmp_path / "pool", tmp_path / "data"
    path.write_bytes(rig.clean)
    v1 = "-c" in opening and "no checksums" in name  # debugfs includes revoke blocks in its sum; no reader does
    for number in range(5):
        homes = rng.sample(list(rig.free), rng.randint(1, 8))
        data.write_bytes(b"".join(rig.filled(100 * number + home, escaped=rng.random() < 0.3) for home in homes))
        revoked = rng.sample([block for block in rig.free if block not in homes], rng.randint(0, 5))
        options = f"-b {','.join(map(str, homes))}"
        if revoked and not v1:
            options += f" -r {','.join(map(str, revoked))}"
        if number == 4:
            options += " -c"
        run("debugfs", "-w", "-f", "-", path, stdin=f"{opening}\njw {options} {data}\njc\n")
    mine = MemoryPool(path.read_bytes())
    report = recovery.replay(mine, rig.geometry, rig.area)
    assert report.transactions == 4
    theirs = rig.after_e2fsck(path.read_bytes(), path)
    assert rig.contents(mine) == rig.contents(theirs)
    assert rig.contents(mine)


@every_checksum
def test_a_revoke_covers_its_own_transaction_and_what_came_before(checksums: str) -> None:
    writer = Writer(checksums=checksums)
    rig = writer.rig
    a, b = rig.free[:2]
    writer.blocks({a: rig.filled(1), b: rig.filled(1)}).commit()
    writer.blocks({a: rig.filled(2)}).revoke(a).commit()
    writer.revoke(b).commit()
    writer.blocks({b: rig.filled(3)}).commit()
    writer.replay()
    assert rig.contents(writer.pool) == {b: rig.filled(3)}


# Damage


@pytest.mark.parametrize("checksums", ["v2", "v3", "v3 async"])
def test_a_bad_copy_in_a_committed_transaction(checksums: str) -> None:
    writer = Writer(checksums=checksums)
    writer.blocks({block: writer.rig.filled(1) for block in writer.rig.free[:3]}).commit()
    writer.damage("copy 1")
    writer.refused(Corrupt, f"journal block checksum: copy of block {writer.rig.free[1]} in transaction 100")


@pytest.mark.parametrize("checksums", ["v2", "v3"])
def test_a_revoked_bad_copy_does_not_matter(checksums: str) -> None:
    writer = Writer(checksums=checksums)
    block = writer.rig.free[0]
    writer.blocks({block: writer.rig.filled(1)}).commit().damage("copy 0").revoke(block).commit()
    assert writer.replay().revoked == 1


@pytest.mark.parametrize("which", ["descriptor", "revoke"])
def test_a_bad_descriptor_or_revoke_block(which: str) -> None:
    writer = Writer()
    writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).revoke(5).commit().damage(which)
    writer.refused(Corrupt, "journal descriptor checksum: transaction 100")


@pytest.mark.parametrize("which", ["descriptor", "revoke", "commit"])
def test_a_bad_block_of_an_older_log_ends_the_log(which: str) -> None:
    """A transaction with an earlier commit time is a leftover (jbd2 since 5.10)."""
    writer = Writer()
    rig = writer.rig
    writer.blocks({rig.free[0]: rig.filled(1)}).commit()
    writer.blocks({rig.free[1]: rig.filled(2)}).revoke(rig.free[0]).commit(seconds=500).damage(which)
    assert writer.replay().transactions == 1
    assert rig.contents(writer.pool) == {rig.free[0]: rig.filled(1)}


@pytest.mark.parametrize("checksums", ["v1", "v2", "v3"])
def test_a_bad_commit_record(checksums: str) -> None:
    writer = Writer(checksums=checksums)
    for number in range(2):
        writer.blocks({writer.rig.free[number]: writer.rig.filled(1)}).commit()
    writer.damage("copy 0" if checksums == "v1" else "commit")
    writer.refused(Corrupt, "journal commit checksum: transaction 101")


@pytest.mark.parametrize("checksums", ["v1 async", "v3 async"])
def test_a_bad_async_commit_record_ends_the_log(checksums: str, tmp_path: Path) -> None:
    writer = Writer(checksums=checksums)
    rig = writer.rig
    for number in range(2):
        writer.blocks({rig.free[number]: rig.filled(1)}).commit()
    writer.damage("copy 0" if checksums == "v1 async" else "commit")
    image = writer.pool.image()
    assert writer.replay().transactions == 1
    assert rig.contents(writer.pool) == {rig.free[0]: rig.filled(1)}
    assert rig.contents(rig.after_e2fsck(image, tmp_path / "pool")) == rig.contents(writer.pool)


def test_a_bad_async_v1_record_before_another_transaction() -> None:
    writer = Writer(checksums="v1 async")
    for number in range(2):
        writer.blocks({writer.rig.free[number]: writer.rig.filled(1)}).commit()
        if not number:
            writer.damage("copy 0")
    writer.refused(Corrupt, "journal commit checksum: transaction 100")


def test_a_v1_record_without_a_checksum_is_taken() -> None:
    writer = Writer(checksums="v1")
    writer.v1 = False
    writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).commit()
    assert writer.replay().replayed == 1


def test_block_numbers_out_of_bounds() -> None:
    rig = JournalRig()
    limit = rig.geometry.blocks_count
    for home in (limit, 1 << 40, rig.area.physical(0), rig.area.physical(500)):
        writer = Writer()
        writer.blocks({rig.free[0]: rig.filled(1)}).commit()
        writer.blocks({rig.free[1]: rig.filled(1)}, home=home).commit()
        writer.refused(Corrupt, f"journal block number: {home} in transaction 101")


def test_a_revoke_list_longer_than_its_block() -> None:
    writer = Writer(checksums="none").revoke(5).commit()
    writer.pool.write(writer.rig.place(writer.positions["revoke"]) + 12, struct.pack(">I", 5000))
    writer.refused(Corrupt, "journal revoke block")


def test_a_log_that_loops() -> None:
    """Recovery ends on a transaction without end: descriptors all around the log. jbd2 would not stop."""
    writer = Writer(checksums="none")
    for count in [2] * 19 + [1]:
        writer.blocks({block: writer.rig.filled(1) for block in writer.rig.free[:count]})
    assert writer.at == 1
    assert writer.replay().transactions == 0
    writer = Writer(checksums="none")
    for _ in range(59):
        writer.revoke(7)
    assert writer.replay().transactions == 0
    assert writer.rig.contents(writer.pool) == {}


def test_a_block_of_unknown_type_ends_the_log() -> None:
    writer = Writer()
    writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).commit()
    writer.put(log_blocks.header(77, writer.sequence).ljust(writer.rig.block_size, b"\0"))
    writer.commit()
    assert writer.replay().transactions == 1


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"s_start": 60}, Corrupt),
        ({"s_start": 5000}, Corrupt),
        ({"s_first": 0}, Corrupt),
        ({"s_maxlen": 1025}, Corrupt),
        ({"s_blocksize": 4096}, Corrupt),
        ({"h_magic": 1}, Corrupt),
        ({"s_checksum_type": 1}, Corrupt),
        ({"s_feature_incompat": 0x12 | 0x80}, Unsupported),
        ({"s_feature_ro_compat": 1}, Unsupported),
    ],
)
def test_damaged_superblocks(fields: dict[str, int], error: type[FsError]) -> None:
    writer = Writer()
    writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).commit()
    writer.rig.change_superblock(writer.pool, **fields)
    writer.refused(error, "journal")


def test_a_bad_checksum_of_the_superblock() -> None:
    writer = Writer()
    writer.positions["superblock"] = 0
    writer.damage("superblock", 0x19)
    writer.refused(Corrupt, "journal superblock checksum")


@pytest.mark.parametrize("sequence", [100, 101, 102])
def test_fast_commits(sequence: int) -> None:
    """Those of the transaction behind the last one are returned, with its place; the log waits for them."""
    incompat = Incompat.CSUM_V3 | Incompat.BIT64 | Incompat.FAST_COMMIT
    writer = Writer(log_blocks=1024, s_num_fc_blks=300, start=721)
    writer.rig.change_superblock(writer.pool, s_feature_incompat=int(incompat), s_num_fc_blks=300)
    writer.end = writer.rig.superblock(writer.pool).log_end
    assert writer.end == 724
    rig = writer.rig
    writer.blocks({rig.free[0]: rig.filled(1), rig.free[1]: rig.filled(2)}).commit()  # wraps at the log's end
    assert writer.at == 2
    area = FastCommits(rig.block_size, sequence).link(2, 12, b"name").tail()
    writer.pool.write(rig.place(725), area.content)
    report = writer.replay()
    assert report.replayed == 2
    if sequence == 101:
        assert report.fast == fast_scan.FastCommits((NameChange(Tag.LINK, 2, 12, b"name"),), 1, 101, 2)
        assert rig.superblock(writer.pool).s_start == 721
        assert writer.replay() == report
    else:
        assert report.fast is None
        assert rig.superblock(writer.pool).s_start == 0


def test_a_torn_first_fast_commit_is_refused() -> None:
    writer = Writer(log_blocks=1024, s_num_fc_blks=300)
    incompat = Incompat.CSUM_V3 | Incompat.BIT64 | Incompat.FAST_COMMIT
    writer.rig.change_superblock(writer.pool, s_feature_incompat=int(incompat))
    writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).commit()
    area = FastCommits(writer.rig.block_size, 101).link(2, 12, b"name").tail()
    writer.pool.write(writer.rig.place(725), area.content[:20])
    writer.refused(Corrupt, "fast commit: the first one has a record without sense; e2fsck -fy goes on without it")


def test_wiping_discards_what_is_there() -> None:
    for damaged in (False, True):
        writer = Writer()
        writer.blocks({writer.rig.free[0]: writer.rig.filled(1)}).commit()
        if damaged:
            writer.damage("commit")
        assert recovery.wipe(writer.pool, writer.rig.geometry, writer.rig.area)
        assert not recovery.wipe(writer.pool, writer.rig.geometry, writer.rig.area)
        assert writer.rig.contents(writer.pool) == {}
        sb = writer.rig.superblock(writer.pool)
        assert sb.s_start == 0
        assert recovery.is_newer(sb.s_sequence, 101 if not damaged else 100)


def test_sequence_numbers_wrap() -> None:
    assert recovery.is_newer(0, 0xFFFFFFFF)
    assert not recovery.is_newer(0xFFFFFFFF, 0)
    assert not recovery.is_newer(5, 5)


@settings(deadline=None, max_examples=150)
@given(
    damage=st.lists(st.tuples(st.integers(0, 14), st.integers(0, 1023), st.binary(min_size=1, max_size=8)), max_size=4),
    checksums=st.sampled_from(list(CHECKSUMS)),
    forged=st.booleans(),
)
def test_hostile_logs_end_in_a_named_error_or_a_replay(
    damage: list[tuple[int, int, bytes]], checksums: str, forged: bool
) -> None:
    """Whatever the log holds, replay stores nothing in the journal's own blocks or outside the file system."""
    writer = Writer(checksums=checksums)
    rig = writer.rig
    for number in range(3):
        writer.blocks({block: rig.filled(number) for block in rig.free[number : number + 2]}).revoke(5).commit()
    for position, at, content in damage:
        at = min(at, 1024 - len(content))
        writer.pool.write(rig.place(position) + at, content)
    if forged and any(position == 0 for position, _, _ in damage):
        start = rig.place(0)
        sb = jbd2.JournalSuperblock.unpack(writer.pool.memory[start : start + 1024])
        writer.pool.write(start, sb.pack())
    before = writer.pool.image()
    log = [(rig.place(position), rig.block_size) for position in range(1, rig.area.blocks)]
    try:
        writer.replay()
    except (Corrupt, Unsupported):
        assert writer.pool.image() == before
    else:
        after = writer.pool.memory
        assert all(after[start : start + size] == before[start : start + size] for start, size in log)
