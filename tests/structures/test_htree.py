"""Indexed directories: every hash, splits, more levels, collisions, indexes made by e2fsck; damage; random walks."""

from __future__ import annotations

import errno
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from directory_rig import ROOT, DirectoryRig, make_image
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from in_memory import SHARED_MEMORY

from daxfs.errors import Corrupt, FsError
from daxfs.ext4.dirent import space_needed
from daxfs.ext4.hash import LEGACY, dirhash
from daxfs.ext4.inode import EXT4_INDEX_FL, FT_REG_FILE
from daxfs.structures import dirblocks, directories, htree
from daxfs.structures.noted import Noted
from support import run

LONG = b"x" * 247
COLLIDING = [LONG + end for end in (b"dnpba\xea\xca", b"eelma\x84\xaf", b"dkubb\xe2\xde", b"plleb\xc3\xe7")]
"""Return names with one legacy hash (signed chars); only three of them fit into a leaf of 1 KiB."""


def make(
    path: Path, *options: str, hash_name: str = "half_md4", unsigned: bool = False, size: str = "32M"
) -> DirectoryRig:
    make_image(path, "-b", "1024", *options, size=size)
    run("tune2fs", "-E", f"hash_alg={hash_name}", path)
    run("debugfs", "-w", "-R", f"set_super_value flags {2 if unsigned else 1}", path)
    return DirectoryRig(path)


@pytest.fixture
def rig(tmp_path: Path) -> DirectoryRig:
    return make(tmp_path / "pool")


def names(count: int) -> list[bytes]:
    return [b"%05d \xe4\xf6\x80%s" % (i, b"-" * (i * 7 % 60)) for i in range(count)]


