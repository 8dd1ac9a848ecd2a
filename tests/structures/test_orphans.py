"""Orphans in the list and in the orphan file, compared with a model; and their recovery by e2fsck."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from alloc_rig import AllocRig

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4 import orphan
from daxfs.ext4.features import RoCompat
from daxfs.structures import inode_allocation, inodes, mapping, orphans
from daxfs.structures.noted import Noted
from support import fsck, run

FORMS = {
    "list": ("-O", "^orphan_file"),
    "list without checksums": ("-O", "^orphan_file,^metadata_csum", "-I", "128"),
    "file": ("-O", "orphan_file"),
    "file without checksums": ("-O", "orphan_file,^metadata_csum"),
}
Rigs = Callable[..., AllocRig]


class Undo(Exception):
    """Raised to end a handle so that its changes are undone."""


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    """``rigs("file")`` opens a pool that keeps its orphans in that form."""
    made: list[AllocRig] = []

    def make(form: str) -> AllocRig:
        path = tmp_path / f"pool{len(made)}"
        made.append(AllocRig(path, "-b", "1024", "-N", "2048", *FORMS[form], size="16M", feature="has_journal"))
        return made[-1]

    yield make
    for rig in made:
        rig.pool.close()


def make_files(rig: AllocRig, count: int, *, links: int = 0, blocks: int = 0) -> list[int]:
    """Make inodes without a name."""
    made = []
    for _ in range(count):
        with rig.handle(16) as tx:
            inode = inode_allocation.allocate(tx, inodes.read(tx, 2), stat.S_IFREG | 0o600)
            inode.links_count = links
            mapping.new_inode_map(tx, inode)
            if blocks:
                mapping.allocate(tx, inode, 0, blocks)
            made.append(inode.number)
    return made


def add(rig: AllocRig, ino: int) -> None:
    with rig.handle(2) as tx:
        orphans.add(tx, ino)


def remove(rig: AllocRig, ino: int) -> None:
    with rig.handle(3) as tx:
        orphans.remove(tx, ino)


def listed(rig: AllocRig) -> list[int]:
    return list(orphans.listing(rig.view))


@pytest.mark.parametrize("form", FORMS)
def test_model(rigs: Rigs, form: str) -> None:
    rig = rigs(form)
    files = make_files(rig, 40)
    chance = random.Random(form)
    noted: set[int] = set()
    for _ in range(300):
        ino = chance.choice(files)
        change = remove if ino in noted else add
        if chance.random() < 0.2:
            with suppress(Undo), rig.handle(8) as tx:
                getattr(orphans, change.__name__)(tx, ino)
                raise Undo
        else:
            change(rig, ino)
            noted ^= {ino}
        if chance.random() < 0.1:
            rig.journal.commit()
        if chance.random() < 0.1:
            rig.view.caches.pop(orphans._Known, None)
        found = listed(rig)
        assert set(found) == noted
        assert len(found) == len(noted)
    for ino in noted:
        remove(rig, ino)
    for ino in files:
        with rig.handle(4) as tx:
            inode_allocation.free(tx, inodes.edit(tx, ino))
    rig.close()
    fsck(rig.path)


def test_an_orphan_that_was_never_made(rigs: Rigs) -> None:
    """A hint about the list may name an inode whose slot was never used, because its handle was undone."""
    rig = rigs("list")
    first, second = make_files(rig, 2)
    add(rig, first)
    add(rig, second)
    with suppress(Undo), rig.handle(16) as tx:
        orphans.remove(tx, second)
        orphans.add(tx, inode_allocation.allocate(tx, inodes.read(tx, 2), stat.S_IFREG | 0o600).number)
        raise Undo
    remove(rig, first)
    assert listed(rig) == [second]


@pytest.mark.parametrize("form", FORMS)
def test_e2fsck_frees_them(rigs: Rigs, form: str) -> None:
    rig = rigs(form)
    for ino in make_files(rig, 5, blocks=3):
        add(rig, ino)
    if rig.geometry.has_orphan_file:
        with rig.handle() as tx:
            tx.edit_superblock().s_feature_ro_compat |= RoCompat.orphan_present
    rig.close()
    # e2fsck counts orphans in the file as repairs (exit code 1), but not those in the list.
    said = run("e2fsck", "-fy", rig.path, code=int(rig.geometry.has_orphan_file))
    assert said.lower().count("orphaned inode") >= 5
    assert "bitmap differences" not in said
    fsck(rig.path)


def test_the_list_is_youngest_first(rigs: Rigs) -> None:
    rig = rigs("list")
    files = make_files(rig, 5)
    for ino in files:
        add(rig, ino)
    assert listed(rig) == files[::-1]
    for gone in (files[4], files[0], files[2]):
        remove(rig, gone)
        assert inodes.read(rig.view, gone).i_dtime == 0
    assert listed(rig) == [files[3], files[1]]
    with pytest.raises(Corrupt, match="orphan list"):
        remove(rig, files[0])
    # Recovery removes each orphan when it gets it.
    for ino in orphans.listing(rig.view):
        remove(rig, ino)
    assert listed(rig) == []


def test_a_full_file_overflows_into_the_list(rigs: Rigs) -> None:
    rig = rigs("file")
    room = len(orphans._file(rig.view).blocks) * orphan.inodes_per_block(1024)
    files = make_files(rig, 3)
    filler = files[0]
    with rig.handle(1024) as tx:
        for _ in range(room - 1):
            orphans.add(tx, filler)
    add(rig, files[1])
    assert rig.view.superblock().s_last_orphan == 0
    add(rig, files[2])
    assert rig.view.superblock().s_last_orphan == files[2]
    assert set(listed(rig)) == set(files)
    remove(rig, files[1])
    remove(rig, files[2])
    add(rig, files[2])
    assert rig.view.superblock().s_last_orphan == 0
    assert set(listed(rig)) == {filler, files[2]}


# Damage


def test_lists_that_loop_or_lead_astray(rigs: Rigs) -> None:
    rig = rigs("list")
    first, second, third, other = make_files(rig, 4)
    for ino in (first, second, third):
        add(rig, ino)
    for following, kind in ((third, "in the list twice"), (2, "is not in"), (1 << 30, "is not in"), (2000, "is free")):
        with rig.handle() as tx:
            inodes.edit(tx, first).i_dtime = following
        with pytest.raises(Corrupt, match=kind):
            listed(rig)
        with pytest.raises(Corrupt):
            remove(rig, other)


@pytest.mark.parametrize("form", ["file", "file without checksums"])
def test_damaged_orphan_files(rigs: Rigs, form: str) -> None:
    rig = rigs(form)
    (ino,) = make_files(rig, 1)
    add(rig, ino)
    rig.journal.commit()
    number = orphans._file(rig.view).blocks[0]
    with rig.corrupting():
        rig.pool.memory[(number << 10) + 1016] ^= 1
    with pytest.raises(Corrupt, match="orphan file block"):
        listed(rig)
    with rig.corrupting():
        rig.pool.memory[(number << 10) + 1016] ^= 1
        rig.pool.memory[(number << 10) + 1] ^= 0x40
    with pytest.raises(Corrupt, match="orphan file block checksum" if form == "file" else "orphan inode"):
        listed(rig)


def test_an_orphan_file_that_is_none(rigs: Rigs) -> None:
    rig = rigs("file")
    for ino, kind in ((0, "inode number"), (2, "orphan file"), (11, "orphan file")):
        with rig.corrupting() as sb:
            sb.s_orphan_file_inum = ino
            sb.seal()
        assert listed(rig) == []
        assert kind in str(rig.view.caches[Noted].waiting[-1])


@pytest.mark.interpreted
def test_the_list_is_not_searched_for_what_was_just_put_in(rigs: Rigs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing an orphan searches nothing, for any number and order of orphans, and also after undone changes."""
    rig = rigs("list")
    made = make_files(rig, 300)
    for ino in made:
        with rig.handle(8) as tx:
            orphans.add(tx, ino)
    searched = []
    checked_orphan = orphans._checked_orphan
    monkeypatch.setattr(orphans, "_checked_orphan", lambda view, ino: searched.append(ino) or checked_orphan(view, ino))
    random.Random(3).shuffle(made)
    for number, ino in enumerate(made[:-2]):
        if number % 10 == 0:
            with suppress(Undo), rig.handle(8) as tx:
                orphans.remove(tx, made[number + 1])
                raise Undo
        with rig.handle(8) as tx:
            orphans.remove(tx, ino)
    assert len(searched) < 40 * len(made)
    assert set(orphans.listing(rig.view)) == set(made[-2:])
    with rig.handle(16) as tx:
        for ino in made[-2:]:
            orphans.remove(tx, ino)
    assert not list(orphans.listing(rig.view))


