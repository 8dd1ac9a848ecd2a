"""``daxfs top``: what a mount is doing now, by kind of request and by process, refreshed until it is interrupted.

Each refresh shows an interval, except for the longest stalls, which are those since counting began. Without a terminal
one interval is printed, unless ``--count`` or ``--json`` asks for more. Between two looks nothing of the mount is open,
so the display does not prevent an unmount.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count as count_from
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daxfs.errors import UserError
from daxfs.tools import stats
from daxfs.tools.sizes import format_size
from daxfs.tools.snapshot import Snapshot, percentile

MOST_ROWS = 12
"""The most processes that a terminal shows."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of one kind in an interval; ``longest_us`` since counting began, and the process that sent it."""

    per_second: float
    errors: int
    bytes_per_second: float
    mean_us: float
    p99_us: float
    longest_us: float
    longest_by: int
    program: str


@dataclass(frozen=True, slots=True)
class Sender:
    """The requests of one process in an interval; ``longest_us`` since counting began, and its kind."""

    pid: int
    program: str
    user: str
    per_second: float
    bytes_per_second: float
    mean_us: float
    p99_us: float
    share: float
    longest_us: float
    longest_is: str


@dataclass(frozen=True, slots=True)
class Refresh:
    """One interval; ``--json`` prints these names.

    Attributes:
        mountpoint: of the mount.
        time: its end, in seconds since 1970.
        seconds: its length.
        per_second: requests.
        busy: the share of the interval that requests took, 0 to 1.
        cpu: the daemon's processor time, as a share.
        spinning: the time that the session waited for requests without sleeping, as a share.
        operations: by the name of the kind of request, those first that took most time.
        processes: those that took most time first.
        files: what is open, remembered by the kernel, leased and so on.
        journal: commits in the interval, and the state of the log; None on a read-only mount.
        holding: the open files that deferred frees wait for.
        tiers: reads and moves of a tiered pool in the interval; None: the pool has no storage.
    """

    mountpoint: str
    time: float
    seconds: float
    per_second: float
    busy: float
    cpu: float
    spinning: float
    operations: dict[str, Requests]
    processes: list[Sender]
    files: dict[str, int]
    journal: dict[str, Any] | None
    holding: list[dict[str, int]]
    tiers: dict[str, Any] | None

    @classmethod
    def of(cls, mountpoint: str, found: Snapshot) -> Refresh:
        """Compute the rates of an interval."""
        seconds = found.seconds or 1.0
        operations = sorted(found.operations.items(), key=lambda item: -item[1].nanoseconds)
        processes = sorted(found.processes.items(), key=lambda item: -item[1].nanoseconds)
        return cls(
            mountpoint,
            found.since + found.seconds,
            found.seconds,
            sum(each.count for _, each in operations) / seconds,
            sum(each.nanoseconds for _, each in operations) / 1e9 / seconds,
            found.session["cpu"] / seconds,
            found.session["spun"] / seconds,
            {
                name: Requests(
                    each.count / seconds,
                    each.errors,
                    each.bytes / seconds,
                    each.nanoseconds / each.count / 1000,
                    percentile(each.histogram, 0.99, each.longest) / 1000,
                    each.stall / 1000,
                    each.longest_by,
                    program(each.longest_by),
                )
                for name, each in operations
                if each.count
            },
            [
                Sender(
                    int(pid),
                    program(int(pid)),
                    user(int(pid)),
                    each.count / seconds,
                    each.bytes / seconds,
                    each.nanoseconds / each.count / 1000,
                    percentile(each.histogram, 0.99, each.longest) / 1000,
                    each.nanoseconds / 1e9 / seconds,
                    each.longest / 1000,
                    each.longest_is,
                )
                for pid, each in processes
                if each.count
            ],
            found.files,
            found.journal,
            found.holding,
            found.tiers,
        )