@pytest.mark.parametrize(
    "options", [(), ("-O", "^metadata_csum"), ("-O", "^filetype")], ids=["", "no checksums", "no types"]
)
@pytest.mark.parametrize("unsigned", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("hash_name", ["legacy", "half_md4", "tea"])
def test_hashes(tmp_path: Path, hash_name: str, unsigned: bool, options: tuple[str, ...]) -> None:
    rig = make(tmp_path / "pool", *options, hash_name=hash_name, unsigned=unsigned)
    rig.insert_many(names(600))
    assert rig.inode.flags & EXT4_INDEX_FL
    rig.remount()
    rig.remove(*names(600)[100:500:3])
    rig.close()


@pytest.mark.parametrize("block_size", ["1024", "2048", "4096"])
def test_one_block_becomes_an_index(tmp_path: Path, block_size: str) -> None:
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", block_size))
    before = [(entry.name, entry.cookie) for entry in rig.listing()]
    i = 0
    while not rig.inode.flags & EXT4_INDEX_FL:
        before = [(entry.name, entry.cookie) for entry in rig.listing()]
        rig.insert(b"name %d" % i)
        i += 1
    assert rig.inode.size in (2 * int(block_size), 3 * int(block_size))
    assert directories.parent(rig.view, rig.inode) == ROOT
    after = [(entry.name, entry.cookie) for entry in rig.listing()]
    assert set(before) < set(after)
    assert rig.depth() == 0
    rig.close()


def test_two_levels(rig: DirectoryRig) -> None:
    """With long names in small blocks, nodes are split too."""
    rig.insert_many([b"%05d" % i * 40 for i in range(1500)])
    dump = rig.htree()
    assert "Indirect levels: 1" in dump
    assert dump.count("Number of entries (count)") > 2
    rig.check()
    found = run("debugfs", "-R", f"dirsearch <{rig.ino}> {'00777' * 40}", rig.path)
    assert "Entry found" in found
    listed = run("debugfs", "-R", f"ls <{rig.ino}>", rig.path)
    assert listed.count("00001" * 40) == 1
    rig.remove(*list(rig.model)[:1200])
    size = rig.inode.size
    rig.insert_many([b"%05d" % i * 40 for i in range(2000, 2300)])
    assert rig.inode.size >= size
    rig.close()


@pytest.mark.interpreted
def test_three_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With large_dir an index may have three levels; the limit of nodes is faked, or it would take 30,000 names."""
    rig = make(tmp_path / "pool", "-O", "large_dir,^metadata_csum")
    monkeypatch.setattr(htree.Step, "full", property(lambda step: step.words[step.base] >> 16 >= 8))
    rig.insert_many([b"%05d" % i * 50 for i in range(350)])
    assert rig.depth() == 2
    rig.close()


@pytest.mark.interpreted
def test_a_full_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make(tmp_path / "pool")
    monkeypatch.setattr(htree.Step, "full", property(lambda step: step.words[step.base] >> 16 >= 5))
    with pytest.raises(FsError) as caught:
        rig.insert_many([b"%05d" % i * 50 for i in range(600)], 1)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert rig.depth() == 1
    rig.close()


def test_one_hash_in_several_leaves(tmp_path: Path) -> None:
    rig = make(tmp_path / "pool", hash_name="legacy")
    hashes = {dirhash(name, LEGACY, rig.geometry.hash_seed) for name in COLLIDING}
    assert len(hashes) == 1
    for at, name in enumerate(COLLIDING):
        rig.insert(name, *[b"%d.%d" % (at, i) * 20 for i in range(4)])
        rig.check()
    assert "(**)" in rig.htree()  # debugfs marks a leaf that continues the hash of the leaf before it
    seen = []
    cookie = 0
    while more := next(iter(directories.entries(rig.view, rig.inode, cookie)), None):
        seen.append(more.name)
        cookie = more.cookie
    assert sorted(seen) == sorted([b".", b"..", *rig.model])
    for name in COLLIDING[::2]:
        rig.remove(name)
    rig.check()
    rig.insert(*COLLIDING[::2])
    rig.close()


def test_what_e2fsck_rebuilt(tmp_path: Path) -> None:
    """e2fsck -D makes an index for a linear directory, and packs its leaves."""
    path = make_image(tmp_path / "pool", "-b", "1024", "-O", "^dir_index")
    rig = DirectoryRig(path)
    rig.insert_many(names(500))
    rig.commit_consistent()
    rig.journal.close()
    rig.pool.close()
    run("tune2fs", "-O", "dir_index", path)
    run("e2fsck", "-fyD", path)
    rig.open()
    assert rig.inode.flags & EXT4_INDEX_FL
    rig.check()
    rig.insert_many([b"new" + name for name in names(300)])
    rig.remove(*names(500)[::2])
    rig.close()


def test_empty_leaves_stay(rig: DirectoryRig) -> None:
    rig.insert_many(names(300))
    size = rig.inode.size
    rig.remove(*list(rig.model))
    assert rig.inode.size == size
    assert directories.is_empty(rig.view, rig.inode)
    assert len(rig.listing()) == 2
    rig.remount()
    rig.insert_many(names(300))
    assert rig.inode.size == size
    rig.close()


def test_the_other_parent(rig: DirectoryRig) -> None:
    """The entry ".." lies in the root of the index, and can be changed there."""
    rig.insert_many(names(100))
    above = rig.make_directory(b"above")
    with rig.change() as (tx, inode):
        directories.set_parent(tx, inode, above)
    assert directories.parent(rig.view, rig.inode) == above
    assert rig.find(b"..").ino == above
    with rig.change() as (tx, inode):
        directories.set_parent(tx, inode, ROOT)
    rig.close()


@pytest.mark.parametrize(
    "sizes", [[12] * 80, [264, 264, 264], [264, 12, 264, 12, 264], [12] * 20 + [264] * 2, [264, 264]]
)
def test_both_halves_have_room(sizes: list[int]) -> None:
    split = htree._split_point(sizes, 1024)
    assert 0 < split < len(sizes)
    for half in (sizes[:split], sizes[split:]):
        assert sum(half) + space_needed(255) <= 1024 - 12


# Damage


def damage(rig: DirectoryRig, lblk: int, change: Callable[[memoryview], None]) -> None:
    """Change a block in the pool itself, with the right checksum."""
    rig.commit_consistent()
    with rig.change() as (tx, inode):
        change(dirblocks.writable(tx, inode, dirblocks.number_of(tx, inode, lblk)))
    rig.remount()


def put(offset: int, layout: str, *values: int) -> Callable[[memoryview], None]:
    return lambda block: struct.pack_into(layout, block, offset, *values)


def all_refused(rig: DirectoryRig, *, insert: bool = True) -> set[str]:
    """A damaged index hides no name from readers; whoever makes a name is refused."""
    entries = rig.listing()
    assert [entry.name for entry in entries[:2]] == [b".", b".."]
    assert sorted(entry.name for entry in entries[2:]) == sorted(rig.model)
    assert [entry.cookie for entry in entries] == sorted({entry.cookie for entry in entries})
    for entry in entries[2:]:
        assert rig.listing(entry.cookie) == entries[entries.index(entry) + 1 :]
    kinds = {error.kind for error in rig.view.caches[Noted].waiting}
    assert kinds
    actions: list[Callable[[], object]] = []
    if insert:
        assert all(rig.find(name) for name in rig.model)
        actions += [lambda: rig.insert(b"new"), lambda: rig.find(b"new")]
    for action in actions:
        with pytest.raises(Corrupt) as caught:
            action()
        kinds.add(caught.value.kind)
    rig.pool.close()
    return kinds


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "none"])
@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (24, "<I", 1),  # reserved_zero
        (28, "<B", 3),  # hash version
        (28, "<B", 6),
        (29, "<B", 9),  # info_length
        (30, "<B", 2),  # indirect_levels
        (30, "<B", 1),  # one level more than there is
        (31, "<B", 1),  # unused_flags
        (32, "<H", 5000),  # limit
        (34, "<H", 0),  # count
        (34, "<H", 124),
        (36, "<I", 0),  # leads to the root
        (36, "<I", 5000),  # past the directory's end
    ],
)
def test_damaged_roots(tmp_path: Path, offset: int, layout: str, value: int, checksums: bool) -> None:
    rig = make(tmp_path / "pool", *(() if checksums else ("-O", "^metadata_csum")))
    rig.insert_many(names(60))
    try:
        damage(rig, 0, put(offset, layout, value))
    except Corrupt:
        # No checksum can be made for such a block.
        assert checksums
        return
    # Pair 0 leads to names with low hashes only, so the search for other names does not use it.
    kinds = all_refused(rig, insert=offset != 36)
    assert all(kind.startswith("directory") for kind in kinds)


def test_pairs_out_of_order(rig: DirectoryRig) -> None:
    rig.insert_many(names(200))

    def swap(block: memoryview) -> None:
        w = block.cast("I")
        w[10], w[12] = w[12], w[10]

    damage(rig, 0, swap)
    assert all_refused(rig) == {"directory index"}


def test_names_in_the_wrong_leaf(rig: DirectoryRig) -> None:
    rig.insert_many(names(200))

    def swap(block: memoryview) -> None:
        w = block.cast("I")
        w[9], w[11] = w[11], w[9]

    damage(rig, 0, swap)
    assert all_refused(rig, insert=False) == {"directory leaf"}


def test_a_listing_of_a_damaged_directory_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A name that only a search of all blocks finds is found there in each listing, from wherever it begins."""
    rig = make(tmp_path / "pool", "-O", "^metadata_csum")
    rig.insert_many(names(600))

    def cut(block: memoryview) -> None:
        w = block.cast("I")
        w[9 + 2 * ((w[8] >> 16) - 1)] = 5000  # the last leaf can't be reached

    damage(rig, 0, cut)
    whole = rig.listing()
    assert {entry.name for entry in whole} == {b".", b"..", *rig.model}
    for at in range(2, len(whole), 37):
        assert rig.listing(whole[at].cookie) == whole[at + 1 :]
    rig.pool.close()


def test_a_leaf_listed_over_and_over(tmp_path: Path) -> None:
    """A search ends even in an index whose pairs all lead to one empty leaf."""
    rig = make(tmp_path / "pool", "-O", "^metadata_csum")
    rig.insert_many(names(200))
    rig.remove(*list(rig.model))

    def repeat(block: memoryview) -> None:
        w = block.cast("I")
        count = 100
        w[8] = w[8] & 0xFFFF | count << 16
        for i in range(1, count):
            w[8 + 2 * i] = 0x10001
            w[9 + 2 * i] = w[9]

    damage(rig, 0, repeat)
    assert all_refused(rig, insert=False) == {"directory index"}


@pytest.mark.parametrize("lblk", [0, 1], ids=["root", "leaf"])
def test_wrong_checksums(rig: DirectoryRig, lblk: int) -> None:
    rig.insert_many(names(200))
    rig.commit_consistent()
    start = dirblocks.number_of(rig.view, rig.inode, lblk) * 1024
    at = start + (32 + 8 * 2 if not lblk else 10)
    rig.pool.write(at, bytes((rig.pool.memory[at] ^ 1,)))
    rig.remount()
    if not lblk:
        assert all_refused(rig) == {"directory index checksum"}
        return
    listed = {entry.name for entry in rig.listing()} - {b".", b".."}
    assert listed < set(rig.model)
    assert len(listed) > len(rig.model) // 2
    assert all(rig.find(name) for name in listed)
    assert {error.kind for error in rig.view.caches[Noted].waiting} == {"directory block checksum"}
    for name in set(rig.model) - listed:
        with pytest.raises(Corrupt):
            rig.find(name)
    rig.pool.close()


# A random walk


class Walk(RuleBasedStateMachine):
    """Names are added and removed in 1 KiB blocks while readers list them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=SHARED_MEMORY))
        self.counter = 0
        # cookie, names that were present all the time, names seen
        self.readers: list[tuple[int, set[bytes], list[bytes]]] = []

    @initialize(
        hash_name=st.sampled_from(["legacy", "half_md4", "tea"]),
        unsigned=st.booleans(),
        options=st.sampled_from([(), ("-O", "^metadata_csum"), ("-O", "^filetype"), ("-O", "^dir_index")]),
    )
    def start(self, hash_name: str, unsigned: bool, options: tuple[str, ...]) -> None:
        self.rig = make(self.folder / "pool", *options, hash_name=hash_name, unsigned=unsigned)

    @rule(new=st.sets(st.binary(min_size=1, max_size=255).filter(lambda n: not set(n) & {0, 0x2F} and n.strip(b"."))))
    def add_any(self, new: set[bytes]) -> None:
        self.rig.insert_many(sorted(new - self.rig.model.keys()))

    @rule(count=st.integers(1, 400), length=st.integers(1, 240))
    def add_many(self, count: int, length: int) -> None:
        self.counter += 1
        self.rig.insert_many([b"%d.%d." % (self.counter, i) + b"n" * length for i in range(count)])

    @rule(data=st.data(), count=st.integers(1, 200))
    def remove(self, data: st.DataObject, count: int) -> None:
        there = sorted(self.rig.model)
        if there:
            first = data.draw(st.integers(0, len(there) - 1))
            step = data.draw(st.integers(1, 5))
            gone = there[first : first + count * step : step]
            self.rig.remove(*gone)
            for _, stays, _ in self.readers:
                stays.difference_update(gone)

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        if self.rig.model:
            name = data.draw(st.sampled_from(sorted(self.rig.model)))
            with self.rig.change() as (tx, inode):
                directories.replace(tx, directories.find(tx, inode, name), self.rig.target, FT_REG_FILE)

    @rule(count=st.integers(1, 100))
    def fail(self, count: int) -> None:
        with pytest.raises(ZeroDivisionError):
            self._fail(count)

    def _fail(self, count: int) -> None:
        with self.rig.change() as (tx, inode):
            gone = [directories.find(tx, inode, name) for name in list(self.rig.model)[:count]]
            for i in range(count):
                directories.insert(tx, directories.find(tx, inode, b"never.%d" % i * 9), self.rig.target, FT_REG_FILE)
            for place in gone:
                directories.remove(tx, place)
            raise ZeroDivisionError

    @rule()
    def remount(self) -> None:
        self.rig.remount()

    @rule()
    def begin_to_list(self) -> None:
        self.readers.append((0, set(self.rig.model), []))

    @rule(data=st.data(), count=st.integers(1, 300))
    def go_on_listing(self, data: st.DataObject, count: int) -> None:
        if not self.readers:
            return
        at = data.draw(st.integers(0, len(self.readers) - 1))
        cookie, stays, seen = self.readers[at]
        listed = directories.entries(self.rig.view, self.rig.inode, cookie)
        for entry, _ in zip(listed, range(count), strict=False):
            seen.append(entry.name)
            cookie = entry.cookie
        self.readers[at] = cookie, stays, seen

    @rule()
    def check(self) -> None:
        self.rig.check()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            for cookie, stays, seen in self.readers:
                seen += [entry.name for entry in directories.entries(self.rig.view, self.rig.inode, cookie)]
                counts = {name: seen.count(name) for name in stays} if len(stays) < 300 else dict.fromkeys(stays, 1)
                assert set(counts.values()) <= {1}
                assert stays <= set(seen)
            self.rig.close()
        shutil.rmtree(self.folder)


def test_a_random_walk() -> None:
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_long_random_walk() -> None:
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
