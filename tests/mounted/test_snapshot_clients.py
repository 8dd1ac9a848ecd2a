"""Snapshots while clients store without the daemon: what an export shows was there while the snapshot was made."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from operator import gt
from pathlib import Path

from cli_rig import daxfs
from mount_rig import COMMAND, SESSIONS, mounted
from snapshot_actor import FAST, NUMBER, PAGE, PAGES, SLOW, WAYS, name
from tree_rig import QUIET

from daxfs.fs.filesystem import FileSystem
from support import HANG_SECONDS

Pool = Callable[..., Path]
ACTOR = Path(__file__).parents[1] / "snapshot_actor.py"
KINDS = {"direct": (), "plain": (*COMMAND, "exec", "--")}


class Actor:
    """A client with its files, in a folder of its own."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        folder.mkdir()
        for pace in (FAST, SLOW):
            for way in WAYS:
                (folder / name(pace, way)).write_bytes(bytes(PAGES * PAGE))
        self.process = subprocess.Popen(
            [*KINDS[kind], sys.executable, ACTOR, kind, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def set(self, number: int) -> None:
        """Have it store into the slow files."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        assert self.process.stdout.readline() == f"{number}\n"

    def numbers(self, pace: str) -> list[list[int]]:
        """The numbers of its files now."""
        return [numbers_in((self.folder / name(pace, way)).read_bytes()) for way in WAYS]

    def goes_on_from(self, seen: list[list[int]]) -> None:
        """Wait until each page of the fast files has a larger number."""
        end = time.monotonic() + HANG_SECONDS
        before = [number for numbers in seen for number in numbers]
        while not all(map(gt, chain.from_iterable(self.numbers(FAST)), before)):
            assert time.monotonic() < end, "the client stores no longer"
            assert self.process.poll() is None


def numbers_in(content: bytes) -> list[int]:
    return [NUMBER.unpack_from(content, page * PAGE)[0] for page in range(PAGES)]


@contextmanager
def actors(place: Path) -> Iterator[list[Actor]]:
    with ExitStack() as stack:
        made = []
        for kind in KINDS:
            made.append(Actor(place / kind, kind))
            stack.enter_context(made[-1].process)
            stack.callback(made[-1].process.kill)
        for each in made:
            each.set(1)
        yield made


def test_an_export_shows_what_clients_had_stored(pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path, *SESSIONS["kernel"]) as mount, actors(mount.place) as clients:
        before, after = {}, {}
        for number, snapshot in enumerate(("one", "two"), 2):
            for each in clients:
                each.goes_on_from([[number] * PAGES] * 2)
                each.set(number)
                before[snapshot, each] = each.numbers(FAST)
            made = json.loads(daxfs("snapshot", "create", mount.place, snapshot, "--json"))
            for each in clients:
                after[snapshot, each] = each.numbers(FAST)
                each.set(number + 100)  # their next stores, before any request
            assert made["mapped"] >= 4 * PAGES * PAGE, "all that is mapped is copied at once"
            assert made["skipped"] == 0
            assert made["files"]
        for each in clients:
            each.goes_on_from(after["two", each])
        for number, snapshot in enumerate(("one", "two"), 2):
            image = path.with_name(snapshot)
            daxfs("snapshot", "export", mount.place, snapshot, image)
            with FileSystem.open(image, QUIET) as fs:
                for each in clients:
                    for at, way in enumerate(WAYS):
                        folder = each.folder.name
                        slow = numbers_in(fs.tree.read_bytes(f"{folder}/{name(SLOW, way)}"))
                        assert slow == [number] * PAGES, (snapshot, folder, way)
                        fast = numbers_in(fs.tree.read_bytes(f"{folder}/{name(FAST, way)}"))
                        low, high = before[snapshot, each][at], after[snapshot, each][at]
                        for page in range(PAGES):
                            assert low[page] <= fast[page] <= high[page], (snapshot, folder, way, page)


def test_mapped_files_are_left_out_and_named(pool: Pool) -> None:
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"]) as mount, actors(mount.place) as clients:
        said = daxfs("snapshot", "create", mount.place, "one", "--skip-mapped")
        assert said.startswith("not in the snapshot, since programs may store there at any time: ")
        for each in clients:
            number = (each.folder / name(SLOW, "mapped")).stat().st_ino
            assert f"inode {number}: 64 KiB, opened by process {each.process.pid}" in said
        assert "without" in daxfs("snapshot", "list", mount.place)
        said = daxfs("snapshot", "create", mount.place, "two")
        assert said.startswith("copied at once, since programs may store there at any time: ")
        shown = json.loads(daxfs("stats", mount.place, "--total", "--json"))
        assert shown["files"]["snapshots"] == 2
        assert shown["files"]["snapshot_mapped"] >= 4 * PAGES * PAGE
