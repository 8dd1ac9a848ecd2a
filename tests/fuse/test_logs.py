"""The daemon's log: one line for one event, few lines for many events of a kind, a traceback of a killed process."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_rig import daxfs
from message_rig import Rig
from mount_rig import COMMAND, Mounted, mounted, mountpoint

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem
from daxfs.fs.types import Options
from daxfs.fuse import logs
from daxfs.fuse.kernel.abi import Opcode
from daxfs.pmem.memory import MemoryPool
from support import HANG_SECONDS, fsck, run

Pool = Callable[..., Path]


class Kept(logging.Handler):
    """A handler that records all lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.closed = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def close(self) -> None:
        self.closed = True
        super().close()


class Spared:
    """A logger with `RateLimit`, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(logs, "monotonic", lambda: self.now)
        self.kept = Kept()
        self.handler = logs.RateLimit(self.kept)
        self.log = logging.Logger("test")
        self.log.addHandler(self.handler)


@pytest.fixture
def spared(monkeypatch: pytest.MonkeyPatch) -> Spared:
    return Spared(monkeypatch)


def test_the_same_complaint_once_a_second_and_a_count(spared: Spared) -> None:
    for _ in range(3000):
        spared.log.warning("inode %d is damaged", 12)
        spared.now += 0.001
    spared.now += 1
    spared.handler.flush()
    lines = spared.kept.lines
    assert 3 <= len(lines) <= 5
    assert lines[0] == "inode 12 is damaged"
    counts = [int(line.split("(")[1].split()[0]) for line in lines[1:]]
    assert sum(counts) + 1 == 3000
    assert all(line.startswith("inode 12 is damaged (") for line in lines[1:])
    spared.handler.flush()
    assert spared.kept.lines == lines


def test_what_differs_is_said(spared: Spared) -> None:
    for number in range(10):
        spared.log.warning("inode %d is damaged", number)
        spared.log.info("remounted")
    assert len(spared.kept.lines) == 11


def test_a_flood_of_different_complaints_from_one_place(spared: Spared) -> None:
    for number in range(1000):
        spared.log.warning("inode %d is damaged", number)
    assert len(spared.kept.lines) == logs.MOST_OF_ONE_PLACE
    spared.log.warning("elsewhere")
    spared.now += 1
    spared.log.info("later")
    assert f"{1000 - logs.MOST_OF_ONE_PLACE} more messages like this one: inode 0 is damaged" in spared.kept.lines
    assert spared.kept.lines[-1] == "later"
    assert "elsewhere" in spared.kept.lines


def test_a_complaint_that_came_twice_within_a_second_is_whole_after_it(spared: Spared) -> None:
    spared.log.warning("once")
    spared.now += 2
    spared.log.warning("once")
    assert spared.kept.lines == ["once", "once"]


def test_the_count_is_said_at_the_end(spared: Spared) -> None:
    for _ in range(5):
        spared.log.warning("again")
    spared.handler.close()
    assert spared.kept.lines == ["again", "again (4 times more)"]
    assert spared.kept.closed


def damaged(path: Path) -> Path:
    """Return a pool with a file whose inode is damaged."""
    with FileSystem.open(path) as fs:
        fs.tree.write_bytes("/file", b"x" * 100)
        fs.tree.write_bytes("/good", b"x" * 100)
        block_size = fs.statfs().block_size
    found = re.search(r"block (\d+), offset (\w+)", run("debugfs", "-R", "imap /file", path))
    assert found is not None
    place = int(found[1]) * block_size + int(found[2], 16)
    with path.open("r+b") as image:
        image.seek(place + 0x20)
        image.write(b"damage")
    return path


@pytest.mark.parametrize("options", [(), ("ro",), ("session=pyfuse3",)], ids=str)
def test_damage_that_is_met_again_and_again(pool: Pool, options: tuple[str, ...]) -> None:
    path = damaged(pool("-b", "4096", size="16M"))
    with mountpoint() as place:
        mount = Mounted(path, place, (*options, "errors=remount-ro"))
        try:
            start = time.monotonic()
            for _ in range(300):
                with pytest.raises(OSError, match="needs cleaning"):
                    (place / "file").stat()
            took = time.monotonic() - start
            said = mount.said()
        finally:
            mount.down()
    lines = [line for line in said.splitlines() if "inode" in line]
    assert 1 <= len(lines) <= 2 + took
    assert said.count("the volume goes on without it") == (0 if "ro" in options else 1)
    assert "read-only from now on" not in said


def test_damage_is_said_once_for_one_request(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    path = damaged(pool("-b", "4096", size="16M"))
    with FileSystem.open(path, Options(errors="remount-ro")) as core:
        rig = Rig(core)
        rig.init()
        caplog.clear()
        rig.refused(Opcode.LOOKUP, body=b"file\0")
        (record,) = caplog.records
        assert "the volume goes on without it" in record.getMessage()
        assert "daxfs check" in record.getMessage()
        caplog.clear()
        rig.refused(Opcode.LOOKUP, body=b"file\0")
        assert not caplog.records


def test_orphans_are_cleaned_when_they_are(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    path = pool("-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        file, _ = fs.create(ROOT_INO, b"file", 0o644)
        fs.write(file, 0, b"x" * 10_000)
        fs.unlink(ROOT_INO, b"file")
        fs.sync()
        image = bytearray(path.read_bytes())
        fs.release(file)

    class Mapped(MemoryPool):
        still = True

        def mapped_elsewhere(self, but: int | None = None) -> bool:  # noqa: ARG002
            return self.still

    caplog.set_level(logging.INFO)
    with FileSystem.open(Mapped(bytearray(image))) as fs:
        assert "still map it" in caplog.text
        assert "cleaned" not in caplog.text, "it waits for the programs"
        Mapped.still = False
        fs.tick()
        assert caplog.text.count("1 orphaned inodes cleaned") == 1
        fs.tick()
    assert caplog.text.count("cleaned") == 1
    caplog.clear()
    with FileSystem.open(MemoryPool(image)):
        assert caplog.text.count("1 orphaned inodes cleaned") == 1


def test_a_refusal_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    logs.unanswered("forgetting inode 12", FsError(5))
    logs.unanswered("forgetting inode 12", Corrupt(CorruptKind.INODE_NUMBER, "12"))
    assert [record.getMessage() for record in caplog.records] == ["forgetting inode 12: Input/output error"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
@pytest.mark.parametrize("foreground", [True, False])
def test_a_fatal_signal_leaves_a_trace(pool: Pool, tmp_path: Path, number: signal.Signals, foreground: bool) -> None:
    path, log = pool("-b", "4096", size="16M"), tmp_path / "log"
    with mountpoint() as place:
        command = [*COMMAND, "mount", *(["-f"] if foreground else []), path, place, "-o", f"log={log}"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while not place.is_mount():
            assert process.poll() in (None, 0)
            time.sleep(0.02)
        os.statvfs(place)  # the answer shows that the session runs
        if not foreground:
            assert process.wait(HANG_SECONDS) == 0
        pid = process.pid if foreground else owner_of(path)
        subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
        if foreground:
            assert process.wait(HANG_SECONDS) == -number
        end = time.monotonic() + HANG_SECONDS
        while "Fatal Python error" not in log.read_text() or "serving.py" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)


def owner_of(path: Path) -> int:
    """Return the process that has the pool open."""
    for process in Path("/proc").glob("[0-9]*"):
        for link in process.glob("fd/*"):
            try:
                if link.resolve() == path:
                    return int(process.name)
            except OSError:
                continue
    raise AssertionError("nobody has it open")


DYING = """
import os, sys, signal
from daxfs.fuse import logs
logs.SYSLOG, logs.JOURNAL = sys.argv[1:3]
logs.start()
logs.log.warning("a word")
if sys.argv[3] == "alarm":
    signal.alarm(1)
    while True:
        pass