# What a mount finds of damage


def mended(rig: AllocRig) -> orphans.Survey:
    """Survey the pool, and remove from list and file what is damaged."""
    found = orphans.survey(rig.view)
    for before, following in found.relinked.items():
        with rig.handle(1) as tx:
            orphans.relink(tx, before, following)
    for index, slot in found.cleared:
        with rig.handle(1) as tx:
            orphans.clear(tx, index, slot)
    return found


def spoil(rig: AllocRig, ino: int, following: int | None = None) -> None:
    """Make the checksum of an inode wrong, and let it name another one as the next of the list."""
    number, offset = inodes.position(rig.view, ino)
    slot = (number << rig.geometry.block_bits) + offset
    with rig.corrupting():
        rig.pool.memory[slot + 0x10] ^= 1
        if following is not None:
            rig.pool.memory[slot + 0x14 : slot + 0x18] = following.to_bytes(4, "little")


@pytest.mark.parametrize("damaged", [(0,), (2,), (4,), (1, 3)])
def test_a_survey_goes_on_past_damaged_inodes(rigs: Rigs, damaged: tuple[int, ...]) -> None:
    rig = rigs("list")
    files = make_files(rig, 5)[::-1]
    for ino in reversed(files):
        add(rig, ino)
    for at in damaged:
        spoil(rig, files[at])
    found = mended(rig)
    assert list(found.found) == listed(rig) == [ino for at, ino in enumerate(files) if at not in damaged]
    assert found.whole
    assert [error.kind for error in found.met] == [CorruptKind.INODE_CHECKSUM] * len(damaged)
    for ino in found.found:
        remove(rig, ino)
    assert not listed(rig)


