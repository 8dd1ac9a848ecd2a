"""``daxfs stats`` with constructed answers: intervals, percentiles, the table, Prometheus's format, refusals."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_rig import daxfs
from prometheus_client.parser import text_string_to_metric_families

from daxfs.errors import UserError
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.statistics import PIECE_HEADER, QUESTION, ROOM
from daxfs.tools import stats
from daxfs.tools.metrics import METRICS, exposition
from daxfs.tools.snapshot import Operation, Snapshot, largest_after, percentile

TITLES = ["request", "count", "per s", "errors", "bytes", "mean us", "p50 us", "p99 us", "max us"]
FILES = {
    "open_files": 3,
    "remembered": 40,
    "lazy_times": 2,
    "nameless": 1,
    "long_requests": 1,
    "queued_requests": 0,
    "postponed_requests": 0,
    "refused_requests": 0,
    "refused_opens": 0,
    "leases": 7,
    "deferred": 0,
    "memory_errors": 0,
    "bad_bytes": 0,
    "snapshots": 0,
    "snapshot_copied": 0,
    "snapshot_mapped": 0,
}


def histogram_of(values: list[int]) -> list[int]:
    found = [0] * (max(values, default=0).bit_length() + 1)
    for value in values:
        found[value.bit_length()] += 1
    return found


def operation(*nanoseconds: int, errors: int = 0, transferred: int = 0) -> Operation:
    taken = list(nanoseconds)
    return Operation(len(taken), errors, transferred, sum(taken), max(taken, default=0), histogram_of(taken))


def journal(*sizes: int, **others: int) -> dict[str, Any]:
    names = (
        "blocks_home blocks_logged blocks_revoked tail_moves rollbacks running_blocks pending_free_blocks "
        "log_blocks log_blocks_used"
    )
    return {
        "commits": len(sizes),
        "blocks": sum(sizes),
        **dict.fromkeys(names.split(), 0),
        "sizes": [*histogram_of(list(sizes)), *[0] * 20],
        "largest": max(sizes, default=0),
        **others,
    }


def snapshot(seconds: float = 10.0, journal: dict[str, Any] | None = None, **operations: Operation) -> Snapshot:
    return Snapshot(1000.0, seconds, False, False, operations, dict(FILES), [], journal, [])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_percentile_is_right_within_its_class(share: float) -> None:
    chance = random.Random(7)
    for _ in range(200):
        values = sorted(int(2 ** chance.uniform(0, 30)) for _ in range(chance.randint(1, 300)))
        exact = values[max(0, math.ceil(share * len(values)) - 1)]
        found = percentile(histogram_of(values), share, values[-1])
        assert exact / 2 <= found <= min(2 * exact, values[-1])


def test_percentiles_of_little() -> None:
    assert percentile([], 0.5, 0) == 0
    assert percentile(histogram_of([0, 0, 0]), 0.99, 0) == 0
    assert percentile(histogram_of([1000]), 0.5, 1000) <= 1000
    assert percentile(histogram_of([1, 1, 1, 4]), 0.5, 4) <= 2


def test_an_interval_is_the_difference() -> None:
    earlier = snapshot(10.0, journal(5, 6, blocks_home=11), READ=operation(100, 200, transferred=10), OPEN=operation(5))
    later = snapshot(
        12.5,
        journal(5, 6, 300, 2, blocks_home=313, log_blocks=1000),
        READ=operation(100, 200, 300, 40, errors=1, transferred=35),
        OPEN=operation(5),
        MKDIR=operation(7),
    )
    found = later.after(earlier)
    assert (found.since, found.seconds) == (1010.0, 2.5)
    assert found.operations.keys() == {"READ", "MKDIR"}
    read = found.operations["READ"]
    assert (read.count, read.errors, read.bytes, read.nanoseconds, read.longest) == (2, 1, 25, 340, 300)
    assert sum(read.histogram) == 2
    assert found.operations["MKDIR"] == operation(7)
    assert found.files == FILES
    assert found.journal is not None
    assert (found.journal["commits"], found.journal["blocks"], found.journal["blocks_home"]) == (2, 302, 302)
    assert (found.journal["largest"], found.journal["log_blocks"]) == (300, 1000)
    assert found.journal["sizes"][2] == found.journal["sizes"][9] == 1


def test_the_longest_of_an_interval_without_a_record() -> None:
    """The longest time of such an interval is not known: its class gives an upper bound."""
    found = snapshot(2.0, READ=operation(5000, 700)).after(snapshot(1.0, READ=operation(5000)))
    assert found.operations["READ"].longest == 1023
    assert largest_after([0, 0, 0, 1], 5, 5) == 5
    assert largest_after([0, 0], 5, 5) == 0


def test_counting_began_anew_in_between() -> None:
    later = Snapshot(2000.0, 0.5, False, True, {"READ": operation(5)}, FILES, [], None, [])
    assert later.after(snapshot(300.0, READ=operation(1, 2, 3))) is later


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = snapshot(
        2.0,
        journal(4, 20, blocks_logged=30, log_blocks=1000, log_blocks_used=250, pending_free_blocks=77),
        READ=operation(1000, 3000, transferred=8192),
        LOOKUP=operation(*[2_000_000] * 10, errors=3),
    )
    stats._print("/mnt", found)
    first, titles, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("/mnt: 2.0 s from ")
    assert re.split("  +", titles) == TITLES
    assert rows[0].split()[:4] == ["LOOKUP", "10", "5", "3"]
    assert rows[0].split()[-1] == "2000.0"
    assert rows[1].split()[:5] == ["READ", "2", "1", "8", "KiB"]
    assert rows[1].split()[-4] == "2.0"
    assert rows[2].startswith("journal:  2 commits of 24 blocks of metadata (median")
    assert rows[3].startswith("log:      250 of 1000 blocks (25 %)")
    assert "77 freed" in rows[3]
    assert rows[4].startswith("files:    3 open, 40 remembered")
    assert len(rows) == 5


def test_the_table_of_every_kind_of_request_keeps_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    busy = Operation(10**9, 10**6, 1 << 50, 10**18, 10**13, [0] * 43 + [10**9])
    stats._print("/mnt", snapshot(1.0, **{opcode.name: busy for opcode in Opcode}))
    lines = capsys.readouterr().out.splitlines()
    assert all("…" not in line and len(line) <= stats.WIDTH for line in lines)
    assert len(lines) == 2 + len(Opcode) + 2


def test_an_idle_mount_that_is_read_only(capsys: pytest.CaptureFixture[str]) -> None:
    stats._print("/mnt", Snapshot(1000.0, 1.0, False, True, {}, FILES, [], None, []))
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert "counting has begun now" in first
    assert (second, third) == ("no requests", "journal:  none: mounted read-only")
    assert fourth.startswith("files:")


def test_prometheus() -> None:
    found = snapshot(
        10.0,
        journal(1, 2, 3, 70_000, blocks_logged=9, log_blocks=500),
        READ=operation(400, 600, 10**10, errors=1, transferred=99),
        LOOKUP=operation(5),
    )
    text = exposition("/mnt/a\\b", found)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, sample.labels.get("opcode"), sample.labels.get("le")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert {sample.labels["mountpoint"] for family in families.values() for sample in family.samples} == {"/mnt/a\\b"}
    duration = "daxfs_request_duration_seconds"
    assert samples[duration + "_bucket", "READ", "5.12e-07"] == 1
    assert samples[duration + "_bucket", "READ", "1.024e-06"] == 2
    assert samples[duration + "_bucket", "READ", "8.589934592"] == 2
    assert samples[duration + "_bucket", "READ", "+Inf"] == samples[duration + "_count", "READ", None] == 3
    assert samples[duration + "_sum", "READ", None] == pytest.approx(10.000001)
    assert samples["daxfs_request_duration_max_seconds", "READ", None] == 10
    assert samples["daxfs_request_errors_total", "READ", None] == 1
    assert samples["daxfs_request_bytes_total", "READ", None] == 99
    assert ("daxfs_request_bytes_total", "LOOKUP", None) not in samples
    assert samples["daxfs_open_files", None, None] == 3
    assert samples["daxfs_journal_logged_blocks_total", None, None] == 9
    assert samples["daxfs_journal_log_blocks", None, None] == 500
    sizes = "daxfs_journal_commit_blocks"
    assert [samples[f"{sizes}_bucket", None, le] for le in ("1.0", "3.0", "65535.0", "+Inf")] == [1, 3, 3, 4]
    assert samples[f"{sizes}_sum", None, None] == 70_006
    untiered = [metric for metric in METRICS if metric.section != "tiers"]
    assert len(families) == 4 + len(untiered) + 1


MEMBERS = (("/a", 3 << 30, 1 << 30, ""), ("/b", 1 << 30, 0, "it did not answer"))
TIERS = {"memory": 1 << 30, "memory_free": 1 << 28, "storage": 4 << 30, "storage_free": 1 << 30, "members": MEMBERS[:1]}
READS = {"reads": 1000, "hits": 750, "read": 5 << 20, "promoted": 4 << 20, "demoted": 6 << 20}


def test_storage_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    later = replace(snapshot(30.0), tiers={**TIERS, **READS, "members": MEMBERS})
    found = later.after(replace(snapshot(10.0), tiers={**TIERS, **READS, "reads": 600, "hits": 450, "read": 1 << 20}))
    stats._print("/mnt", found)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "storage:  1 GiB of 4 GiB free, 300 of 400 reads did not wait for storage (75.0 %), "
        "4 MiB read, 0 bytes promoted, 0 bytes demoted; /b has failed: it did not answer"
    )
    text = exposition("/mnt", later)
    for name, value in (("tier_reads_total", 1000), ("tier_hits_total", 750), ("storage_failed_members", 1)):
        assert f'daxfs_{name}{{mountpoint="/mnt"}} {value:.1f}' in text
    assert 'daxfs_storage_demoted_bytes_total{mountpoint="/mnt"} 6.291456e+06' in text
    text = exposition("/mnt", replace(later, tiers={**TIERS, **READS}))
    assert 'daxfs_storage_failed_members{mountpoint="/mnt"} 0.0' in text


def test_prometheus_on_a_read_only_mount() -> None:
    text = exposition("/mnt", snapshot(1.0))
    assert "storage" not in text
    assert "journal" not in text
    assert "daxfs_remembered_inodes" in text


class Daemon:
    """A stand-in for the daemon: it answers the ioctl with pieces of a text, after refusals with these errnos."""

    def __init__(self, text: bytes, *refusals: int) -> None:
        self.text = text
        self.refusals = list(refusals)
        self.snapshot = 0

    def __call__(self, _descriptor: int, _command: int, piece: bytearray) -> int:
        snapshot, offset = QUESTION.unpack_from(piece)
        if offset == 0:
            self.snapshot += 1
        else:
            assert snapshot == self.snapshot
            if self.refusals:
                raise OSError(self.refusals.pop(0), "refused")
        PIECE_HEADER.pack_into(piece, 0, self.snapshot, len(self.text))
        part = self.text[offset : offset + ROOM]
        piece[PIECE_HEADER.size : PIECE_HEADER.size + len(part)] = part
        return 0


def test_what_waits_to_be_freed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    holding = [{"ino": 12, "uid": 1000, "pid": 77, "size": 3 << 20}, {"ino": 13, "uid": 0, "pid": 5, "size": 1 << 20}]
    stats._print("/mnt", Snapshot(1000.0, 1.0, False, True, {}, {**FILES, "deferred": 4 << 20}, holding, None, []))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "freed:    4 MiB wait for direct clients: process 77 of user 1000 holds 3 MiB of inode 12, "
        "process 5 of user 0 holds 1 MiB of inode 13"
    )


def test_missing_memory_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    files = {**FILES, "memory_errors": 3, "bad_bytes": 8192}
    stats._print("/mnt", Snapshot(1000.0, 1.0, False, True, {}, files, [], None, [[4096, 12288]]))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("memory:   3 loads and stores met missing memory, 8 KiB are known to be bad (daxfs badblocks)")


def test_what_snapshots_have_cost_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    files = {**FILES, "snapshots": 2, "snapshot_copied": 12288, "snapshot_mapped": 8192}
    stats._print("/mnt", Snapshot(1000.0, 1.0, False, True, {}, files, [], None, []))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "snapshots: 2 valid, 12 KiB copied for them, and 8 KiB of mapped files when one was made"


@pytest.mark.parametrize("refusals", [(), (errno.ESTALE,), (errno.ESTALE, errno.ESTALE)])
@pytest.mark.parametrize("name", ["x", "x" * ROOM * 3])
def test_an_answer_in_pieces(monkeypatch: pytest.MonkeyPatch, name: str, refusals: tuple[int, ...]) -> None:
    facts = {"since": 1.0, "seconds": 2.0, "lasting": True, "fresh": False, "files": {name: 1}, "journal": None}
    daemon = Daemon(json.dumps({**facts, "operations": {}, "holding": [], "bad": []}).encode(), *refusals)
    monkeypatch.setattr(fcntl, "ioctl", daemon)
    assert stats.ask(0, "/mnt") == Snapshot(1.0, 2.0, True, False, {}, {name: 1}, [], None, [])
    assert daemon.snapshot == (1 + len(refusals) if len(name) > 1 else 1)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (errno.ENOTTY, 69, "session=kernel"),
        (errno.ENOSYS, 69, "session=kernel"),
        (errno.EPERM, 77, "only root"),
        (errno.ESTALE, 69, "try again"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, number: int, code: int, text: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(UserError, match=text) as caught:
        stats.ask(0, "/mnt")
    assert caught.value.code == code


def test_an_unknown_refusal_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "gone")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(OSError, match="gone"):
        stats.ask(0, "/mnt")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 64),
        (["/nonexistent"], 66),
        (["/proc"], 66),
        (["/"], 66),
        (["/", "--interval", "0"], 64),
        (["/", "--interval", "-1"], 64),
        (["/", "--interval", "nan"], 64),
        (["/", "--interval", "1000"], 64),
        (["/", "--interval", "1", "--total"], 64),
        (["/", "--interval", "1", "--prometheus"], 64),
    ],
)
def test_an_error_is_one_line_and_a_code(arguments: list[str], code: int) -> None:
    said = daxfs("stats", *arguments, code=code)
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1


def test_a_directory_and_a_file_are_no_mounts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="no daxfs is mounted on") as caught:
            stats.show(str(place))
        assert caught.value.code == 66


@pytest.mark.parametrize(
    ("number", "code", "text"), [(errno.EACCES, 77, "belongs to another user"), (errno.ENOTCONN, 69, "umount")]
)
def test_a_mount_that_can_not_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, code: int, text: str) -> None:
    """The error of the process that asks reaches the caller."""

    def refuse(*_: object) -> None:
        raise OSError(number, "for a test")

    mount = SimpleNamespace(filesystem="fuse.daxfs", mountpoint="/mnt")
    monkeypatch.setattr(stats.mounts, "top_mount", lambda _: mount)
    monkeypatch.setattr(stats.os, "open", refuse)
    monkeypatch.setattr(stats.os, "stat", refuse)
    with pytest.raises(UserError, match=text) as caught:
        stats.look("/mnt")
    assert caught.value.code == code
