"""``daxfs top``: what a mount is doing now, by kind of request and by process, refreshed until it is interrupted.

Between two looks nothing of the mount is open, so the display does not prevent an unmount. Without a terminal one
interval is printed.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daxfs.tools import stats
from daxfs.tools.snapshot import Snapshot

MOST_ROWS = 12
"""The most processes that are shown."""


def run(mountpoint: str, interval: float) -> None:
    """Show the mount until the user interrupts, or once if the output is no terminal.

    Raises:
        UserError: as `stats.opened` and `stats.ask`; the mount is gone, for example.
    """
    stats.check_interval(interval)
    earlier = stats.look(mountpoint)
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else stats.WIDTH)
    with suppress(KeyboardInterrupt):
        if not console.is_terminal:
            time.sleep(interval)
            console.print(view(mountpoint, stats.look(mountpoint).after(earlier)))
            return
        with Live(Text("..."), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(interval)
                found = stats.look(mountpoint)
                live.update(view(mountpoint, found.after(earlier)), refresh=True)
                earlier = found


def view(mountpoint: str, found: Snapshot) -> RenderableType:
    """Return the display of an interval."""
    count = sum(operation.count for operation in found.operations.values())
    busy = sum(operation.nanoseconds for operation in found.operations.values()) / 1e9
    seconds = found.seconds or 1
    head = f"{mountpoint}: {count / seconds:.0f} requests a second, {100 * busy / seconds:.0f} % busy"
    parts: list[RenderableType] = [Text(head), Text(stall(found)), Text(stats.files(found)), Text("")]
    if found.operations:
        parts += [stats.table(found), Text(""), processes(found)]
    parts += [Text(""), Text(f"journal: {stats.journal(found.journal)}")]
    return Group(*parts)


def stall(found: Snapshot) -> str:
    """Name the request that made others wait longest since counting began, and who sent it."""
    pid, longest = max(found.processes.items(), key=lambda item: item[1].longest, default=("", None))
    if longest is None:
        return "longest stall: none"
    return f"longest stall: {longest.longest / 1e6:.1f} ms, {longest.longest_is} of {program(pid)} (process {pid})"


def processes(found: Snapshot) -> Table:
    """Return the table of the processes that took most time in the interval."""
    table = Table(box=None, pad_edge=False)
    for title in ("process", "program"):
        table.add_column(title, no_wrap=True)
    for title in ("per s", "mean us", "% of time", "longest us", "in"):
        table.add_column(title, justify="right", no_wrap=True)
    active = [(pid, each) for pid, each in found.processes.items() if each.count]
    for pid, each in sorted(active, key=lambda item: -item[1].nanoseconds)[:MOST_ROWS]:
        table.add_row(
            pid,
            program(pid),
            f"{each.count / (found.seconds or 1):.0f}",
            f"{each.nanoseconds / each.count / 1000:.1f}",
            f"{each.nanoseconds / 1e7 / (found.seconds or 1):.1f}",
            f"{each.longest / 1000:.1f}",
            each.longest_is,
        )
    return table


def program(pid: str) -> str:
    """Return the name of a process's program; "kernel" for the kernel's own requests."""
    if pid == "0":
        return "kernel"
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"
