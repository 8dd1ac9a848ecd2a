"""Recordings of messages (`recording_rig`), answered again without a mount and compared with what was answered then.

A fresh pool with the same layout gives out the same inodes. What can't be the same is put aside on both sides: times of
the clock, and how much of the pool is free, which depends on the mke2fs that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from message_rig import OUT, Rig, pack, size_of, unpack
from recording_rig import LONG_AGO, MODES, pool_of_recordings

from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.fuse.kernel import files
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.options import parse
from support import HANG_SECONDS, fsck

OPTIONS = {mode: parse(given) for mode, given in MODES.items()}
ENTRIES = (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK)
MADE = (Opcode.CREATE, Opcode.TMPFILE)
ATTRIBUTES = (Opcode.GETATTR, Opcode.SETATTR)
TIMES = ("atime", "mtime", "ctime")


class Line(NamedTuple):
    """One line of a recording (`recording_rig` says what the kinds are)."""

    kind: str
    content: bytes


def lines(recording: Path) -> Iterator[Line]:
    """Everything but the remarks."""
    for text in recording.read_text().splitlines():
        kind, _, digits = text.partition(" ")
        if kind != "#":
            yield Line(kind, bytes.fromhex(digits))


def without_times(layout: str, body: bytes, at: int = 0) -> bytes:
    """A structure less what the clock and chance have put into it."""
    fields = vars(unpack(layout, body, at))
    for name in TIMES:
        if LONG_AGO < fields[name] < 1 << 40:
            fields[name] = fields[f"{name}nsec"] = 0
    return pack(layout, **fields)


def without_statx_times(body: bytes) -> bytes:
    """The same of fuse_statx_out."""
    fields = vars(unpack("statx_out", body))
    for name in (*TIMES, "btime"):
        if fields[f"{name}_tv_sec"] > LONG_AGO:
            fields[f"{name}_tv_sec"] = fields[f"{name}_tv_nsec"] = 0
    return pack("statx_out", **fields)


def without_sizes(body: bytes) -> bytes:
    """fuse_statfs_out without what depends on the mke2fs."""
    fields = vars(unpack("statfs_out", body))
    assert 0 < fields["bavail"] <= fields["bfree"] <= fields["blocks"]
    for name in ("blocks", "bfree", "bavail", "ffree"):
        fields[name] = 0
    return pack("statfs_out", **fields)


def masked(opcode: int, answer: bytes) -> bytes:
    """An answer to compare with another one."""
    head, body = answer[:OUT], answer[OUT:]
    if not body:
        return head
    if opcode in ENTRIES:
        return head + without_times("entry_out", body)
    if opcode in MADE:
        return head + without_times("entry_out", body) + body[size_of("entry_out") :]
    if opcode in ATTRIBUTES:
        return head + without_times("attr_out", body)
    if opcode == Opcode.STATX:
        return head + without_statx_times(body)
    if opcode == Opcode.STATFS:
        return head + without_sizes(body)
    if opcode == Opcode.READDIRPLUS:
        return head + b"".join(without_listed_times(body))
    return answer


def without_listed_times(body: bytes) -> Iterator[bytes]:
    """The entries of READDIRPLUS."""
    at = 0
    while at < len(body):
        yield without_times("entry_out", body, at)
        at += size_of("entry_out")
        length = size_of("dirent") + unpack("dirent", body, at).namelen
        length += -length % 8
        yield body[at : at + length]
        at += length


def replay(recording: Path, rig: Rig) -> set[int]:
    """Send every request of a recording again, and compare; returns the opcodes that there were."""
    seen: set[int] = set()
    found: bytes | None = None
    opcode = 0
    place = "the beginning"
    expected: list[bytes] = []
    for number, (kind, content) in enumerate(lines(recording)):
        if kind == ">":
            assert found is None, f"an answer to {place}"
            opcode = unpack("in_header", content).opcode
            place = f"line {number}, {Opcode(opcode).name}, {content.hex()}"
            seen.add(opcode)
            rig.notifications.clear()
            expected = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(files, "COPY_SECONDS", HANG_SECONDS)  # a busy machine copies less in its own time
                found = rig.whole(content)
        elif kind == "!":
            expected.append(content)
        elif kind == ".":
            rig.connection.process_forgets(int.from_bytes(content, "little"))
        else:
            assert found is not None, f"no answer to {place}"
            assert masked(opcode, found) == masked(opcode, content), place
            assert [code.to_bytes(4, "little") + body for code, body in rig.notifications] == expected, place
            found = None
            if kind == "?":
                rig.request.take_back()
    assert found is None
    return seen


def recorded_pages(recording: Path) -> int:
    """Pages in a request, on the system that was recorded."""
    first = next(line for line in lines(recording) if line.kind == "<")
    pages: int = unpack("init_out", first.content, OUT).max_pages
    return pages


def replay_in(recording: Path, pool: Path) -> set[int]:
    """The same over a new pool, which e2fsck checks in the end; every file must have been closed."""
    mode = recording.stem.rpartition("-")[2]
    options = OPTIONS[mode]
    core = FileSystem.open(pool_of_recordings(pool), Options(dax=options.dax, atime=options.atime))
    rig = Rig(core, options=options)
    seen = replay(recording, rig)
    assert rig.connection.files == {}
    rig.connection.close_all(unmounted=False)
    rig.core.close()
    fsck(pool)
    return seen
