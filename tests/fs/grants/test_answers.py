"""The pieces of an answer: memory, holes, and ranges that are mapped through the kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lease_rig import (
    FAR,
    HOLE,
    KERNEL,
    MAP,
    MEMORY,
    NOTHING,
    PAGES,
    RENEW,
    STORE,
    WRITE,
    another,
    check,
    client,
    kinds,
    make,
    sparse,
    truncate,
)
from range_rig import PUNCH

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.grants import answers
from daxfs.fs.grants.inode_grants import MAX_KERNEL
from daxfs.protocol import GrantedExtent

OpenFs = Callable[..., FileSystem]
BLOCK = 4096


PAGE = 4096


def test_pieces_join_where_they_go_on() -> None:
    """Memory joins if it is also adjacent in the pool, holes always."""
    pieces = [
        GrantedExtent(0, 100, 10, MEMORY),
        GrantedExtent(10, 110, 5, MEMORY),
        GrantedExtent(15, 300, 5, MEMORY),
        GrantedExtent(20, 0, 5, HOLE),
        GrantedExtent(25, 0, 5, HOLE),
        GrantedExtent(30, 0, 5, KERNEL),
    ]
    assert list(answers.merge_adjacent(iter(pieces))) == [
        GrantedExtent(0, 100, 15, MEMORY),
        GrantedExtent(15, 300, 5, MEMORY),
        GrantedExtent(20, 0, 10, HOLE),
        GrantedExtent(30, 0, 5, KERNEL),
    ]
    assert list(answers.merge_adjacent(iter([]))) == []


def test_a_part_of_a_piece_lies_where_the_piece_has_it() -> None:
    assert answers.part_of(GrantedExtent(100, 5000, 50, MEMORY), 110, 120) == GrantedExtent(110, 5010, 10, MEMORY)
    assert answers.part_of(GrantedExtent(100, 0, 50, HOLE), 110, 120) == GrantedExtent(110, 0, 10, HOLE)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (GrantedExtent(0, PAGE, 2 * PAGE, MEMORY), [GrantedExtent(0, PAGE, 2 * PAGE, MEMORY)]),
        (GrantedExtent(0, PAGE + 1024, 2 * PAGE, MEMORY), [GrantedExtent(0, 0, 2 * PAGE, KERNEL)]),
        (GrantedExtent(1024, PAGE + 1024, 1024, MEMORY), [GrantedExtent(1024, 0, 1024, KERNEL)]),
        (
            GrantedExtent(1024, PAGE + 1024, 2 * PAGE, MEMORY),
            [
                GrantedExtent(1024, 0, 3072, KERNEL),
                GrantedExtent(PAGE, 2 * PAGE, PAGE, MEMORY),
                GrantedExtent(2 * PAGE, 0, 1024, KERNEL),
            ],
        ),
        (GrantedExtent(0, 0, 2 * PAGE, HOLE), [GrantedExtent(0, 0, 2 * PAGE, HOLE)]),
    ],
    ids=["whole pages", "at another place in the page", "within a page", "with both edges", "a hole"],
)
def test_what_is_no_whole_page_of_memory_goes_through_the_kernel(
    piece: GrantedExtent, expected: list[GrantedExtent]
) -> None:
    assert list(answers.whole_pages(iter([piece]))) == expected


def test_memory_and_holes(fs: FileSystem) -> None:
    held = sparse(fs)
    answer = held.ask()
    assert kinds(answer.pieces) == [(MEMORY, 0, 2 * BLOCK), (HOLE, 2 * BLOCK, 3 * BLOCK), (MEMORY, 5 * BLOCK, BLOCK)]
    assert (answer.next, answer.size, answer.made) == (6 * BLOCK, 5 * BLOCK + 2000, False)
    for piece in answer.pieces:
        if piece.kind == MEMORY:
            mine = bytes(fs.volume.pool.memory[piece.pool_offset : piece.pool_offset + 2000])
            assert mine == bytes(fs.read(held.file, piece.offset, 2000))
    check(fs, [held])


def test_a_part(fs: FileSystem) -> None:
    held = sparse(fs)
    whole = held.ask().pieces[0]
    answer = held.ask(100, 2 * BLOCK)
    assert answer.pieces == [
        GrantedExtent(100, whole.pool_offset + 100, 2 * BLOCK - 100, MEMORY),
        GrantedExtent(2 * BLOCK, 0, 100, HOLE),
    ]
    assert answer.next == 100 + 2 * BLOCK


def test_past_eof(fs: FileSystem) -> None:
    held = client(fs, content=b"x" * 100)
    assert held.ask(BLOCK, 5).pieces == []
    assert held.ask(0, FAR).next == BLOCK
    empty = client(fs, b"g")
    for flags in (NOTHING, WRITE, STORE):
        answer = empty.ask(0, FAR, flags)
        assert (answer.pieces, answer.size, answer.next) == ([], 0, 0)
    assert kinds(empty.ask(0, 2 * BLOCK, MAP).pieces) == [(KERNEL, 0, 2 * BLOCK)]


def test_little_room(fs: FileSystem) -> None:
    held = sparse(fs)
    assert held.ask(room=0).next == 0
    answer = held.ask(room=2)
    assert (len(answer.pieces), answer.next) == (2, 5 * BLOCK)
    rest = held.ask(answer.next)
    assert kinds(answer.pieces + rest.pieces) == kinds(held.ask().pieces)


def test_a_scattered_file(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has more runs than a map in DRAM may have."""
    for module in ("data", "nodes"):
        monkeypatch.setattr(f"daxfs.fs.{module}.MAX_RUNS", 20)
    held = client(fs)
    truncate(fs, held.file.ino, 400 * BLOCK)
    for block in range(0, 400, 2):
        fs.write(held.file, block * BLOCK, b"%d" % block)
    assert held.file.node.scattered
    pieces = held.ask_all(0, 400 * BLOCK, WRITE, 7)
    assert [piece.kind for piece in pieces] == [MEMORY, HOLE] * 200
    check(fs, [held])
    held.ask_all(0, 400 * BLOCK, STORE)
    assert {piece.kind for piece in held.ask_all(0, 400 * BLOCK)} == {MEMORY}
    held.store(399 * BLOCK, b"end")
    assert bytes(fs.read(held.file, 399 * BLOCK, 3)) == b"end"
    check(fs, [held])
    truncate(fs, held.file.ino, 0)
    check(fs, [held])