os.kill(os.getpid(), signal.SIGBUS)
"""


@pytest.mark.parametrize("way", ["bus", "alarm"])
@pytest.mark.parametrize("journal", [True, False])
def test_the_last_words_reach_syslog(tmp_path: Path, journal: bool, way: str) -> None:
    syslog, stream = tmp_path / "log", tmp_path / "journal"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as streams,
    ):
        datagrams.bind(str(syslog))
        datagrams.settimeout(HANG_SECONDS)
        if journal:
            streams.bind(str(stream))
            streams.listen()
        arguments = [sys.executable, "-c", DYING, str(syslog), str(stream), way]
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        message = datagrams.recv(1000)
        if journal:
            connection, _ = streams.accept()
            with connection, connection.makefile() as lines:
                said = lines.read()
            assert said.startswith(logs.JOURNAL_HEADER)
        else:
            said = ""
            while "<string>" not in said:
                said += datagrams.recv(1000).decode()
        assert ("Fatal Python error: Bus error" in said) is (way == "bus")
        assert "<string>" in said
        assert process.wait(HANG_SECONDS) == -(signal.SIGBUS if way == "bus" else signal.SIGALRM)
        assert b"a word" in message


def test_a_log_that_cannot_be_opened(pool: Pool) -> None:
    path = pool("-b", "4096", size="16M")
    with mountpoint() as place:
        for foreground in ([], ["-f"]):
            said = daxfs("mount", *foreground, path, place, "-o", "log=/nonexistent/log", code=1)
            assert said == "daxfs: log=/nonexistent/log: No such file or directory; name another file\n"
    fsck(path)


def test_the_log_of_a_mount_that_was_never_written_to(pool: Pool, tmp_path: Path) -> None:
    with mounted(pool("-b", "4096", size="16M"), f"log={tmp_path}/log"):
        pass
    assert "FUSE 7." in (tmp_path / "log").read_text()
