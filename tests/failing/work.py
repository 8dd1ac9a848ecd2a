"""The operations in which errors are injected: those of `crash_rig`, and more that leave nothing to cut."""

from __future__ import annotations

import os
from typing import NamedTuple

from crash_rig import OPERATIONS, Operation, Workbench
from explorer.tiers import TIER_NEEDS, TIER_OPERATIONS
from lease_rig import token
from range_rig import PUNCH
from relocation_rig import place_of

from daxfs.ext4.inode import EXT4_NODUMP_FL
from daxfs.fs import appends
from daxfs.fs.filesystem import ROOT_INO
from daxfs.fs.openfile import OpenFile
from daxfs.fs.types import Caller, FsXattr, LeaseRequest, SetAttributes
from daxfs.protocol import Flag
from daxfs.runs import ByteRange

ACL = b"\2\0\0\0" + b"".join(
    tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little")
    for tag, rights, who in (
        (1, 7, 0xFFFFFFFF),
        (2, 6, 1000),
        (4, 5, 0xFFFFFFFF),
        (0x10, 7, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)
"""u::rwx, u:1000:rw-, g::r-x, m::rwx, o::--- as setxattr(2) takes it (include/linux/posix_acl_xattr.h)."""
MAKER = Caller(uid=1000, gid=1000)


class Bench(Workbench):
    """A workbench on which an operation may do a part, as write(2) may."""

    def write_to(self, file: OpenFile, offset: int, size: int, *, release: bool = False) -> None:
        try:
            self.fs.write(file, offset, self.bytes(size))
        finally:
            if release:
                self.fs.release(file)

    def write_atomically(self, path: str, offset: int, size: int, start: bytes = b"") -> None:
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        try:
            self.fs.write(file, offset, (start + self.bytes(size))[:size], atomic=True)
        finally:
            self.fs.release(file)

    def fill(self) -> None:
        file, _ = self.fs.create(ROOT_INO, b"full", 0o644)
        try:
            self.fs.write(file, 0, self.bytes(16 << 20))
        finally:
            self.fs.release(file)

    def leave(self, path: str, before: set[int]) -> None:
        self.fs.vacate(self.ino(path), place_of(self.fs, before))

    def lease(self, path: str, flags: int, offset: int, length: int) -> None:
        """A client holds a lease of the file, which stays open."""
        self.fs.grants.page.ensure()
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        self.opened.append(file)
        self.fs.lease(file, LeaseRequest(1, offset, length, flags, 64, token(self.fs)))

    def acl(self, path: str, kind: str) -> None:
        self.fs.setxattr(self.ino(path), b"system.posix_acl_" + kind.encode(), ACL)

    def read(self, path: str) -> None:
        file = self.fs.open_file(self.ino(path))
        try:
            bytes(self.fs.read(file, 0, 1 << 20))
            self.fs.finish_copy()
        finally:
            self.fs.release(file)

    def list(self, path: str) -> None:
        directory = self.fs.opendir(self.ino(path))
        try:
            list(self.fs.readdir(directory))
        finally:
            self.fs.releasedir(directory)

    def spread(self, number: int) -> None:
        """Make a directory in a group of its own, with a file."""
        self.fs.mkdir(ROOT_INO, b"spread%d" % number, 0o755)
        self.new(f"spread{number}/file", 6000)

    def begin_window(self) -> None:
        """As `Workbench.begin_window`; a pool that was full for a moment gives none."""
        self.append_durably()

    def append_past_window(self) -> None:
        """Append as much as a window has."""
        file = self.opened[-1]
        self.write_to(file, file.size, appends.WINDOW_BYTES)

    def pin(self) -> None:
        """The kernel knows all inodes below the root."""
        for name in self.fs.tree.listdir("/"):
            self.fs.pin(self.fs.lookup(ROOT_INO, name))

    def shrink(self, part: int, whole: int) -> None:
        """Make the file system as many parts of the whole large."""
        self.fs.resize(self.fs.volume.geometry.blocks_count * part // whole)

    def shrink_below_log(self) -> None:
        """Make the file system so small that its log must move."""
        before = self.fs.volume.log_area
        if before is None:
            raise IndexError("there is no log")
        last = max(before.runs)
        self.fs.resize(last.start + last.length // 2)
        assert self.fs.volume.log_area is not before

    def evacuate(self, first: int, last: int) -> None:
        """Move what lies between two tenths of the file system elsewhere."""
        tenth = self.fs.volume.geometry.blocks_count // 10 << self.fs.volume.block_bits
        self.fs.evacuate(ByteRange(first * tenth, last * tenth))

    def write_as_user(self, path: str, offset: int, size: int) -> None:
        """Write as a user for whom root's blocks are reserved."""
        file = self.fs.open_file(self.ino(path), os.O_RDWR)
        try:
            self.fs.write(file, offset, self.bytes(size), caller=MAKER)
        finally:
            self.fs.release(file)

    def create(self, path: str) -> None:
        file, _ = self.fs.create(*self.fs.tree.parent(path), 0o666, caller=MAKER)
        self.fs.release(file)


MORE: dict[str, Operation] = {
    "create and open": lambda w: w.create("d/opened"),
    "default acl": lambda w: w.acl("d", "default"),
    "acl": lambda w: w.acl("f", "access"),
    "create below default acl": lambda w: w.create("d/inherits"),
    "mkdir below default acl": lambda w: w.fs.mkdir(w.ino("d"), b"inherits too", 0o777, MAKER),
    "chmod with acl": lambda w: w.fs.setattr(w.ino("f"), SetAttributes(mode=0o640)),
    "many xattrs": lambda w: [w.xattr("f", b"user.%02d" % n, 40) for n in range(9)],
    "capability": lambda w: w.xattr("f", b"security.capability", 20),
    "write drops capability": lambda w: w.write("f", 10, 10),
    "flags": lambda w: w.fs.set_flags(w.ino("f"), w.fs.get_flags(w.ino("f")) | EXT4_NODUMP_FL),
    "project": lambda w: w.fs.set_fsxattr(w.ino("f"), FsXattr(0, 0, 0, 77, 0)),
    "label": lambda w: w.fs.set_label(b"new label"),
    "utimes": lambda w: w.fs.setattr(w.ino("f"), SetAttributes(atime_ns=5, mtime_ns=6)),
    "open truncating": lambda w: w.fs.release(w.fs.open_file(w.ino("big"), os.O_RDWR | os.O_TRUNC)),
    "sync": lambda w: w.fs.sync(),
    "change and sync": lambda w: [w.fs.mkdir(ROOT_INO, b"synced", 0o755), w.fs.sync()],
    "change and fsync": lambda w: [w.write("big", 12_345, 3000), w.fs.fsync(w.ino("big"))],
    "read": lambda w: w.read("big"),
    "list": lambda w: w.list("i"),
    "lease": lambda w: w.lease("big", int(Flag.WRITE | Flag.FILL), 0, 23_000),
    "lease extending": lambda w: w.lease("f", int(Flag.WRITE | Flag.FILL | Flag.EXTEND), 0, 20_000),
    "truncate leased": lambda w: w.truncate("big", 0),
    "punch leased": lambda w: w.fallocate("big", PUNCH, 1024, 8192),
    "unlink leased": lambda w: w.unlink("big"),
    "overwrite after snapshot": lambda w: w.write("big", 5000, 2000),
    "unlink after snapshot": lambda w: w.unlink("g"),
    "mkdir after snapshot": lambda w: w.fs.mkdir(ROOT_INO, b"later", 0o755),
    "sync after snapshot": lambda w: [w.fs.mkdir(ROOT_INO, b"later", 0o755), w.fs.sync()],
    "snapshot of leased": lambda w: w.snapshot(),
    "delete snapshot of leased": lambda w: w.delete_snapshot(0),
    "spread": lambda w: [w.spread(number) for number in range(10)],
    "grow": lambda w: w.fs.resize(),
    "pin": lambda w: w.pin(),
    "shrink": lambda w: w.shrink(2, 3),
    "evacuate": lambda w: w.evacuate(6, 10),
    "defragment": lambda w: w.fs.defragment(w.ino("f")),
    "write of a user": lambda w: w.write_as_user("f", 3000, 9000),
    "append past window": lambda w: w.append_past_window(),
    "end window": lambda w: w.let_go(),
    "truncate in window": lambda w: w.truncate("log", 5000),
    "begin lease in window": lambda w: w.lease("log", int(Flag.WRITE | Flag.FILL | Flag.EXTEND), 0, 20_000),
    "fill beside window": lambda w: w.fill(),
    "unlink in window": lambda w: w.unlink("log"),
    "shrink with window": lambda w: w.shrink(2, 3),
    "shrink moving log": lambda w: w.shrink_below_log(),
    "shrink with pins": lambda w: w.shrink(2, 3),
    "grow after shrink": lambda w: w.fs.resize(),
}
ALL = OPERATIONS | MORE | TIER_OPERATIONS
NEEDED = TIER_NEEDS | {
    **dict.fromkeys([name for name in MORE if name.endswith(" window")], ("begin window",)),
    "shrink with window": ("grow", "spread", "begin window"),
    "shrink with pins": ("grow", "spread", "pin"),
    "grow after shrink": ("grow", "shrink"),
    "create below default acl": ("default acl",),
    "mkdir below default acl": ("default acl",),
    "chmod with acl": ("acl",),
    "write drops capability": ("capability",),
    "truncate leased": ("lease",),
    "punch leased": ("lease",),
    "unlink leased": ("lease",),
    "snapshot of leased": ("snapshot", "delete snapshot", "lease"),
    "delete snapshot of leased": ("lease", "snapshot"),
    "overwrite after snapshot": ("snapshot",),
    "unlink after snapshot": ("snapshot",),
    "mkdir after snapshot": ("snapshot",),
    "sync after snapshot": ("snapshot",),
    "shrink": ("grow", "spread"),
    "evacuate": ("spread",),
    "defragment": ("fragment",),
}

PIECEWISE = (
    *("write", "append", "overwrite", "fill", "allocate", "punch", "zero", "copy", "truncate", "collapse", "insert"),
    *("scatter", "spread", "open", "change", "tmpfile", "relocate", "grow", "shrink", "evacuate", "defragment"),
    *("begin", "end"),
)
"""How the names of operations begin that may have done a part when they fail."""

MARKING = ("shrink moving log",)
"""Operations that mark the file system while blocks belong to nobody."""

MORE_FORMATS = {
    "project": ("-b", "1024", "-O", "project,^resize_inode", "-I", "256"),
    "groups": ("-b", "1024", "-g", "256", "-E", "resize=40000"),
    "groups without reserve": ("-b", "1024", "-g", "256", "-O", "^resize_inode,^flex_bg"),
    "late log": ("-b", "1024", "-O", "^resize_inode", "-J", "location=1400"),
}
"""Formats besides those of `crash_rig`."""
RESIZED = (
    *("grow", "shrink", "evacuate", "defragment", "shrink with window", "shrink with pins"),
    "grow after shrink",
)
"""Operations that need many groups, or room behind the file system, to find something to do."""
LONGER = {"groups": 3 << 20, "groups without reserve": 2 << 20}
"""Bytes of the pool past the end of its file system."""


class Case(NamedTuple):
    """One operation on a pool of a format, with the event that fails."""

    format: str
    operation: str
    seam: str
    at: int
    lasting: bool
