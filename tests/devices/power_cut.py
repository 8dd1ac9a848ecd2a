"""Changes that are acknowledged to the machine outside the guest, which then cuts the guest's power.

`work` changes pools on several kinds of memory until the guest is gone. Each change is announced in the log of its pool
("try"), made and synchronised, and acknowledged ("done"). The logs lie in a folder that the machine outside shares with
the guest, without a cache. `Acknowledged` reads a log after the next boot: what each file must hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from device_rig import kernel_mounted, mkfs, mounted

from daxfs import direct
from daxfs.tools import exec as preload
from support import run, tool

KINDS = ("fsdax", "devdax-2M", "devdax-4K", "ext4-dax")
FOLDER = "changed"
SIZES = (1, 100, 4096, 5000, 70_000)
FEW, MOST = 4, 40
"""Files of one pool: up to `FEW` they are mostly made, from `MOST` on only removed."""
MAKING = ("write", "write", "direct", "exec")
ALTERING = ("rename", "unlink", "append")
"""The changes; one that is named twice is made twice as often."""


class File(NamedTuple):
    """A file that must be there: its name, the size of its first content, and how often it was appended to."""

    name: str
    size: int
    appended: int


def content(number: int, size: int) -> bytes:
    """The bytes that file ``number`` begins with."""
    return hashlib.shake_128(b"%d" % number).digest(size)


def appended(number: int, times: int) -> bytes:
    """What was appended to file ``number``."""
    return b"".join(content(number + 1_000_000 * (time + 1), 3000) for time in range(times))


class Acknowledged:
    """What a log says.

    Attributes:
        files: what must be there, by number; None: no file may have the number.
        in_flight: numbers whose last change was cut short, so that nothing is known of them.
        count: changes that were acknowledged.
    """

    def __init__(self, log: Path) -> None:
        self.files: dict[int, File | None] = {}
        self.in_flight: set[int] = set()
        self.count = 0
        announced: list[str] | None = None
        for line in log.read_text().splitlines():
            word, *change = line.split()
            if word in ("boot", "try"):
                self._cut_short(announced)
                announced = change if word == "try" else None
            else:
                assert change == announced
                announced = None
                self.count += 1
                self._apply(*change)
        self._cut_short(announced)

    def _cut_short(self, announced: list[str] | None) -> None:
        """Note a change that was announced and not acknowledged, if there is one: the power was cut in it."""
        if announced is not None:
            number = int(announced[1])
            self.in_flight.add(number)
            self.files.pop(number, None)

    def _apply(self, what: str, text: str, size: str = "0") -> None:
        number = int(text)
        file = self.files.get(number)
        if what in MAKING:
            self.files[number] = File(f"f{number}", int(size), 0)
        elif what == "unlink":
            self.files[number] = None
        else:
            assert file is not None
            renamed = file._replace(name=f"r{number}")
            self.files[number] = renamed if what == "rename" else file._replace(appended=file.appended + 1)


def check(root: Path, acknowledged: Acknowledged) -> list[str]:
    """Compare a directory with what was acknowledged; return what is wrong."""
    wrong = []
    names = set(os.listdir(root))
    for number, file in acknowledged.files.items():
        there = {name for name in (f"f{number}", f"r{number}") if name in names}
        if file is None:
            wrong += [f"{name} was removed and is there" for name in there]
        elif there != {file.name}:
            wrong.append(f"{file.name} is {there or 'not there'}")
        elif (root / file.name).read_bytes() != content(number, file.size) + appended(number, file.appended):
            wrong.append(f"{file.name} has other bytes")
        names -= there
    wrong += [f"{name} is there" for name in names if int(name[1:]) not in acknowledged.in_flight]
    return wrong


@contextlib.contextmanager
def pool_of(kind: str, devices: dict[str, Path], *, new: bool = False) -> Iterator[Path]:
    """The pool of a kind; on a host file system that the guest's kernel mounts for ``ext4-dax``."""
    if kind in devices:
        yield mkfs(devices[kind]) if new else devices[kind]
        return
    if new:
        run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", devices["host"])
    with kernel_mounted(devices["host"], "dax") as place:
        yield mkfs(place / "pool", "--sparse") if new else place / "pool"


def work(devices: dict[str, Path], logs: Path) -> None:
    """Change all pools in turn until the power is cut; make those that have no log."""
    with contextlib.ExitStack() as stack:
        workers = []
        for kind in KINDS:
            log = logs / kind
            new = not log.exists()
            pool = stack.enter_context(pool_of(kind, devices, new=new))
            mount = stack.enter_context(mounted(pool))
            root = mount.place / FOLDER
            if new:
                root.mkdir()
                synchronise(mount.place)
                log.touch()
            workers.append(Worker(root, log))
        while True:
            for worker in workers:
                worker.change()


def synchronise(path: Path) -> None:
    """fsync(2) a directory or file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Worker:
    """Changes one pool, and logs what it does."""

    def __init__(self, root: Path, log: Path) -> None:
        known = Acknowledged(log)
        self._root = root
        self._files = {number: file for number, file in known.files.items() if file is not None}
        self._next = max([0, *known.files, *known.in_flight]) + 1
        self._chance = random.Random(known.count)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)
        self._say("boot")

    def _say(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    def change(self) -> None:
        """Announce a change, make it durable, acknowledge it."""
        what = self._choose()
        if what in MAKING:
            number, size = self._next, self._chance.choice(SIZES)
            self._next += 1
            words: tuple[object, ...] = (what, number, size)
            self._say("try", *words)
            self._create(what, number, size)
            self._files[number] = File(f"f{number}", size, 0)
        else:
            number = self._chance.choice(list(self._files))
            words = (what, number)
            self._say("try", *words)
            self._alter(what, number)
        self._say("done", *words)

    def _choose(self) -> str:
        if len(self._files) >= MOST:
            return "unlink"
        if len(self._files) > FEW:
            return self._chance.choice(MAKING + ALTERING)
        if self._files and self._chance.random() < 0.3:
            return "unlink"
        return self._chance.choice(MAKING)

    def _create(self, what: str, number: int, size: int) -> None:
        path = self._root / f"f{number}"
        data = content(number, size)
        if what in ("direct", "exec"):
            path.write_bytes(bytes(size))
            synchronise(path)
            synchronise(self._root)
        if what == "direct":
            with direct.open(path, "r+b") as file:
                file.pwrite(0, data)
                file.flush()
        elif what == "exec":
            command = [tool("dd"), f"of={path}", "conv=notrunc,fsync", "bs=2K", "status=none"]
            subprocess.run(command, input=data, env=preload.environment(os.environ), check=True)
        else:
            with path.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())

    def _alter(self, what: str, number: int) -> None:
        file = self._files[number]
        path = self._root / file.name
        if what == "rename":
            path.rename(self._root / f"r{number}")
            synchronise(self._root)
            self._files[number] = file._replace(name=f"r{number}")
        elif what == "unlink":
            path.unlink()
            synchronise(self._root)
            del self._files[number]
        else:
            with path.open("ab") as stream:
                stream.write(appended(number, file.appended + 1)[-3000:])
                stream.flush()
                os.fsync(stream.fileno())
            self._files[number] = file._replace(appended=file.appended + 1)
