"""``daxfs top``: the display of an interval, and how it ends."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from daxfs.errors import UserError
from daxfs.tools import stats, top
from daxfs.tools.snapshot import Operation, Process, Snapshot

OWN = str(os.getpid())
FILES = {
    "open_files": 3,
    "remembered": 40,
    "lazy_times": 2,
    "nameless": 1,
    "leases": 7,
    "refused_opens": 0,
    "deferred": 4096,
    "memory_errors": 0,
    "bad_bytes": 0,
    "snapshots": 0,
    "snapshot_copied": 0,
    "snapshot_mapped": 0,
}
READS = Operation(2, 0, 8192, 10_000, 5000, [0] * 12 + [1, 1], 5_000_000, 4194304)
HOLDING = [{"ino": 12, "uid": 1000, "pid": 77, "size": 4096}]


def snapshot(seconds: float, **processes: Process) -> Snapshot:
    """A snapshot with these processes, by ``p`` and their number."""
    by_pid = {name[1:]: each for name, each in processes.items()}
    session = {"spun": seconds / 4, "cpu": seconds / 2}
    return Snapshot(1000.0, seconds, False, False, {"READ": READS}, FILES, HOLDING, None, [], by_pid, session)


def busy() -> Snapshot:
    """A snapshot of two seconds with four processes, of which one did nothing."""
    return snapshot(
        2.0,
        p0=Process(4, 8000, 3000, "WRITE", 0, [0] * 11 + [3, 1]),
        p4194304=Process(100, 1_000_000_000, 7_000_000, "FALLOCATE", 1 << 20, [0] * 23 + [100]),
        p12=Process(0, 0, 5, "READ"),
        **{f"p{OWN}": Process(10, 2_000_000, 900_000, "READ", 0, [0] * 18 + [10])},
    )


def shown(found: Snapshot) -> list[str]:
    console = Console(width=stats.WIDTH, highlight=False)
    with console.capture() as text:
        console.print(top.view("/mnt", found))
    return [line.rstrip() for line in text.get().splitlines()]


def test_the_display() -> None:
    lines = shown(busy())
    assert lines[0] == (
        "/mnt: 1 requests a second take 0 % of the time; "
        "the daemon uses 50 % of a processor, 25 % to wait without sleeping"
    )
    assert lines[1] == "longest stall: 7.0 ms, FALLOCATE of ended (process 4194304)"
    tables = [line.split() for line in lines]
    assert ["request", "per", "s", "errors", "bytes/s", "mean", "us", "p99", "us", "longest", "us", "of"] in tables
    assert ["READ", "1", "4", "KiB", "5.0", "5.0", "5000.0", "ended", "(4194304)"] in tables
    own = Path("/proc/self/comm").read_text().strip().split()
    rows = [row for row in tables if row[:1] and row[0].isdigit()]
    assert rows == [
        ["4194304", "ended", "50", "512", "KiB", "10000.0", "6971.9", "50.0", "7000.0", "FALLOCATE"],
        [OWN, top.user(int(OWN)), *own, "5", "200.0", "260.8", "0.1", "900.0", "READ"],
        ["0", "kernel", "2", "2.0", "3.0", "0.0", "3.0", "WRITE"],
    ], "the busiest first, none that did nothing"
    assert "journal:  none: mounted read-only" in lines
    assert any("7 leases" in line for line in lines)
    assert lines[-1] == "freed:    4 KiB wait for direct clients: process 77 of user 1000 holds 4 KiB of inode 12"


def test_documents(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of JSON for each refresh; each is an interval."""
    first = replace(snapshot(1.0), operations={}, processes={})
    looks = iter([first, busy(), replace(busy(), seconds=3.0)])
    monkeypatch.setattr(stats, "look", lambda _: next(looks))
    top.run("/mnt", 0.001, 2, as_json=True)
    found, idle = map(json.loads, capsys.readouterr().out.splitlines())
    assert next(looks, None) is None
    assert (found["mountpoint"], found["time"], found["seconds"]) == ("/mnt", 1002.0, 1.0)
    assert (found["cpu"], found["spinning"]) == (0.5, 0.25)
    reads = found["operations"]["READ"]
    assert (reads["per_second"], reads["bytes_per_second"], reads["mean_us"]) == (2.0, 8192.0, 5.0)
    assert (reads["longest_us"], reads["longest_by"], reads["program"]) == (5000.0, 4194304, "ended")
    assert [each["pid"] for each in found["processes"]] == [4194304, int(OWN), 0]
    fallocate = found["processes"][0]
    assert (fallocate["per_second"], fallocate["share"], fallocate["longest_is"]) == (100.0, 1.0, "FALLOCATE")
    assert fallocate["p99_us"] == pytest.approx(6971.9, abs=0.1)
    assert found["files"] == FILES
    assert found["holding"] == HOLDING
    assert found["journal"] is None
    assert (idle["operations"], idle["processes"]) == ({}, [])


def test_the_number_of_refreshes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(stats, "look", lambda _: busy())
    top.run("/mnt", 0.001, 3)
    assert capsys.readouterr().out.count("longest stall:") == 3
    with pytest.raises(UserError, match="--count takes 1 or more"):
        top.run("/mnt", 0.001, 0)


def test_a_terminal_waits_for_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([busy(), stats.NoAnswer("/mnt: no answer"), replace(busy(), seconds=4.0)])

    def look(_: str) -> Snapshot:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    text = StringIO()
    monkeypatch.setattr(stats, "look", look)
    monkeypatch.setattr(top, "Console", lambda **_: Console(file=text, force_terminal=True, width=200))
    top.run("/mnt", 0.001, 2)
    assert "/mnt: no answer" in text.getvalue()
    assert "longest stall: 7.0 ms" in text.getvalue(), "it goes on"
    looks = iter([busy(), stats.NoAnswer("/mnt: no answer")])
    with pytest.raises(stats.NoAnswer):
        top.run("/mnt", 0.001, 2, as_json=True)


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