def run(mountpoint: str, interval: float, count: int | None = None, *, as_json: bool = False) -> None:
    """Show the mount.

    Args:
        mountpoint: of the mount.
        interval: seconds of each refresh.
        count: how many refreshes; None: until the user interrupts, or one if text goes to no terminal.
        as_json: print a JSON document, in a line, for each refresh.

    Raises:
        NoAnswer: the daemon does not answer; a terminal shows that instead.
        UserError: as `stats.look`; the mount is gone, for example.
    """
    stats.check_interval(interval)
    if count is not None and count < 1:
        raise UserError("--count takes 1 or more", os.EX_USAGE)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else stats.WIDTH)
    live = console.is_terminal and not as_json
    rounds = range(count) if count is not None else count_from() if live or as_json else range(1)
    with suppress(KeyboardInterrupt):
        earlier = stats.look(mountpoint)
        if live:
            with Live(Text("..."), console=console, auto_refresh=False, screen=True) as display:
                for _ in rounds:
                    time.sleep(interval)
                    try:
                        found = stats.look(mountpoint)
                    except stats.NoAnswer as error:
                        display.update(Text(str(error)), refresh=True)
                        continue
                    display.update(view(mountpoint, found.after(earlier)), refresh=True)
                    earlier = found
            return
        for each in rounds:
            time.sleep(interval)
            found = stats.look(mountpoint)
            if as_json:
                print(json.dumps(asdict(Refresh.of(mountpoint, found.after(earlier)))), flush=True)
            else:
                if each:
                    console.print()
                console.print(view(mountpoint, found.after(earlier)))
            earlier = found


def view(mountpoint: str, found: Snapshot) -> RenderableType:
    """Return the display of an interval."""
    shown = Refresh.of(mountpoint, found)
    head = (
        f"{mountpoint}: {shown.per_second:.0f} requests a second take {100 * shown.busy:.0f} % of the time; "
        f"the daemon uses {100 * shown.cpu:.0f} % of a processor, {100 * shown.spinning:.0f} % to wait without sleeping"
    )
    parts: list[RenderableType] = [Text(head), Text(stall(found)), Text("")]
    if shown.operations:
        parts += [operations(shown), Text("")]
    if shown.processes:
        parts += [processes(shown), Text("")]
    return Group(*parts, *map(Text, stats.summary(found)))


def stall(found: Snapshot) -> str:
    """Name the request that made others wait longest since counting began, and who sent it."""
    pid, longest = max(found.processes.items(), key=lambda item: item[1].longest, default=("0", None))
    if longest is None:
        return "longest stall: none"
    return f"longest stall: {longest.longest / 1e6:.1f} ms, {longest.longest_is} of {program(int(pid))} (process {pid})"


def _table(texts: tuple[str, ...], numbers: tuple[str, ...], last: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in texts:
        table.add_column(title, no_wrap=True)
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for title in last:
        table.add_column(title, no_wrap=True)
    return table


def operations(shown: Refresh) -> Table:
    """Return the table of requests by kind."""
    table = _table(("request",), ("per s", "errors", "bytes/s", "mean us", "p99 us", "longest us"), ("of",))
    for name, each in shown.operations.items():
        table.add_row(
            name,
            f"{each.per_second:.0f}",
            str(each.errors or ""),
            _size(each.bytes_per_second),
            f"{each.mean_us:.1f}",
            f"{each.p99_us:.1f}",
            f"{each.longest_us:.1f}",
            f"{each.program} ({each.longest_by})",
        )
    return table


def processes(shown: Refresh) -> Table:
    """Return the table of the processes that took most time in the interval."""
    numbers = ("per s", "bytes/s", "mean us", "p99 us", "% of time", "longest us")
    table = _table(("process", "user", "program"), numbers, ("in",))
    for each in shown.processes[:MOST_ROWS]:
        table.add_row(
            str(each.pid),
            each.user,
            each.program,
            f"{each.per_second:.0f}",
            _size(each.bytes_per_second),
            f"{each.mean_us:.1f}",
            f"{each.p99_us:.1f}",
            f"{100 * each.share:.1f}",
            f"{each.longest_us:.1f}",
            each.longest_is,
        )
    return table


def _size(number: float) -> str:
    return format_size(round(number)) if number else ""


def program(pid: int) -> str:
    """Return the name of a process's program; "kernel" for the kernel's own requests."""
    if not pid:
        return "kernel"
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


def user(pid: int) -> str:
    """Return the name or the number of a process's user; "" for the kernel, and for a process that has ended."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        return pwd.getpwuid(uid).pw_name
    except OSError:
        return ""
    except KeyError:
        return str(uid)
