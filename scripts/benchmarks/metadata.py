"""Names and attributes compared with fuse2fs and the kernel's ext4: many files in one directory, small appends that are
made durable, and a source tree unpacked and removed.

*Cold* means after a new mount: neither the kernel nor the daemon has cached anything of the files. *Warm* is a
repetition. Only one system is mounted at a time, and the systems take turns. The kernel's ext4 is mounted on a loop
device, as root only.

The machine's load makes the rates noisy, so a second table has the CPU time of the daemons for each operation.
"""

from __future__ import annotations

import io
import math
import os
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.alone import cpu_seconds, daemon
from benchmarks.report import Ratio, Report, Samples
from benchmarks.systems import System

MEDIAN_SIZE = 4_500
SPREAD = 1.3
LARGEST_SIZE = 256 << 10
FILES_PER_DIRECTORY = 20
SEED = 20_000
UNPACK_LIMIT = 300
BLOCK = bytes(4096)
CREATE, RENAME, UNLINK, APPEND, LIST = "create+close", "rename", "unlink", "append 4 KiB+fsync", "readdir, cold"
PEER_GOALS = {CREATE: 2.0, RENAME: 3.0, UNLINK: 2.0, APPEND: 2.0, LIST: 0.5}
"""What daxfs's rate shall be, in those of fuse2fs; 1 for all others."""
KERNEL_GOALS = dict.fromkeys((CREATE, RENAME, UNLINK, APPEND), 0.25)
"""What daxfs's rate shall be, in those of the kernel's ext4."""


def metadata(base: Path, report: Report) -> None:
    """Compare the systems in turn, round by round."""
    archive = base / "tree.tar"
    make_tree(archive, report.scale.tree)
    names = ["daxfs", "fuse2fs", "ext4"]
    if os.geteuid():
        names.remove("ext4")
        report.not_run("the kernel's ext4 (only root mounts it)")
    found = [systems.make(base, name, "1G") for name in names]
    samples, costs = Samples("operations/s"), Samples("us of the daemon's CPU for each operation")
    for _ in range(report.scale.rounds):
        for system in found:
            rates = many(system, report.scale.files, costs) | tree(system, archive, report.scale.tree)
            for what, rate in rates.items():
                samples.add(what, system.name, rate)
    title = f"{report.scale.files:,} files in one directory, a tree of {report.scale.tree:,} files"
    peer = Ratio("daxfs", "fuse2fs", dict.fromkeys(samples.rows, 1.0) | PEER_GOALS)
    report.compare(title, samples, (peer, *[Ratio("daxfs", name, KERNEL_GOALS) for name in names[2:]]))
    report.compare("the same, the daemons", costs)
    for system in found:
        report.say(f"{system.name}: {system.check()}")


def many(system: System, count: int, costs: Samples) -> dict[str, float]:
    """Do each operation on every file of one directory; return operations per second, and add the daemon's CPU time."""
    directory = f"{system.point}/many"
    names = [f"{directory}/file{number:06d}" for number in range(count)]
    rates: dict[str, float] = {}

    def timed(what: str, action: Callable[[], object]) -> None:
        serving = None if system.name == "ext4" else daemon(system.point, system.name)
        used = cpu_seconds(serving) if serving is not None else 0.0
        begin = time.perf_counter()
        action()
        rates[what] = count / (time.perf_counter() - begin)
        if serving is not None:
            costs.add(what, system.name, 1e6 * (cpu_seconds(serving) - used) / count)

    def each(action: Callable[[str], object]) -> Callable[[], object]:
        def do() -> None:
            for name in names:
                action(name)

        return do

    def listing() -> None:
        assert len(os.listdir(directory)) == count

    def long_listing() -> None:
        with os.scandir(directory) as found:
            assert sum(entry.stat(follow_symlinks=False).st_nlink for entry in found) == count

    def append() -> None:
        file = os.open(f"{directory}/appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            for _ in range(count):
                os.write(file, BLOCK)
                os.fsync(file)
        finally:
            os.close(file)

    with system.mounted():
        os.mkdir(directory)
        timed(CREATE, each(lambda name: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))))
    with system.mounted():
        timed("stat, cold", each(os.stat))
        timed("stat, warm", each(os.stat))
    with system.mounted():
        timed(LIST, listing)
        timed("readdir, warm", listing)
    with system.mounted():
        timed("readdir and stat, cold", long_listing)
        timed(RENAME, each(lambda name: os.rename(name, name + "x")))
        names = [name + "x" for name in names]
        timed(UNLINK, each(os.unlink))
        timed(APPEND, append)
        os.unlink(f"{directory}/appended")
        os.rmdir(directory)
    return rates


def tree(system: System, archive: Path, count: int) -> dict[str, float]:
    """Unpack a source tree by tar(1) and remove it by rm(1); return files per second."""
    rates = {}
    with system.mounted() as point:
        for what, command in (
            ("tree unpacked", ("tar", "-xf", archive, "-C", point)),
            ("tree removed", ("rm", "-rf", point / "tree")),
        ):
            begin = time.perf_counter()
            rig.run(*command, limit=UNPACK_LIMIT)
            rates[what] = count / (time.perf_counter() - begin)
    return rates


def make_tree(archive: Path, count: int) -> None:
    """Make an archive of a source tree, always the same: sizes as in source code, directories up to four deep."""
    chance = random.Random(SEED)
    text = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz_(){};=    \n", k=LARGEST_SIZE))
    directories = ["tree"]
    with tarfile.open(archive, "w") as packed:
        add(packed, "tree", tarfile.DIRTYPE, 0o755)
        for number in range(count):
            if number % FILES_PER_DIRECTORY == 0:
                above = [path for path in directories if path.count("/") < 3]
                directories.append(f"{chance.choice(above)}/part{len(directories)}")
                add(packed, directories[-1], tarfile.DIRTYPE, 0o755)
            size = min(int(chance.lognormvariate(math.log(MEDIAN_SIZE), SPREAD)), LARGEST_SIZE)
            name = f"{chance.choice(directories)}/module{number:04d}.c"
            add(packed, name, tarfile.REGTYPE, 0o644, text[:size])


def add(packed: tarfile.TarFile, name: str, kind: bytes, mode: int, content: bytes = b"") -> None:
    """Add a member that belongs to this user."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size = kind, mode, len(content)
    member.uid, member.gid, member.mtime = os.getuid(), os.getgid(), 1_700_000_000
    packed.addfile(member, io.BytesIO(content))
