"""``daxfs top``: the display of an interval, and how it ends."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from daxfs.errors import UserError
from daxfs.tools import stats, top
from daxfs.tools.snapshot import Operation, Process, Snapshot

OWN = str(os.getpid())
FILES = {"open_files": 3, "remembered": 40, "lazy_times": 2, "nameless": 1, "leases": 7, "refused_opens": 0}
READS = Operation(2, 0, 0, 10_000, 5000, [0] * 13 + [2])


def snapshot(seconds: float, **processes: Process) -> Snapshot:
    """A snapshot with these processes, by ``p`` and their number."""
    by_pid = {name[1:]: each for name, each in processes.items()}
    return Snapshot(1000.0, seconds, False, False, {"READ": READS}, FILES, [], None, [], processes=by_pid)


def shown(found: Snapshot) -> list[str]:
    console = Console(width=stats.WIDTH, highlight=False)
    with console.capture() as text:
        console.print(top.view("/mnt", found))
    return [line.rstrip() for line in text.get().splitlines()]


def test_the_display() -> None:
    found = snapshot(
        2.0,
        p0=Process(4, 8000, 3000, "WRITE"),
        p4194304=Process(100, 1_000_000_000, 7_000_000, "FALLOCATE"),
        p12=Process(0, 0, 5, "READ"),
        **{f"p{OWN}": Process(10, 2_000_000, 900_000, "READ")},
    )
    lines = shown(found)
    assert lines[0].startswith("/mnt: 1 requests a second")
    assert lines[1] == "longest stall: 7.0 ms, FALLOCATE of ended (process 4194304)"
    assert "7 leases" in lines[2]
    own = Path("/proc/self/comm").read_text().strip()
    rows = [line.split() for line in lines[lines.index("") :] if line.split()[:1] and line.split()[0].isdigit()]
    assert rows == [
        ["4194304", "ended", "50", "10000.0", "50.0", "7000.0", "FALLOCATE"],
        [OWN, *own.split(), "5", "200.0", "0.1", "900.0", "READ"],
        ["0", "kernel", "2", "2.0", "0.0", "3.0", "WRITE"],
    ], "the busiest first, none that did nothing"
    assert lines[-1] == "journal: none: mounted read-only"


def test_an_interval_of_a_process() -> None:
    earlier = snapshot(1.0, p1=Process(5, 500, 100, "READ"), p2=Process(9, 900, 100, "READ"))
    later = snapshot(
        2.0, p1=Process(7, 900, 300, "WRITE"), p2=Process(1, 100, 100, "READ"), p3=Process(1, 1, 1, "READ")
    )
    assert later.after(earlier).processes == {
        "1": Process(2, 400, 300, "WRITE"),
        "2": Process(1, 100, 100, "READ"),
        "3": Process(1, 1, 1, "READ"),
    }


def test_a_mount_without_requests() -> None:
    lines = shown(replace(snapshot(0.0), operations={}))
    assert lines[1] == "longest stall: none"


def test_without_a_terminal_one_interval_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([snapshot(1.0), snapshot(2.0)])
    monkeypatch.setattr(stats, "look", lambda _: next(found))
    top.run("/mnt", 0.001)
    assert capsys.readouterr().out.startswith("/mnt: ")
    assert next(found, None) is None


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stats, "look", lambda _: snapshot(1.0))
    monkeypatch.setattr(top.time, "sleep", interrupted)
    top.run("/mnt", 1.0)
    assert capsys.readouterr() == ("", "")


def test_what_is_no_mount(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no daxfs is mounted"):
        top.run(str(tmp_path), 1.0)
    with pytest.raises(UserError, match="--interval"):
        top.run(str(tmp_path), 0.0)
