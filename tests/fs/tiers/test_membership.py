"""Storage joins and leaves a pool that is in use: sizes, places, content, and refusals that change nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tier_rig
from in_memory import tmp_path
from tier_rig import GROUP, MIB, OPTIONS, Members

from daxfs.errors import FsError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import members
from daxfs.fs.types import ROOT_INO
from daxfs.pmem.storage import CONTENT, Storage
from daxfs.structures import groups, inodes
from daxfs.tools.mkfs import make_pool
from support import run

__all__ = ["tmp_path"]

MEMORY = 4 * GROUP


@pytest.fixture
def plain(tmp_path: Path) -> Members:
    """Return a pool without storage, and the path of some."""
    made = Members(tmp_path / "pool", tmp_path / "slow")
    make_pool(made.pool, MEMORY, OPTIONS, sparse=True)
    return made


@pytest.fixture
def fs(plain: Members) -> Iterator[FileSystem]:
    with FileSystem.open(plain.pool) as fs:
        yield fs
        fs.volume.check()
    plain.check()


def new_file(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size + CONTENT)
    return path


def demoted(fs: FileSystem, name: str, content: bytes) -> None:
    fs.tree.write_bytes(f"/{name}", content)
    assert not fs.demote(fs.lookup(ROOT_INO, name.encode()).ino).stayed


def test_a_pool_gets_storage_and_loses_it(fs: FileSystem, plain: Members) -> None:
    before = fs.statfs()
    content = os.urandom(5 * MIB)
    fs.tree.write_bytes("/before", content)
    free = fs.statfs().free
    done = fs.add_storage(str(new_file(plain.storage, 8 * GROUP + 5 * MIB)))
    assert (done.before << 12, done.blocks << 12) == (MEMORY, MEMORY + 8 * GROUP)
    use, after = fs.tier_use(), fs.statfs()
    assert use.memory == MEMORY
    assert after.files == before.files, "inodes stay in memory"
    assert after.files_free == before.files_free - 1
    table = fs.volume.geometry.inode_blocks_per_group << 12
    assert 8 * (GROUP - table) - use.storage_free < 8 * 2**20, "but tables, and copies of the superblock"
    assert use.memory_free >= (free << 12) - (2 * 8 + 1) * 4096
    demoted(fs, "cold", content)
    assert fs.tree.read_bytes("/cold") == fs.tree.read_bytes("/before") == content
    for number in range(200):
        fs.tree.mkdir(f"/{number}")
        fs.tree.write_bytes(f"/{number}/f", b"x" * 5000)
        ino = fs.lookup(ROOT_INO, str(number).encode()).ino
        assert inodes.position(fs.volume.view, ino)[0] < MEMORY >> 12
    fs.sync()
    plain.check()
    done = fs.remove_storage(str(plain.storage))
    assert done.blocks << 12 == MEMORY
    assert fs.storages == []
    assert fs.tree.read_bytes("/cold") == content
    with pytest.raises(FsError):
        fs.demote(fs.lookup(ROOT_INO, b"cold").ino)
    with pytest.raises(FsError) as absent:
        fs.getxattr(ROOT_INO, members.ATTRIBUTE)
    assert absent.value.errno == errno.ENODATA
    left = Storage(str(plain.storage))
    assert left.label() is None
    left.close()
    fs.add_storage(str(plain.storage))
    demoted(fs, "again", content)
    assert fs.tree.read_bytes("/again") == content


def test_it_is_there_at_the_next_mount(plain: Members) -> None:
    content = os.urandom(3 * MIB)
    with FileSystem.open(plain.pool) as fs:
        fs.add_storage(str(new_file(plain.storage, 2 * GROUP)))
        fs.add_storage(str(new_file(plain.storage.with_name("slow2"), 3 * GROUP)))
        demoted(fs, "f", content)
        places = fs.volume.geometry.inode_groups
    with FileSystem.open(plain.pool) as fs:
        assert fs.storages == [str(plain.storage), str(plain.storage.with_name("slow2"))]
        assert fs.tree.read_bytes("/f") == content
        assert fs.volume.geometry.inode_groups == places == 4
        assert [each.size for each in fs.tier_use().members] == [2 * GROUP, 3 * GROUP]
    plain.check()
    with FileSystem.open(plain.pool) as fs:
        with pytest.raises(FsError, match="slow2 can leave now"):
            fs.remove_storage(str(plain.storage))
        fs.remove_storage(str(plain.storage.with_name("slow2")))
        assert fs.storages == [str(plain.storage)]
        assert fs.tree.read_bytes("/f") == content
    plain.check()


def test_what_lies_on_the_last_member_moves_to_others_first(fs: FileSystem, plain: Members) -> None:
    fs.add_storage(str(new_file(plain.storage, 2 * GROUP)))
    other = new_file(plain.storage.with_name("slow2"), 2 * GROUP)
    fs.add_storage(str(other))
    contents = [os.urandom(3 * MIB) for _ in range(8)]
    for number, content in enumerate(contents):
        demoted(fs, str(number), content)
        fs.sync()
    for number in range(4):
        fs.tree.unlink(f"/{number}")
    fs.sync()
    first, second = (each.size - each.free for each in fs.tier_use().members)
    assert second
    memory = fs.tier_use().memory_free
    fs.remove_storage(str(other))
    (member,) = fs.tier_use().members
    assert member.size - member.free >= first + 2 * MIB
    assert abs(fs.tier_use().memory_free - memory) < MIB
    for number, content in enumerate(contents[4:], 4):
        assert fs.tree.read_bytes(f"/{number}") == content


def test_made_with_storage_and_grown_later(tmp_path: Path) -> None:
    """Inodes of groups of such a pool have tables in memory; those of later groups are not used."""
    made = tier_rig.make_several(tmp_path, MEMORY, [GROUP])
    content = os.urandom(2 * MIB)
    with FileSystem.open(made.pool) as fs:
        assert fs.volume.geometry.inode_groups == 5
        demoted(fs, "f", content)
        os.truncate(made.storage, 3 * GROUP + CONTENT + MIB)
        assert fs.resize().blocks << 12 == MEMORY + 3 * GROUP
        assert fs.resize().blocks << 12 == MEMORY + 3 * GROUP
        assert fs.volume.geometry.inode_groups == 5
        demoted(fs, "g", content * 3)
        assert fs.resize((MEMORY + 2 * GROUP >> 12) + 77).blocks << 12 == MEMORY + 2 * GROUP
        with pytest.raises(FsError, match="make it longer first"):
            fs.resize(MEMORY + 4 * GROUP >> 12)
        with pytest.raises(FsError, match="nothing would be left of"):
            fs.resize(MEMORY >> 12)
        assert fs.minimum_size() << 12 == MEMORY + GROUP
    with FileSystem.open(made.pool) as fs:
        assert fs.tree.read_bytes("/f") == content
        assert fs.tree.read_bytes("/g") == content * 3
        fs.remove_storage(str(made.storage))
        assert fs.tree.read_bytes("/f") == content
        fs.tree.write_bytes("/h", content)
    made.check()


@pytest.mark.parametrize("memory", [GROUP, MEMORY])
def test_made_with_storage_and_grown_ten_times(tmp_path: Path, memory: int) -> None:
    """There is room for more blocks of descriptors, and for their backup where the memory has two groups."""
    made = tier_rig.make(tmp_path, memory, 2 * GROUP)
    with FileSystem.open(made.pool) as fs:
        before = fs.volume.geometry.desc_blocks
        fs.add_storage(str(new_file(tmp_path / "more", 70 * GROUP)))
        assert fs.volume.geometry.desc_blocks == before + 1
        demoted(fs, "f", b"x" * MIB)
    made.check()
    with FileSystem.open(made.pool) as fs:
        fs.remove_storage(str(tmp_path / "more"))
        assert fs.tree.read_bytes("/f") == b"x" * MIB
    made.check()


def test_many_groups_in_one_handle(plain: Members) -> None:
    """Descriptors of new groups fill several blocks."""
    with FileSystem.open(plain.pool) as fs:
        done = fs.add_storage(str(new_file(plain.storage, 150 * GROUP)))
        assert done.blocks << 12 == MEMORY + 150 * GROUP
        assert fs.volume.geometry.desc_blocks == 3
        demoted(fs, "f", b"x" * MIB)
    plain.check()
    with FileSystem.open(plain.pool) as fs:
        fs.remove_storage(str(plain.storage))
        assert fs.volume.geometry.desc_blocks == 1
    plain.check()


def test_no_room_leaves_all_as_it_is(fs: FileSystem, plain: Members) -> None:
    fs.add_storage(str(new_file(plain.storage, 4 * GROUP)))
    contents = [os.urandom(4 * MIB) for _ in range(7)]
    for number, content in enumerate(contents):
        demoted(fs, str(number), content)
        fs.sync()
    with pytest.raises(FsError) as refused:
        fs.remove_storage(str(plain.storage))
    assert refused.value.errno == errno.EINVAL
    assert fs.storages == [str(plain.storage)]
    for number, content in enumerate(contents):
        assert fs.tree.read_bytes(f"/{number}") == content


REFUSED = {
    "missing": (lambda plain: plain.storage, "does not exist"),
    "a directory": (lambda plain: plain.pool.parent, "directory"),
    "the memory": (lambda plain: plain.pool, "is the memory of"),
    "tiny": (lambda plain: new_file(plain.storage, MIB), "room for 1048576 bytes"),
    "of another pool": (
        lambda plain: tier_rig.make(plain.pool.parent, 2 * GROUP, GROUP, name="other").storage,
        "add -F",
    ),
    "in use": (lambda plain: held(new_file(plain.storage, GROUP)), "in use"),
}


def held(path: Path) -> Path:
    """Claim a file until the end of the process."""
    HELD.append(Storage(str(path)))
    return path


HELD: list[Storage] = []


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(fs: FileSystem, plain: Members, name: str) -> None:
    path, text = REFUSED[name]
    place = path(plain)
    before = place.read_bytes() if place.is_file() and place != plain.pool else b""
    with pytest.raises(FsError, match=text) as refused:
        fs.add_storage(str(place))
    assert "\n" not in str(refused.value)
    assert fs.storages == []
    assert fs.volume.geometry.blocks_count << 12 == MEMORY
    if before:
        assert place.read_bytes() == before
    while HELD:
        HELD.pop().close()


def test_pools_that_cant_have_storage(tmp_path: Path) -> None:
    slow = new_file(tmp_path / "slow", 2 * GROUP)
    for number, (size, options, text) in enumerate(
        [
            (MEMORY, ("-O", "^flex_bg"), "flex_bg"),
            (MEMORY, ("-O", "^metadata_csum,^uninit_bg"), "metadata_csum"),
            (MEMORY + 3 * MIB, (), f"daxfs resize to {MEMORY} bytes"),
            (MEMORY, ("-O", "^resize_inode"), None),
        ]
    ):
        pool = tmp_path / f"pool{number}"
        make_pool(pool, size, (*OPTIONS, *options), sparse=True)
        with FileSystem.open(pool) as fs:
            if text is None:
                os.truncate(slow, 70 * GROUP + CONTENT)
                text = "descriptors of groups have room for"
            with pytest.raises(FsError, match=text):
                fs.add_storage(str(slow))
        run("e2fsck", "-fn", pool)
    pool = tmp_path / "longer"
    make_pool(pool, MEMORY, OPTIONS, sparse=True)
    os.truncate(pool, 2 * MEMORY)
    with FileSystem.open(pool) as fs:
        with pytest.raises(FsError, match="use them first"):
            fs.add_storage(str(slow))
        fs.create_snapshot(b"s")
        with pytest.raises(FsError, match="has snapshots"):
            fs.add_storage(str(slow))


def test_two_at_once_and_one_twice(fs: FileSystem, plain: Members) -> None:
    one, two = new_file(plain.storage, GROUP), new_file(plain.storage.with_name("slow2"), GROUP)
    steps = fs.steps.add_storage(str(one))
    waiting = next(steps)
    with pytest.raises(FsError) as busy:
        fs.add_storage(str(two))
    assert busy.value.errno == errno.EBUSY
    if waiting is not None:
        waiting.wait()
    for _ in steps:
        pass
    with pytest.raises(FsError, match="already"):
        fs.add_storage(str(one))
    assert fs.storages == [str(one)]
    with pytest.raises(FsError, match="is no storage of"):
        fs.remove_storage(str(two))


def test_descriptors_say_that_tables_were_never_used(fs: FileSystem, plain: Members) -> None:
    fs.add_storage(str(new_file(plain.storage, 2 * GROUP)))
    for group in (4, 5):
        desc = groups.descriptor(fs.volume.view, group)
        assert groups.inodes_uninit(fs.volume.geometry, desc)
        assert desc.block_bitmap < MEMORY >> 12
        assert desc.inode_bitmap < MEMORY >> 12
