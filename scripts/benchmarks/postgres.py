"""PostgreSQL on daxfs, on daxfs below `daxfs exec`, and on the kernel's ext4 on a loop device, by pgbench.

The settings are those under which the file system decides: data checksums, 8 MB of shared buffers for some 160 MB of
tables, four clients. PostgreSQL refuses to run as root, so root starts it as the user of Debian's package. That user
gets one capability, to read what lies below directories that it may not search: the library of a checkout in root's
home directory. Each server starts before its measurement and stops after it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import rig
from benchmarks import systems
from benchmarks.direct import exec_command
from benchmarks.report import Ratio, Report, Samples

PLAIN, DIRECT, KERNEL = "daxfs", "direct", "ext4"
PROGRAMS = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
ROUNDS = 3
SCALE, CLIENTS = 10, 4
POOL = "1G"
SCRIPTS = {"default script": (), "-S": ("-S",)}
GOALS = {PLAIN: {"default script": 1.0, "-S": 0.6}, DIRECT: {"default script": 1.4, "-S": 1.2}}
SETTINGS = {"shared_buffers": "8MB", "listen_addresses": "", "fsync": "on", "max_connections": "20"}
LIMIT = 300


def missing() -> str:
    """Return what this section lacks, or nothing."""
    if os.getuid():
        return "PostgreSQL (root starts it as another user, and mounts the kernel's ext4)"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return "PostgreSQL (package postgresql-15)"
    return "" if (PROGRAMS / "pgbench").exists() else "PostgreSQL (package postgresql-15)"


def postgres(base: Path, report: Report) -> None:
    """Compare the three systems in turn, by pgbench's default script and by its script of selections."""
    if lacking := missing():
        report.not_run(lacking)
        return
    samples = Samples("transactions/s")
    with ExitStack() as stack:
        places = {name: stack.enter_context(mounted(base, name)) for name in (PLAIN, DIRECT, KERNEL)}
        servers = {
            name: Server(place, base, exec_command() if name == DIRECT else ()) for name, place in places.items()
        }
        for name, server in servers.items():
            server.initialize()
            report.say(f"{name}: the tables are made")
        for _ in range(min(report.scale.rounds, ROUNDS)):
            for name, server in servers.items():
                with server.running():
                    for script, options in SCRIPTS.items():
                        samples.add(script, name, server.measure(5 * report.scale.seconds, options))
    ratios = [Ratio(name, KERNEL, goals) for name, goals in GOALS.items()]
    report.compare(f"PostgreSQL 15, pgbench, scale {SCALE}, {CLIENTS} clients", samples, ratios)


@contextlib.contextmanager
def mounted(base: Path, name: str) -> Iterator[Path]:
    """Mount a new pool for the body, which is then checked. A program below `daxfs exec` must own the pool."""
    if name == KERNEL:
        pool, point = base / f"{name}.pool", base / f"{name}.mnt"
        point.mkdir()
        rig.make_peer_pool(pool, POOL)
        mount: AbstractContextManager[Path] = rig.kernel_ext4(pool, point)
    else:
        pool, point = (system := systems.make(base, name, POOL)).pool, system.point
        shutil.chown(pool, USER)
        mount = rig.daxfs(pool, point, "trust_owner")
    with mount:
        yield point
    rig.check(pool)


class Server:
    """A PostgreSQL server with its data in a directory.

    Args:
        place: a directory; the data is in a new one in it.
        base: a directory in which sockets can be made.
        below: the command below which the server runs.
    """

    def __init__(self, place: Path, base: Path, below: Sequence[str]) -> None:
        self.data = place / "data"
        self.data.mkdir()
        self._sockets = base / f"{place.stem}.sockets"
        self._sockets.mkdir()
        self._below = below
        for path in (self.data, self._sockets):
            shutil.chown(path, USER, USER)
        self.data.chmod(0o700)

    def run(self, program: str, *words: str | Path, below: Sequence[str] = ()) -> str:
        """Run a program of PostgreSQL as its user; return its output."""
        user = ("--reuid", USER, "--regid", USER, "--clear-groups")
        may_search = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        command = (*below, rig.tool("setpriv"), *user, *may_search, PROGRAMS / program, *words)
        return rig.run(*command, limit=LIMIT).stdout

    def initialize(self) -> None:
        """Make the data base and pgbench's tables."""
        self.run("initdb", "-k", "-A", "trust", "--no-locale", "-D", self.data)
        with self.running():
            self.run("pgbench", "-i", "-q", "-s", str(SCALE), "-h", self._sockets, "postgres")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server for the body."""
        settings = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        log, options = self._sockets / "log", f"{settings} -k {self._sockets}"
        self.run("pg_ctl", "start", "-w", "-D", self.data, "-l", log, "-o", options, below=self._below)
        try:
            yield
        finally:
            self.run("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)

    def measure(self, seconds: float, options: Sequence[str]) -> float:
        """Return pgbench's transactions per second."""
        how = ("-n", "-c", str(CLIENTS), "-T", str(max(round(seconds), 1)), *options)
        output = self.run("pgbench", *how, "-h", self._sockets, "postgres")
        found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"pgbench printed no rate: {output[-500:]}")
        return float(found[1])