@pytest.mark.parametrize("what", ["a file", "a free inode", "no inode", "a damaged one", "itself"])
def test_a_survey_believes_no_pointer_to_what_may_be_no_orphan(rigs: Rigs, what: str) -> None:
    """The damaged inode names something else: the list ends there, and nobody's file is freed."""
    rig = rigs("list")
    named, free = make_files(rig, 1, links=1) + make_files(rig, 1)
    files = make_files(rig, 4)[::-1]
    for ino in reversed(files):
        add(rig, ino)
    with rig.handle(4) as tx:
        inode_allocation.free(tx, inodes.edit(tx, free))
    if what == "a damaged one":
        spoil(rig, files[2])
    other = {"a file": named, "a free inode": free, "no inode": 1 << 30, "a damaged one": files[2], "itself": files[1]}
    spoil(rig, files[1], other[what])
    found = mended(rig)
    assert list(found.found) == listed(rig) == [files[0]]
    assert len(found.met) == 1
    add(rig, named)
    assert listed(rig) == [named, files[0]]


def test_a_survey_cuts_a_loop(rigs: Rigs) -> None:
    rig = rigs("list")
    files = make_files(rig, 3)[::-1]
    for ino in reversed(files):
        add(rig, ino)
    with rig.handle(1) as tx:
        inodes.edit(tx, files[2]).i_dtime = files[1]
    found = mended(rig)
    assert list(found.found) == listed(rig) == files
    assert [error.kind for error in found.met] == [CorruptKind.ORPHAN_LIST]


@pytest.mark.parametrize("form", ["file", "file without checksums"])
def test_a_survey_leaves_out_damaged_entries_of_the_file(rigs: Rigs, form: str) -> None:
    rig = rigs(form)
    files = make_files(rig, 3)
    for ino in files:
        add(rig, ino)
    file = orphans._file(rig.view)
    assert file is not None
    with rig.handle(1) as tx:
        for slot, ino in enumerate((3, 1 << 30, 1500), 5):
            orphans._store(tx, file, 0, slot, ino)
    found = mended(rig)
    assert list(found.found) == listed(rig) == files
    assert [error.kind for error in found.met] == [CorruptKind.ORPHAN_INODE] * 3
    assert found.whole


def test_a_damaged_block_of_the_file_is_not_used(rigs: Rigs) -> None:
    """What is in other blocks is found, and what comes later gets a place in them."""
    rig = rigs("file")
    first, second, third = make_files(rig, 3)
    add(rig, first)
    file = orphans._file(rig.view)
    assert file is not None
    with rig.handle(1) as tx:
        orphans._store(tx, file, 1, 0, second)
    with rig.corrupting():
        rig.pool.memory[file.blocks[0] << rig.geometry.block_bits] ^= 1
    found = mended(rig)
    assert list(found.found) == [second]
    assert not found.whole
    add(rig, third)
    remove(rig, second)
    assert list(orphans.survey(rig.view).found) == [third]
    rig.view.caches[orphans._Known].file.places.clear()  # type: ignore[union-attr]
    remove(rig, third)
    assert not orphans.survey(rig.view).found


def test_a_damaged_file_is_replaced_by_the_list(rigs: Rigs) -> None:
    rig = rigs("file")
    (ino,) = make_files(rig, 1)
    with rig.handle(1) as tx:
        inodes.edit(tx, rig.view.superblock().s_orphan_file_inum).size = 0
    add(rig, ino)
    assert rig.view.superblock().s_last_orphan == ino
    found = mended(rig)
    assert list(found.found) == [ino]
    assert not found.whole
    remove(rig, ino)
    assert not listed(rig)
    assert [error.kind for error in rig.view.caches[Noted].waiting] == [CorruptKind.ORPHAN_FILE]
