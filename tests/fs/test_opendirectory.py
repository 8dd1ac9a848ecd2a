"""Open directories: a listing continues after any cookie, whatever happens to the names meanwhile."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
from directory_rig import weaken_hashes

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.steps import finish
from daxfs.fs.types import ROOT_INO


@pytest.mark.crash
def test_a_listing_goes_on_while_names_come_and_go(fs: FileSystem) -> None:
    stay = {b"stay-%04d" % number for number in range(800)}
    for name in stay:
        fs.mknod(ROOT_INO, name, 0o644)
    directory = fs.opendir(ROOT_INO)
    seen: list[bytes] = []
    cookie = turn = 0
    while True:
        batch = []
        for entry in fs.readdir(directory, cookie):
            batch.append(entry)
            if len(batch) == 37:
                break
        if not batch:
            break
        cookie = batch[-1].cookie
        seen += [entry.name for entry in batch]
        for number in range(20):
            fs.mknod(ROOT_INO, b"come-%d-%d" % (turn, number), 0o644)
        if turn:
            for number in range(20):
                fs.unlink(ROOT_INO, b"come-%d-%d" % (turn - 1, number))
        turn += 1
    fs.releasedir(directory)
    kept = [name for name in seen if name.startswith(b"stay")]
    assert len(kept) == len(set(kept)) == 800
    assert len(seen) == len(set(seen))


def test_listings_share_the_names_of_the_cached_portion(fs: FileSystem) -> None:
    """A name is decoded once, and not made again for each reader or for each layer that it passes."""
    fs.mknod(ROOT_INO, b"name", 0o644)
    directory = fs.opendir(ROOT_INO)
    first, second = list(fs.readdir(directory)), finish(fs.steps.readdir(directory))
    fs.releasedir(directory)
    assert {entry.name for entry in first} == {b".", b"..", b"lost+found", b"name"}
    assert second.entries() == first
    assert all(one.name is other for one, other in zip(first[2:], second.names[2:], strict=True))


OpenFs = Callable[..., FileSystem]


@pytest.mark.interpreted
def test_a_listing_goes_on_across_remounts(open_fs: OpenFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with the same hash keep the places that the reader got, although the first of them were removed."""
    weaken_hashes(monkeypatch)
    fs = open_fs()
    names = {b"name %d" % i for i in range(40)}
    for name in names:
        fs.mknod(ROOT_INO, name, stat.S_IFREG | 0o644)
    seen: list[bytes] = []
    cookie, root = 0, fs.opendir(ROOT_INO)
    while more := list(islice(fs.readdir(root, cookie), 1)):
        seen.append(more[0].name)
        cookie = more[0].cookie
        if seen[-1] in names:
            fs.unlink(ROOT_INO, seen[-1])
        for read_only in (True, False):
            fs.remount(replace(fs.options, read_only=read_only))
    assert sorted(seen) == sorted({*names, b".", b"..", b"lost+found"})