def test_a_hole_in_the_last_block(fs: FileSystem) -> None:
    held = client(fs)
    truncate(fs, held.file.ino, 100)
    held.ask()
    fs.write(held.file, 100, b"appended")
    check(fs, [held])
    assert not held.current


def test_mapped_through_the_kernel(fs: FileSystem) -> None:
    held = sparse(fs)
    reader = another(held)
    reader.ask()
    assert kinds(held.ask(0, 8 * BLOCK, MAP).pieces) == [
        (MEMORY, 0, 2 * BLOCK),
        (KERNEL, 2 * BLOCK, 3 * BLOCK),
        (MEMORY, 5 * BLOCK, BLOCK),
        (KERNEL, 6 * BLOCK, 2 * BLOCK),
    ]
    assert not reader.current
    fs.write(held.file, 3 * BLOCK, b"filled" * 1000)
    truncate(fs, held.file.ino, 8 * BLOCK)
    answer = reader.ask(flags=RENEW)
    assert [piece.kind for piece in answer.pieces] == [MEMORY, KERNEL, MEMORY, KERNEL]
    held.close()
    assert not reader.current
    assert [piece.kind for piece in reader.ask(flags=RENEW).pieces] == [MEMORY, HOLE, MEMORY, HOLE]
    check(fs, [reader])


def test_memory_that_is_mapped_through_the_kernel(fs: FileSystem) -> None:
    """A client that can't map a part of the pool announces that, and nobody else stores there until it has unmapped."""
    held = sparse(fs)
    reader = another(held)
    whole = reader.ask()
    answer = held.ask(BLOCK, 3 * BLOCK, MAP | PAGES)
    assert kinds(answer.pieces) == [(KERNEL, BLOCK, 3 * BLOCK)]
    assert not reader.current
    assert held.ask(BLOCK, 3 * BLOCK, MAP | PAGES).epoch == answer.epoch, "it is known already"
    for each in (held, reader):
        assert kinds(each.ask(0, 3 * BLOCK).pieces) == [(MEMORY, 0, BLOCK), (KERNEL, BLOCK, 2 * BLOCK)]
    held.close()
    assert reader.ask(flags=RENEW).pieces == whole.pieces
    check(fs, [reader])


def test_mapping_with_holes_filled(fs: FileSystem) -> None:
    held = sparse(fs)
    answer = held.ask(0, 8 * BLOCK, MAP | STORE)
    assert [piece.kind for piece in answer.pieces][-1] == KERNEL
    assert sum(piece.length for piece in answer.pieces if piece.kind == MEMORY) == 6 * BLOCK
    assert answer.made


@pytest.mark.parametrize("shift", [0, 1])
def test_pages_of_small_blocks(open_fs: OpenFs, shift: int) -> None:
    """A page can be mapped from the pool only if it is one piece of memory at the start of a page of the pool."""
    fs = open_fs("-b", "1024")
    filler = make(fs, b"filler")
    held = client(fs)
    for pages in range(8):
        fs.write(filler, pages * 5000, b"f" * 1024 * (1 + shift))
        fs.write(held.file, pages * 4096, b"x" * 4096)
    fs.fallocate(held.file, PUNCH, 9 * 1024, 1024)
    for piece in held.ask(0, 16 * 4096, MAP).pieces:
        assert not piece.offset % 4096
        assert not piece.length % 4096
        assert not piece.pool_offset % 4096
    assert [piece.kind for piece in held.ask(8192, 4096).pieces] == [KERNEL]
    check(fs, [held])


def test_many_ranges_through_the_kernel(fs: FileSystem) -> None:
    """Too many ranges of one holder become one range; all of it is KERNEL for every other holder."""
    held = client(fs)
    truncate(fs, held.file.ino, 4 * MAX_KERNEL * BLOCK)
    second = another(held, 2)
    for number in range(MAX_KERNEL):
        held.ask(2 * number * BLOCK, BLOCK, MAP, keep=False)
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [
        (kind, number * BLOCK, BLOCK) for number, kind in enumerate([KERNEL, HOLE, KERNEL, HOLE])
    ]
    second.ask(BLOCK, BLOCK, MAP, keep=False)
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [(KERNEL, 0, 3 * BLOCK), (HOLE, 3 * BLOCK, BLOCK)]
    held.ask(2 * MAX_KERNEL * BLOCK, BLOCK, MAP, keep=False)
    whole = kinds(second.ask(0, 4 * MAX_KERNEL * BLOCK).pieces)
    assert whole[0] == (KERNEL, 0, (2 * MAX_KERNEL + 1) * BLOCK)
    assert len(whole) == 2
    held.renew()
    assert kinds(second.ask(0, 4 * BLOCK).pieces) == [
        (HOLE, 0, BLOCK),
        (KERNEL, BLOCK, BLOCK),
        (HOLE, 2 * BLOCK, 2 * BLOCK),
    ]
