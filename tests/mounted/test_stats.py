"""Statistics of a mount: they report what programs did, and nothing is counted before the first request."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_rig import daxfs
from mount_rig import SESSIONS, as_user, mounted
from prometheus_client.parser import text_string_to_metric_families

from daxfs.errors import UserError
from daxfs.tools import stats
from daxfs.tools.snapshot import Snapshot

Pool = Callable[..., Path]


@contextlib.contextmanager
def kernel_mount(pool: Pool, *options: str) -> Iterator[Path]:
    with mounted(pool("-b", "4096"), *SESSIONS["kernel"], *options) as mount:
        yield mount.place


def asked(place: Path) -> Snapshot:
    with stats.opened(str(place)) as (descriptor, real):
        return stats.ask(descriptor, real)


def work(place: Path) -> None:
    """Three writes, two reads, a directory, a sync, a failure."""
    descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o644)
    for number in range(3):
        os.pwrite(descriptor, bytes(4096), number * 4096)
    os.fsync(descriptor)
    for _ in range(2):
        os.pread(descriptor, 5000, 0)
    os.close(descriptor)
    (place / "directory").mkdir()
    (place / "directory" / "inside").mkdir()
    with pytest.raises(OSError, match="not empty"):
        (place / "directory").rmdir()


def check(operations: dict[str, Any], field: Callable[[Any, str], int]) -> None:
    expected = {"WRITE": (3, 0, 12_288), "READ": (2, 0, 10_000), "FSYNC": (1, 0, 0), "MKDIR": (2, 0, 0)}
    for name, values in {**expected, "RMDIR": (1, 1, 0)}.items():
        assert tuple(field(operations[name], key) for key in ("count", "errors", "bytes")) == values, name


def test_what_was_done_between_two_questions(pool: Pool) -> None:
    with kernel_mount(pool) as place:
        work(place)
        first = asked(place)
        assert first.fresh
        assert first.operations == {}, "it was counted before anybody asked"
        os.rename(place / "directory", place / "other")
        work(place)
        second = asked(place)
        assert not second.fresh
        found = second.after(first)
        check(found.operations, getattr)
        read = found.operations["READ"]
        assert 0 < read.nanoseconds / 2 <= read.longest < second.seconds * 10**9
        assert sum(read.histogram) == 2
        assert found.journal is not None
        assert found.journal["commits"] >= 1
        assert found.journal["log_blocks_used"] > 0
        assert found.files["remembered"] >= 3
        assert found.files["open_files"] == 0


def test_the_command_watches_for_a_while(pool: Pool) -> None:
    with kernel_mount(pool) as place:
        said = daxfs("stats", place, "--interval", "0.1")
        assert re.match(rf"{place}: 0\.[1-9] s from ", said)
        assert "counting has begun now" in said
        assert "journal:" in said
        assert "counting has begun" not in daxfs("stats", place, "--interval", "0.1")


def test_total_and_prometheus_tell_all_since_counting_began(pool: Pool) -> None:
    with kernel_mount(pool) as place:
        daxfs("stats", place, "--total")
        work(place)
        check(json.loads(daxfs("stats", place, "--total", "--json"))["operations"], lambda found, key: found[key])
        families = {
            found.name: found for found in text_string_to_metric_families(daxfs("stats", place, "--prometheus"))
        }
        moved = {sample.labels["opcode"]: sample.value for sample in families["daxfs_request_bytes"].samples}
        assert moved == {"WRITE": 12_288, "READ": 10_000}
        assert {sample.labels["mountpoint"] for sample in families["daxfs_open_files"].samples} == {str(place)}


def test_the_mount_option_counts_from_the_mount_on(pool: Pool) -> None:
    with kernel_mount(pool, "stats") as place:
        work(place)
        found = json.loads(daxfs("stats", place, "--json"))
        assert found["lasting"]
        check(found["operations"], lambda found, key: found[key])
        assert found["operations"]["INIT"]["count"] == 1
        assert found["seconds"] > 0
        assert "WRITE" in daxfs("stats", place)


def test_others_may_look_but_not_begin(pool: Pool) -> None:
    with kernel_mount(pool) as place:

        def look() -> None:
            try:
                with stats.opened(str(place)) as (descriptor, _):
                    stats._fetch(descriptor)
            except UserError as error:
                assert "you may not read" in str(error)
                raise PermissionError(errno.EACCES, "") from None

        assert as_user(look) == 1  # EPERM
        asked(place)
        assert as_user(look) == 0
        place.chmod(0o700)
        assert as_user(look) == 13  # EACCES


def test_only_the_root_of_the_mount_answers(pool: Pool) -> None:
    with kernel_mount(pool) as place:
        (place / "directory").mkdir()
        descriptor = os.open(place / "directory", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="ioctl"):
                stats._fetch(descriptor)
        finally:
            os.close(descriptor)
        said = daxfs("stats", place / "directory", code=66)
        assert said.startswith("daxfs: no daxfs is mounted on")


def test_a_session_that_keeps_no_statistics(pool: Pool) -> None:
    with mounted(pool("-b", "4096"), *SESSIONS["pyfuse3"]) as mount:
        said = daxfs("stats", mount.place, code=69)
        assert said.startswith("daxfs: ")
        assert "session=kernel" in said
        assert said.count("\n") == 1


def test_a_read_only_mount(pool: Pool) -> None:
    with kernel_mount(pool, "ro") as place:
        assert asked(place).journal is None
        assert "mounted read-only" in daxfs("stats", place, "--total")
