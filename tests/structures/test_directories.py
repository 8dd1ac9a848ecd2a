"""Names in directories of every format, compared with debugfs and e2fsck; listings during changes; damage."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from directory_rig import ROOT, DirectoryRig, make_image, weaken_hashes

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import dirent
from daxfs.ext4.inode import EXT4_INDEX_FL, FT_DIR, FT_REG_FILE, FT_SYMLINK
from daxfs.structures import dirblocks, directories, dirhints, dirlist, inodes, mapping
from daxfs.structures.dirhints import Hints
from daxfs.structures.noted import Noted
from support import fsck, mke2fs, run

FORMATS = {
    "default": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "2k": ("-b", "2048"),
    "no checksums": ("-O", "^metadata_csum"),
    "no index": ("-O", "^dir_index", "-b", "4096"),
    "no index, no checksums, 1k": ("-O", "^dir_index,^metadata_csum", "-b", "1024"),
    "no file types": ("-O", "^filetype"),
    "ext2": ("-O", "^metadata_csum,^extents,^64bit,^huge_file,^flex_bg", "-I", "128", "-b", "1024"),
}


@pytest.fixture(params=FORMATS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> DirectoryRig:
    return DirectoryRig(make_image(tmp_path / "pool", *FORMATS[request.param]))


@pytest.fixture
def small(tmp_path: Path) -> DirectoryRig:
    return DirectoryRig(make_image(tmp_path / "pool", "-b", "1024"))


def block_of(rig: DirectoryRig, lblk: int) -> int:
    return dirblocks.number_of(rig.view, rig.inode, lblk)


def test_names_come_and_go(rig: DirectoryRig) -> None:
    names = [b"n%d" % i * (1 + i % 40) for i in range(400)]
    rig.insert_many(names)
    rig.check()
    rig.remove(*names[::2])
    rig.check()
    rig.remount()
    rig.insert_many([b"again %d" % i for i in range(200)])
    rig.check()
    rig.remove(*rig.model)
    rig.close()


def test_find_tells_names_apart(rig: DirectoryRig) -> None:
    rig.insert(b"abc", b"abcd", b"xabc", b"b" * 255)
    for name in (b"ab", b"bc", b"a", b"abcde", b"b" * 254, b"", b"c" * 300, b"\0", b"/"):
        assert rig.find(name) is None
    found = rig.find(b"abcd")
    assert found is not None
    assert found.file_type == (FT_REG_FILE if rig.geometry.has_filetype else 0)
    dot, dotdot = rig.find(b"."), rig.find(b"..")
    assert dot is not None
    assert dotdot is not None
    assert (dot.ino, dotdot.ino) == (rig.ino, ROOT)
    rig.close()


def test_a_name_that_was_absent_is_found_once_it_is_there(rig: DirectoryRig) -> None:
    other = rig.make_directory(b"other")
    assert rig.find(b"target") is None
    assert directories.ino_of(rig.view, inodes.read(rig.view, ROOT), b"target") == rig.target
    assert rig.find(b"new") is None
    rig.insert(b"new")
    assert rig.find(b"new") is not None
    assert not directories.ino_of(rig.view, inodes.read(rig.view, other), b"new"), "absent in another directory"
    assert rig.find(b"new") is not None
    rig.remove(b"new")
    assert rig.find(b"new") is None

    def fail_half_way() -> None:
        with rig.change() as (tx, inode):
            directories.insert(tx, directories.find(tx, inode, b"new"), rig.target, FT_REG_FILE)
            assert directories.ino_of(tx, inode, b"new") == rig.target
            raise FsError(errno.ENOSPC)

    with pytest.raises(FsError):
        fail_half_way()
    assert rig.find(b"new") is None
    rig.insert_many([b"%d-more" % number for number in range(200)])
    rig.insert(b"new")
    rig.check()
    rig.close()


def test_a_new_directory(rig: DirectoryRig) -> None:
    assert directories.is_empty(rig.view, rig.inode)
    assert directories.parent(rig.view, rig.inode) == ROOT
    assert rig.inode.size == rig.geometry.block_size
    assert [(e.name, e.ino, e.cookie) for e in rig.listing()] == [(b".", rig.ino, 1), (b"..", ROOT, 2)]
    rig.close()


def test_names_refer_to_other_inodes(rig: DirectoryRig) -> None:
    rig.insert_many([b"name %d" % i for i in range(120)])
    other = rig.make_file(b"other")
    with rig.change() as (tx, inode):
        directories.replace(tx, directories.find(tx, inode, b"name 7"), other, FT_SYMLINK)
    found = rig.find(b"name 7")
    assert found is not None
    assert found.ino == other
    assert next(e for e in rig.listing() if e.name == b"name 7").ino == other
    with rig.change() as (tx, inode):
        directories.replace(tx, directories.find(tx, inode, b"name 7"), rig.target, FT_REG_FILE)
    rig.close()


def test_a_directory_moves_to_another_parent(rig: DirectoryRig) -> None:
    rig.insert_many([b"some name %d" % i for i in range(120)])
    above = rig.make_directory(b"above")
    with rig.change() as (tx, inode):
        directories.set_parent(tx, inode, above)
        directories.insert(tx, directories.find(tx, inodes.edit(tx, above), b"dir"), rig.ino, FT_DIR)
        directories.remove(tx, directories.find(tx, inodes.edit(tx, ROOT), b"dir"))
        inodes.edit(tx, ROOT).links_count -= 1
        inodes.edit(tx, above).links_count += 1
    assert directories.parent(rig.view, rig.inode) == above
    assert rig.listing()[1].ino == above
    rig.close()


def test_nothing_is_left_of_a_removed_name(rig: DirectoryRig) -> None:
    rig.insert(b"aaaa-first", b"SECRET-name", b"zzzz-last")
    rig.remove(b"SECRET-name")
    rig.remove(b"zzzz-last")
    rig.commit_consistent()
    assert b"SECRET" not in rig.pool.memory.tobytes()
    rig.insert(b"longer than the gap that was left")
    assert rig.inode.size == rig.geometry.block_size
    rig.close()


def test_used_entries_of_a_block(small: DirectoryRig) -> None:
    """Unused entries are passed over; a type that ext4 does not know is handed on, since it decides nothing here."""
    entries = [
        (11, 12, b"a", FT_REG_FILE),
        (0, 24, b"gone", FT_REG_FILE),
        (12, 16, b"b" * 8, 200),
        (13, 12, b"c", FT_DIR),
    ]
    block = b"".join(dirent.pack_entry(ino, size, name, kind).ljust(size, b"\0") for ino, size, name, kind in entries)
    directory = small.inode
    found = dirblocks.live(directory, 1, block, 0, len(block))
    assert found == ([0, 36, 52], [b"a", b"b" * 8, b"c"], [11, 12, 13], [FT_REG_FILE, 200, FT_DIR])
    for size in (8, 10, 14, 80):  # shorter than its name, not aligned, after the block's end
        damaged = block[:40] + size.to_bytes(2, "little") + block[42:]
        with pytest.raises(Corrupt, match="byte 36 "):
            dirblocks.live(directory, 1, damaged, 0, len(block))


def test_a_removed_name_is_gone_for_others(rig: DirectoryRig) -> None:
    rig.insert(b"one", b"two")
    with pytest.raises(FsError) as caught, rig.change() as (tx, inode):
        directories.remove(tx, directories.find(tx, inode, b"three"))
    assert caught.value.errno == errno.ENOENT
    rig.close()


def test_a_name_that_is_there_comes_no_second_time(rig: DirectoryRig) -> None:
    rig.insert(b"one")
    with pytest.raises(FsError) as caught, rig.change() as (tx, inode):
        directories.insert(tx, directories.find(tx, inode, b"one"), rig.target, FT_REG_FILE)
    assert caught.value.errno == errno.EEXIST
    rig.close()


@pytest.mark.parametrize("count", [1, 30, 300])
@pytest.mark.parametrize("first_removed", [False, True])
def test_places_stay_good_while_entries_move(rig: DirectoryRig, count: int, first_removed: bool) -> None:
    """Places found before leaves are split, an index is made or a name is removed are still usable afterwards."""
    rig.insert_many([b"stays %d" % i for i in range(20)])
    other = rig.make_file(b"other")
    with rig.change() as (tx, inode):
        new = [directories.find(tx, inode, b"new %d" % i) for i in range(count)]
        goes, changes, comes, first = (directories.find(tx, inode, b"stays %d" % i) for i in (3, 4, 20, 0))
        if first_removed:
            directories.remove(tx, first)
        for place in new:
            directories.insert(tx, place, rig.target, FT_REG_FILE)
        directories.replace(tx, changes, other, FT_REG_FILE)
        directories.insert(tx, comes, rig.target, FT_REG_FILE)
        directories.remove(tx, goes)
        for place in (goes, first)[: 1 + first_removed]:
            with pytest.raises(FsError) as caught:
                directories.remove(tx, place)
            assert caught.value.errno == errno.ENOENT
        directories.replace(tx, changes, rig.target, FT_REG_FILE)
    rig.model.update({b"new %d" % i: rig.target for i in range(count)} | {b"stays 20": rig.target})
    del rig.model[b"stays 3"]
    if first_removed:
        del rig.model[b"stays 0"]
    rig.close()


def test_places_of_new_names_stay_good_while_leaves_are_split(rig: DirectoryRig) -> None:
    """A place holds the leaf of its name; after splits, half of the names belong to other leaves."""
    rig.insert_many([b"stays %d " % i + b"n" * 100 for i in range(100)])
    names = [b"new %d" % i for i in range(300)]
    with rig.change() as (tx, inode):
        for place in [directories.find(tx, inode, name) for name in names]:
            directories.insert(tx, place, rig.target, FT_REG_FILE)
    rig.model.update(dict.fromkeys(names, rig.target))
    rig.close()


def change_and_fail(rig: DirectoryRig) -> None:
    with rig.change() as (tx, inode):
        for i in range(300):
            directories.insert(tx, directories.find(tx, inode, b"goes %d" % i), rig.target, FT_REG_FILE)
        directories.remove(tx, directories.find(tx, inode, b"stays 3"))
        raise ZeroDivisionError


def test_a_rollback_takes_names_back(rig: DirectoryRig) -> None:
    rig.insert_many([b"stays %d" % i for i in range(30)])
    rig.listing()
    size = rig.inode.size
    with pytest.raises(ZeroDivisionError):
        change_and_fail(rig)
    assert rig.inode.size == size
    rig.check()
    rig.insert_many([b"comes %d" % i for i in range(200)])
    rig.close()


def test_a_full_pool_refuses_names_and_stays_whole(tmp_path: Path) -> None:
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024", "-N", "32", size="300K"))
    with pytest.raises(FsError) as caught:
        rig.insert_many([b"%d" % i * 40 for i in range(10000)], 1)
    assert caught.value.errno == errno.ENOSPC
    rig.remove(*list(rig.model)[:50])
    rig.insert(b"short")
    rig.close()


def test_trees_of_mke2fs(tmp_path: Path) -> None:
    """Directories that libext2fs wrote are linear, whatever their length."""
    source = tmp_path / "tree"
    (source / "many").mkdir(parents=True)
    names = {b"f%d" % i for i in range(300)}
    for name in names:
        (source / "many" / name.decode()).touch()
    (source / "link").symlink_to("many")
    path = mke2fs(tmp_path / "pool", "-O", "^has_journal", "-b", "1024", "-d", str(source), size="8M")
    rig = DirectoryRig(path)
    root = inodes.read(rig.view, ROOT)
    assert {e.name for e in directories.entries(rig.view, root)} >= {b".", b"..", b"many", b"link", b"lost+found"}
    link = directories.find(rig.view, root, b"link")
    assert link.file_type == FT_SYMLINK
    many = directories.find(rig.view, root, b"many")
    inode = inodes.read(rig.view, many.ino)
    assert {e.name for e in directories.entries(rig.view, inode)} == names | {b".", b".."}
    assert not inode.flags & EXT4_INDEX_FL
    with rig.change(many.ino) as (tx, inode):
        for i in range(100):
            directories.insert(tx, directories.find(tx, inode, b"g%d" % i), rig.target, FT_REG_FILE)
    rig.model = {b"g%d" % i: rig.target for i in range(100)}
    rig.commit_consistent()
    rig.journal.close()
    rig.pool.close()
    fsck(path)
    listed = run("debugfs", "-R", f"ls <{many.ino}>", path)
    assert all(name.decode() in listed for name in names)


def test_an_index_that_was_not_updated_is_not_used(tmp_path: Path) -> None:
    path = make_image(tmp_path / "pool", "-b", "1024", "-O", "^metadata_csum")
    rig = DirectoryRig(path)
    rig.insert_many([b"name %d" % i for i in range(150)])
    assert rig.inode.flags & EXT4_INDEX_FL
    rig.commit_consistent()
    rig.journal.close()
    rig.pool.close()
    run("debugfs", "-w", "-R", "feature -dir_index", path)
    rig.open()
    rig.check()
    rig.insert(b"one more")
    assert not rig.inode.flags & EXT4_INDEX_FL
    rig.close()


# Listings


def take(rig: DirectoryRig, cookie: int, count: int) -> list[directories.Entry]:
    found = []
    for entry in directories.entries(rig.view, rig.inode, cookie):
        found.append(entry)
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("portion", [1, 3, 50])
def test_a_listing_in_portions(rig: DirectoryRig, portion: int) -> None:
    rig.insert_many([b"name %d" % i for i in range(250)])
    whole = rig.listing()
    found: list[directories.Entry] = []
    while more := take(rig, found[-1].cookie if found else 0, portion):
        found += more
    assert found == whole
    rig.close()


def test_a_disturbed_listing(rig: DirectoryRig) -> None:
    """A listing yields names that stay exactly once, although an index is made and leaves are split meanwhile."""
    stays = [b"stays %d" % i for i in range(20)]
    goes = [b"goes %d" % i for i in range(100)]
    rig.insert(*stays, *goes[:15])
    there = set(goes[:15])
    seen: list[bytes] = []
    cookie, round_ = 0, 0
    while more := take(rig, cookie, 3):
        seen += [entry.name for entry in more]
        cookie = more[-1].cookie
        round_ += 1
        if round_ <= 40:
            new = [b"new %d %d" % (round_, i) for i in range(10)]
            rig.insert(*new)
            if round_ % 2:
                rig.remove(*new[::2])
            if there:
                rig.remove(there.pop())
    assert [seen.count(name) for name in stays] == [1] * len(stays)
    assert len(seen) == len(set(seen))
    rig.close()


def test_cookies_from_nowhere(rig: DirectoryRig) -> None:
    rig.insert_many([b"name %d" % i for i in range(100)])
    for cookie in (3, 12, 25, 1 << 20, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        assert all(entry.cookie > cookie for entry in rig.listing(cookie))
    assert rig.listing((1 << 63) - 1) == []
    assert rig.listing((1 << 64) - 1) == []
    rig.close()


@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    weaken_hashes(monkeypatch)


@pytest.mark.usefixtures("colliding")
@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.interpreted
def test_names_with_the_same_hash_keep_their_places(small: DirectoryRig, forget: bool) -> None:
    """A listing stops between two colliding names, of which one is removed and one added, and yields the rest once."""
    names = [b"stays %d" % i for i in range(20)] + [b"goes%d" % i for i in range(10)]
    small.insert(*names)
    seen: list[bytes] = []
    cookie, step = 0, 0
    while more := take(small, cookie, 1):
        seen.append(more[0].name)
        cookie = more[0].cookie
        step += 1
        if seen[-1].startswith(b"goes"):
            small.remove(seen[-1])
        if step < 12:
            small.insert(b"a%d" % step)
        if forget:
            small.view.caches[Hints].drop()
    assert [seen.count(b"stays %d" % i) for i in range(20)] == [1] * 20
    assert len(seen) == len(set(seen))
    small.close()


@pytest.mark.usefixtures("colliding")
@pytest.mark.interpreted
def test_pinned_names_are_bounded(small: DirectoryRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirhints, "MAX_PINS", 10)
    small.insert(*[b"name %d" % i for i in range(40)])
    small.check()
    assert small.view.caches[Hints].pinned <= 10
    small.close()


def test_a_chunk_of_a_listing_is_as_large_as_its_reader_needs(small: DirectoryRig) -> None:
    """A reader from the start gets some hundred names, more if it goes on, and one leaf if it begins in the middle."""
    small.insert_many([b"name %04d" % i for i in range(2500)], 100)

    def lengths(cookie: int | None) -> list[int]:
        made = []
        while cookie is not None and len(made) < 3:
            found, cookie = directories.portion(small.view, small.inode, cookie)
            made.append(len(found))
        return made

    leaf = small.geometry.block_size // 20
    first, second, third = lengths(0)
    assert leaf < first < second
    assert first <= dirlist.FIRST_NAMES + leaf
    assert max(second, third) <= dirlist.MOST_NAMES + leaf
    middle = small.listing()[1300].cookie
    small.view.caches[Hints].chunks.clear()
    sought, following, _ = lengths(middle)
    assert sought <= leaf
    assert following > first
    small.close()


def test_the_entries_of_a_block_are_followed_once(small: DirectoryRig) -> None:
    """Searches and removals begin where an earlier one ended, and a name in the middle is removed without a search."""
    names = [b"name %02d" % i for i in range(40)]
    small.insert(*names)
    number = block_of(small, 0)
    hints = small.view.caches[Hints]
    hints.drop()
    assert small.find(names[20])
    starts = hints.starts[number]
    assert starts.tolist() == [0, 12, *range(24, 24 + 21 * 16, 16)]
    assert small.find(names[5])
    assert len(starts) == 23
    assert small.find(names[30])
    assert len(starts) == 33
    small.remove(names[7])
    assert len(starts) == 32
    small.insert(b"name 07")
    assert len(starts) == 33
    small.close()


def test_hints_are_bounded(small: DirectoryRig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_MAPPED", "MAX_TAILS", "MAX_STARTS", "MAX_CHUNKS"):
        monkeypatch.setattr(dirhints, name, 3)
    small.insert_many([b"name %d" % i for i in range(300)])
    for i in range(6):
        ino = small.make_directory(b"dir %d" % i)
        assert len(list(directories.entries(small.view, inodes.read(small.view, ino)))) == 2
    small.check()
    hints = small.view.caches[Hints]
    found = (hints.tails, hints.rooms, hints.starts, hints.chunks)
    assert max(*map(len, found), sum(map(len, hints.maps.values()))) <= 3
    small.close()


# Damage


def damage(rig: DirectoryRig, lblk: int, change: Callable[[memoryview], None]) -> None:
    """Change a block in the pool itself, with the right checksum if there is one."""
    rig.commit_consistent()
    with rig.change() as (tx, inode):
        change(dirblocks.writable(tx, inode, block_of(rig, lblk)))
    rig.remount()


def put(offset: int, data: bytes) -> Callable[[memoryview], None]:
    def change(block: memoryview) -> None:
        block[offset : offset + len(data)] = data

    return change


def listed(rig: DirectoryRig) -> list[bytes]:
    return [entry.name for entry in rig.listing() if entry.name not in (b".", b"..")]


def noted(rig: DirectoryRig) -> set[str]:
    return {str(error.kind) for error in rig.view.caches[Noted].waiting}


def refused(rig: DirectoryRig, kind: str) -> None:
    """A listing leaves the only block out; whoever searches a name that is not there, or empties it, is refused."""
    assert listed(rig) == []
    assert noted(rig) == {kind}
    for action in (lambda: directories.is_empty(rig.view, rig.inode), lambda: rig.find(b"zz")):
        with pytest.raises(Corrupt) as caught:
            action()
        assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (28, b"\x00\x00"),  # rec_len 0
        (28, b"\x08\x00"),  # too small
        (28, b"\x0d\x00"),  # no multiple of 4
        (28, b"\x00\xf0"),  # past the block's end
        (30, b"\xff"),  # name_len exceeds rec_len
        (30, b"\x00"),  # no name
        (32, b"/"),
        (32, b"\x00"),
        (24, b"\xff\xff\xff\xff"),  # inode number
    ],
)
@pytest.mark.parametrize("checksums", [True, False])
def test_damaged_entries(tmp_path: Path, offset: int, data: bytes, checksums: bool) -> None:
    options = () if checksums else ("-O", "^metadata_csum")
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024", *options))
    rig.insert(b"first", b"second", b"third")
    damage(rig, 0, put(offset, data))
    lengths_are_sound = offset == 32 or data in (b"\x00", b"\xff\xff\xff\xff")
    assert set(listed(rig)) == ({b"second", b"third"} if lengths_are_sound else set())
    assert noted(rig) == {"directory entry"}
    for name in (b"first", b"third", b"absent"):
        try:
            found = rig.find(name)
        except Corrupt:
            continue
        assert found is None or found.ino == rig.target
    rig.pool.close()


def test_a_damaged_block_hides_no_other(tmp_path: Path) -> None:
    """Of a directory of several blocks without an index."""
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024", "-O", "^dir_index"))
    names = [b"name %03d" % i for i in range(200)]
    rig.insert(*names)
    whole = listed(rig)
    damage(rig, 1, put(4, b"\x03\x00"))
    left = listed(rig)
    lost = set(whole) - set(left)
    assert [name for name in whole if name not in lost] == left
    assert 10 < len(lost) < 100
    assert noted(rig) == {"directory entry"}
    assert rig.find(names[-1]).ino == rig.target
    with pytest.raises(Corrupt):
        rig.find(min(lost))
    with pytest.raises(Corrupt):
        rig.insert(b"a new name")
    rig.remove(names[-1])
    assert set(left) - set(listed(rig)) == {names[-1]}
    rig.pool.close()


def test_a_hole_hides_no_name(tmp_path: Path) -> None:
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024", "-O", "^dir_index"))
    rig.insert(*[b"name %03d" % i for i in range(200)])
    whole = listed(rig)
    with rig.change() as (tx, inode):
        mapping.remove(tx, inode, 1, 1, metadata=True)
    rig.remount()
    left = listed(rig)
    assert [name for name in whole if name in set(left)] == left
    assert 0 < len(whole) - len(left) < 100
    assert noted(rig) == {"directory block"}
    rig.pool.close()


def test_a_hint_never_hides_damage_from_inserts(tmp_path: Path) -> None:
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024"))
    rig.insert(b"first", b"second", b"third")
    damage(rig, 0, put(28, b"\x08\x00"))
    with pytest.raises(Corrupt):
        rig.insert(b"fourth")
    with pytest.raises(Corrupt), rig.change() as (tx, inode):
        directories.remove(tx, directories.find(tx, inode, b"third"))
    rig.pool.close()


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, bytes(4)), (4, b"\x00\x00"), (6, b"\x02"), (8, b"x"), (18, b"\x05"), (20, b"xx"), (12, bytes(4))],
)
def test_directories_without_their_dots(tmp_path: Path, offset: int, data: bytes) -> None:
    rig = DirectoryRig(make_image(tmp_path / "pool", "-b", "1024"))
    damage(rig, 0, put(offset, data))
    with pytest.raises(Corrupt):
        directories.parent(rig.view, rig.inode)
    assert rig.listing()[0].name == b"."
    assert all(name in (b"x", b"xx") for name in listed(rig)), "what is there in their place"
    assert noted(rig)
    with pytest.raises(Corrupt):
        directories.is_empty(rig.view, rig.inode)
    rig.pool.close()


def test_a_wrong_checksum(small: DirectoryRig) -> None:
    small.insert(b"first")
    small.commit_consistent()
    start = block_of(small, 0) * small.geometry.block_size
    small.pool.write(start + 32, b"F")
    small.remount()
    refused(small, "directory block checksum")
    small.pool.close()


def test_a_missing_tail(small: DirectoryRig) -> None:
    small.commit_consistent()
    start = (block_of(small, 0) + 1) * small.geometry.block_size
    small.pool.write(start - 8, b"\x0d")
    small.remount()
    refused(small, "directory block without checksum tail")
    small.pool.close()


@pytest.mark.parametrize("size", [1000, 1, 1 << 30])
def test_sizes_that_can_not_be(small: DirectoryRig, size: int) -> None:
    with small.change() as (_, inode):
        inode.size = size
    with pytest.raises(Corrupt):
        small.find(b"x")
    assert listed(small) == []
    assert noted(small)
    small.pool.close()


def test_a_removed_directory_has_no_names(small: DirectoryRig) -> None:
    small.insert_many([b"name %d" % i for i in range(100)])
    with small.change() as (_, inode):
        inode.size = 0
        with pytest.raises(Corrupt):
            dirblocks.count(small.view, inode)
        inode.links_count = 0
    assert small.find(b"name 1") is None
    assert small.listing() == []
    small.pool.close()
