"""What clients may store to: until they renew, each for itself; and how a snapshot asks them to renew."""

from __future__ import annotations

import pytest
from lease_rig import BLOCK, RENEW, STORE, Client, another, client, entry_of, sparse, truncate

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.grants import storing
from daxfs.fs.steps import finish
from support import HANG_SECONDS


@pytest.fixture
def fs(memory_fs: FileSystem) -> FileSystem:
    return memory_fs


def mapped(fs: FileSystem) -> dict[int, int]:
    """Bytes that clients may store to, by inode."""
    found: dict[int, int] = {}
    for ino, _, ranges in storing.mapped(fs.grants):
        found[ino] = found.get(ino, 0) + sum(end - begin for begin, end in ranges)
    return found


def epoch(held: Client) -> int:
    return entry_of(held.fs, held.answers[-1].entry).epoch


def test_a_client_may_store_until_it_renews_or_closes(fs: FileSystem) -> None:
    one, other = client(fs, b"a", b"x" * 4 * BLOCK), client(fs, b"b", b"x" * BLOCK)
    assert mapped(fs) == {}
    one.ask(0, 2 * BLOCK, STORE)
    one.ask(3 * BLOCK, BLOCK, STORE)
    other.ask(0, BLOCK, STORE)
    assert mapped(fs) == {one.file.ino: 3 * BLOCK, other.file.ino: BLOCK}
    one.ask(0, BLOCK, STORE | RENEW)
    assert mapped(fs) == {one.file.ino: BLOCK, other.file.ino: BLOCK}
    one.renew()
    other.close()
    assert mapped(fs) == {}
    fs.check()


def test_holders_count_each_for_itself_and_readers_do_not(fs: FileSystem) -> None:
    """The grants of a file are one set, which lasts until the last holder leaves."""
    one = client(fs, content=b"x" * 8 * BLOCK)
    reader = another(one, 2)
    reader.ask(0, 8 * BLOCK)
    one.ask(0, 2 * BLOCK, STORE)
    second = another(one, 3)
    second.ask(4 * BLOCK, BLOCK, STORE)
    assert mapped(fs) == {one.file.ino: 3 * BLOCK}
    one.renew()
    assert mapped(fs) == {one.file.ino: BLOCK}
    second.close()
    assert mapped(fs) == {}
    assert fs.grants.by_ino[one.file.ino].granted.runs


def test_what_a_file_gave_up_can_still_be_stored_to(fs: FileSystem) -> None:
    one = sparse(fs)
    one.ask(0, 2 * BLOCK, STORE)
    truncate(fs, one.file.ino, 0)
    assert mapped(fs) == {one.file.ino: 2 * BLOCK}
    one.renew()
    assert mapped(fs) == {}


def test_clients_are_waited_for_until_they_have_renewed(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "WAIT_SECONDS", HANG_SECONDS)
    busy, reader = client(fs, b"a", b"x" * BLOCK), client(fs, b"b", b"x" * BLOCK)
    busy.ask(0, BLOCK, STORE)
    reader.ask(0, BLOCK)
    before = epoch(busy), epoch(reader)
    steps = storing.renewing(fs.grants)
    for _ in range(3):
        next(steps)
    assert (epoch(busy) > before[0], epoch(reader) > before[1]) == (True, False)
    busy.ask(0, BLOCK, STORE | RENEW)
    finish(steps)
    assert mapped(fs) == {busy.file.ino: BLOCK}, "it was granted that since"


def test_who_does_not_renew_is_not_waited_for_long(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "WAIT_SECONDS", 0.0)
    one = client(fs, content=b"x" * BLOCK)
    one.ask(0, BLOCK, STORE)
    finish(storing.renewing(fs.grants))
    assert mapped(fs) == {one.file.ino: BLOCK}


def test_without_clients_nothing_is_waited_for(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "WAIT_SECONDS", HANG_SECONDS)
    one = client(fs, content=b"x" * BLOCK)
    one.ask(0, BLOCK, STORE)
    one.close()
    with pytest.raises(StopIteration):
        next(storing.renewing(fs.grants))
