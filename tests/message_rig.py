"""FUSE messages made and read by hand, without a mount: what the kernel would send, and what it would get.

The layouts here were written down from include/uapi/linux/fuse.h by themselves, as C structures with C's own alignment,
and `test_kernel_abi.py` holds them and the session's against the system's header. `Rig` feeds a message to
`dispatch.answer` and refuses an answer that the kernel would refuse (fuse_dev_do_write in fs/fuse/dev.c).
"""

from __future__ import annotations

import os
import struct
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

from daxfs.fs.types import Attributes, Caller
from daxfs.fuse.kernel import dispatch
from daxfs.fuse.kernel.abi import Init, Opcode
from daxfs.fuse.kernel.connection import Connection
from daxfs.fuse.kernel.request import Request
from daxfs.fuse.kernel.work import Work
from daxfs.fuse.mountoptions import MountOptions

ROOT = 1
HEADER = 40
OUT = 16
BUFFER = 1 << 21
DAY = 86400
BILLION = 10**9
ALL = sum(Init) & 0xFFFFFFFFFFFFFFFF
"""What a kernel of protocol 7.45 offers, and more."""
ANYBODY: dict[str, int] = {"uid": 1000, "gid": 100, "pid": 77}
CALLER = Caller(1000, 100, 77)
UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)

ATTR = (
    "ino:Q size:Q blocks:Q atime:Q mtime:Q ctime:Q atimensec:I mtimensec:I ctimensec:I mode:I nlink:I uid:I gid:I "
    "rdev:I blksize:I flags:I"
)
STATX = (
    "mask:I blksize:I attributes:Q nlink:I uid:I gid:I mode:H __spare0:2s ino:Q size:Q blocks:Q attributes_mask:Q "
    "atime.tv_sec:q atime.tv_nsec:I atime.__reserved:i btime.tv_sec:q btime.tv_nsec:I btime.__reserved:i "
    "ctime.tv_sec:q ctime.tv_nsec:I ctime.__reserved:i mtime.tv_sec:q mtime.tv_nsec:I mtime.__reserved:i "
    "rdev_major:I rdev_minor:I dev_major:I dev_minor:I __spare2:112s"
)


def inside(member: str, fields: str) -> str:
    """The fields of a structure that is a member of another one."""
    return " ".join(f"{member}.{field}" for field in fields.split())


STRUCTS = {
    "fuse_in_header": "len:I opcode:I unique:Q nodeid:Q uid:I gid:I pid:I total_extlen:H padding:H",
    "fuse_out_header": "len:I error:i unique:Q",
    "fuse_ext_header": "size:I type:I",
    "fuse_init_in": "major:I minor:I max_readahead:I flags:I flags2:I unused:44s",
    "fuse_init_out": (
        "major:I minor:I max_readahead:I flags:I max_background:H congestion_threshold:H max_write:I time_gran:I "
        "max_pages:H map_alignment:H flags2:I unused:28s"
    ),
    "fuse_attr": ATTR,
    "fuse_attr_out": "attr_valid:Q attr_valid_nsec:I dummy:I " + inside("attr", ATTR),
    "fuse_entry_out": (
        "nodeid:Q generation:Q entry_valid:Q attr_valid:Q entry_valid_nsec:I attr_valid_nsec:I " + inside("attr", ATTR)
    ),
    "fuse_dirent": "ino:Q off:Q namelen:I type:I",
    "fuse_forget_in": "nlookup:Q",
    "fuse_batch_forget_in": "count:I dummy:I",
    "fuse_forget_one": "nodeid:Q nlookup:Q",
    "fuse_getattr_in": "getattr_flags:I dummy:I fh:Q",
    "fuse_setattr_in": (
        "valid:I padding:I fh:Q size:Q lock_owner:Q atime:Q mtime:Q ctime:Q atimensec:I mtimensec:I ctimensec:I mode:I "
        "unused4:I uid:I gid:I unused5:I"
    ),
    "fuse_mknod_in": "mode:I rdev:I umask:I padding:I",
    "fuse_mkdir_in": "mode:I umask:I",
    "fuse_rename_in": "newdir:Q",
    "fuse_rename2_in": "newdir:Q flags:I padding:I",
    "fuse_link_in": "oldnodeid:Q",
    "fuse_open_in": "flags:I open_flags:I",
    "fuse_open_out": "fh:Q open_flags:I padding:I",
    "fuse_create_in": "flags:I mode:I umask:I open_flags:I",
    "fuse_release_in": "fh:Q flags:I release_flags:I lock_owner:Q",
    "fuse_flush_in": "fh:Q unused:I padding:I lock_owner:Q",
    "fuse_read_in": "fh:Q offset:Q size:I read_flags:I lock_owner:Q flags:I padding:I",
    "fuse_write_in": "fh:Q offset:Q size:I write_flags:I lock_owner:Q flags:I padding:I",
    "fuse_write_out": "size:I padding:I",
    "fuse_statfs_out": inside(
        "st", "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I padding:I spare:24s"
    ),
    "fuse_fsync_in": "fh:Q fsync_flags:I padding:I",
    "fuse_setxattr_in": "size:I flags:I setxattr_flags:I padding:I",
    "fuse_getxattr_in": "size:I padding:I",
    "fuse_getxattr_out": "size:I padding:I",
    "fuse_access_in": "mask:I padding:I",
    "fuse_interrupt_in": "unique:Q",
    "fuse_ioctl_in": "fh:Q flags:I cmd:I arg:Q in_size:I out_size:I",
    "fuse_ioctl_out": "result:i flags:I in_iovs:I out_iovs:I",
    "fuse_poll_in": "fh:Q kh:Q flags:I events:I",
    "fuse_fallocate_in": "fh:Q offset:Q length:Q mode:I padding:I",
    "fuse_lseek_in": "fh:Q offset:Q whence:I padding:I",
    "fuse_lseek_out": "offset:Q",
    "fuse_copy_file_range_in": "fh_in:Q off_in:Q nodeid_out:Q fh_out:Q off_out:Q len:Q flags:Q",
    "fuse_syncfs_in": "padding:Q",
    "fuse_notify_inval_inode_out": "ino:Q off:q len:q",
}
"""The structures of protocol 7.38, by their C names: ``field:code`` with the codes of Python's struct module."""

NEWER_STRUCTS = {
    "fuse_supp_groups": "nr_groups:I",
    "fuse_statx_in": "getattr_flags:I reserved:I fh:Q sx_flags:I sx_mask:I",
    "fuse_statx_out": "attr_valid:Q attr_valid_nsec:I flags:I spare:16s " + inside("stat", STATX),
    "fuse_copy_file_range_out": "bytes_copied:Q",
}
"""What came later (7.39 and 7.45), or what Debian's header of 7.38 does not have yet."""


def short(member: str) -> str:
    """The name of a field for tests: ``attr.ino`` is ``ino``, ``stat.atime.tv_sec`` is ``atime_tv_sec``."""
    outer, dot, rest = member.partition(".")
    return (rest if dot and outer in ("attr", "st", "stat") else member).replace(".", "_")


class Layout:
    """A C structure: packs fields given by name (the others are 0), unpacks to a namespace."""

    def __init__(self, fields: str) -> None:
        split = [field.rpartition(":") for field in fields.split()]
        self.members = [name for name, _, _ in split]
        self.codes = [code for _, _, code in split]
        self.names = [short(name) for name in self.members]
        wide = any(code in "Qq" for code in self.codes)
        self.struct = struct.Struct("@" + "".join(self.codes) + ("0Q" if wide else ""))
        self.size = self.struct.size

    def offsets(self) -> list[tuple[str, int, int]]:
        """(member, offset, size) of each field."""
        found = []
        for index, member in enumerate(self.members):
            size = struct.calcsize("@" + self.codes[index])
            found.append((member, struct.calcsize("@" + "".join(self.codes[: index + 1])) - size, size))
        return found

    def pack(self, **given: int) -> bytes:
        fields = zip(self.names, self.codes, strict=True)
        values = [given.pop(name, b"" if code[-1] == "s" else 0) for name, code in fields]
        assert not given, f"no such fields: {given}"
        return self.struct.pack(*values)

    def unpack(self, data: bytes, at: int = 0) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(self.names, self.struct.unpack_from(data, at), strict=True)))


LAYOUTS = {name: Layout(fields) for name, fields in {**STRUCTS, **NEWER_STRUCTS}.items()}


def pack(name: str, **fields: int) -> bytes:
    """A structure without its prefix ``fuse_``."""
    return LAYOUTS["fuse_" + name].pack(**fields)


def unpack(name: str, data: bytes, at: int = 0) -> SimpleNamespace:
    """The reverse; what follows the structure is not looked at."""
    return LAYOUTS["fuse_" + name].unpack(data, at)


def size_of(name: str) -> int:
    """Bytes of a structure."""
    return LAYOUTS["fuse_" + name].size


class Answer(NamedTuple):
    """What came back: ``error`` is 0 or a positive errno."""

    error: int
    body: bytes


class DirectoryEntry(NamedTuple):
    """One entry of READDIR; ``node`` is None there, in READDIRPLUS what came with it."""

    name: bytes
    ino: int
    off: int
    type: int
    entry: SimpleNamespace | None


def header(
    opcode: int,
    node: int,
    length: int,
    unique: int,
    *,
    uid: int = 0,
    gid: int = 0,
    pid: int = 0,
    extensions: int = 0,
) -> bytes:
    """fuse_in_header; ``extensions`` in units of 8 bytes."""
    return pack(
        "in_header", len=length, opcode=opcode, unique=unique, nodeid=node, uid=uid, gid=gid, pid=pid,
        total_extlen=extensions,
    )  # fmt: skip


def group_extension(*groups: int) -> bytes:
    """FUSE_EXT_GROUPS (32) with these groups, padded as the kernel does it (extend_arg in fs/fuse/dir.c)."""
    body = pack("supp_groups", nr_groups=len(groups)) + b"".join(struct.pack("@I", group) for group in groups)
    body += bytes(-len(body) % 8)
    return pack("ext_header", size=8 + len(body), type=32) + body


class Rig:
    """A connection over a core, and the request buffer of its session.

    Attributes:
        notifications: those that were sent, (code, body).
        may_turn_read_only: the test stops the journal.
    """

    may_turn_read_only = False

    def __init__(self, core: Any, *, options: MountOptions | None = None, buffer: int = BUFFER) -> None:
        self.core = core
        self.notifications: list[tuple[int, bytes]] = []
        self.connection = Connection(
            core, dispatch.TABLE, lambda code, body: self.notifications.append((code, bytes(body))), options
        )
        self.buffer = bytearray(buffer)
        self.request = Request(memoryview(self.buffer), core.pins)
        self.uniques = count(2, 2)

    def raw(self, message: bytes) -> bytes | None:
        """The answer to these bytes, as they are."""
        # The rest of the buffer has something of every request before it, and nothing of that may be believed.
        self.buffer[len(message) : len(message) + 256] = b"\xa5" * 256
        self.buffer[: len(message)] = message
        reply = dispatch.answer(self.connection, self.request, len(message), self.connection.table)
        return None if reply is None else b"".join(bytes(part) for part in reply)

    def message(self, opcode: int, node: int = ROOT, body: bytes = b"", ext: bytes = b"", **who: int) -> bytes:
        """A message with a right header."""
        length = HEADER + len(body) + len(ext)
        return header(opcode, node, length, next(self.uniques), extensions=len(ext) // 8, **who) + body + ext

    def ask(self, opcode: int, node: int = ROOT, body: bytes = b"", ext: bytes = b"", **who: int) -> Answer:
        """Send a message that wants an answer."""
        found = self.whole_answer(self.message(opcode, node, body, ext, **who))
        assert found is not None, f"no answer to {opcode}"
        return found

    def answer(self, message: bytes) -> Answer | None:
        """The answer, checked as the kernel checks it."""
        return check(message, self.raw(message))

    def whole_answer(self, message: bytes) -> Answer | None:
        """The answer, checked, also if it takes more than one slice."""
        return check(message, self.whole(message))

    def whole(self, message: bytes) -> bytes | None:
        """The answer to these bytes, also if it takes more than one slice: on an idle machine it has one."""
        reply = self.raw(message)
        scheduler = self.connection.scheduler
        while reply is None and (turn := scheduler.next()):
            user, work, _ = turn
            assert isinstance(work, Work)
            parts = dispatch.proceed(self.connection, self.request, work, 1.0, lambda _: False)
            scheduler.had_turn(user, work, 0.0)
            reply = None if parts is None else b"".join(bytes(part) for part in parts)
        return reply

    def done(self, opcode: int, node: int = ROOT, body: bytes = b"", ext: bytes = b"", **who: int) -> bytes:
        """The body of an answer that must not be an error."""
        found = self.ask(opcode, node, body, ext, **who)
        assert found.error == 0, f"{opcode!r}: errno {found.error}"
        return found.body

    def refused(self, opcode: int, node: int = ROOT, body: bytes = b"", ext: bytes = b"", **who: int) -> int:
        """The errno of an answer that must be an error."""
        found = self.ask(opcode, node, body, ext, **who)
        assert found.error, f"{opcode!r} was not refused"
        return found.error

    def undo(self) -> None:
        """The kernel did not want the last answer."""
        assert self.request.undo is not None, "nothing to undo"
        self.request.take_back()

    # What many tests begin with

    def init(self, flags: int = ALL, minor: int = 45) -> SimpleNamespace:
        """The handshake of a kernel that has all flags, or these."""
        body = pack("init_in", major=7, minor=minor, max_readahead=131072, flags=flags & 0xFFFFFFFF, flags2=flags >> 32)
        return unpack("init_out", self.done(Opcode.INIT, 0, body))

    def lookup(self, name: bytes, node: int = ROOT) -> SimpleNamespace:
        return unpack("entry_out", self.done(Opcode.LOOKUP, node, name + b"\0"))

    def mkdir(self, name: bytes, node: int = ROOT, mode: int = 0o755) -> SimpleNamespace:
        return unpack("entry_out", self.done(Opcode.MKDIR, node, pack("mkdir_in", mode=mode) + name + b"\0"))

    def symlink(self, name: bytes, target: bytes, node: int = ROOT) -> SimpleNamespace:
        return unpack("entry_out", self.done(Opcode.SYMLINK, node, name + b"\0" + target + b"\0"))

    def mknod(self, name: bytes, mode: int, node: int = ROOT, rdev: int = 0) -> SimpleNamespace:
        body = pack("mknod_in", mode=mode, rdev=rdev) + name + b"\0"
        return unpack("entry_out", self.done(Opcode.MKNOD, node, body))

    def create(
        self, name: bytes, node: int = ROOT, flags: int = 2, mode: int = 0o100644
    ) -> tuple[SimpleNamespace, int]:
        """A new file, open: its entry and its handle."""
        body = self.done(Opcode.CREATE, node, pack("create_in", flags=flags, mode=mode) + name + b"\0")
        assert len(body) == size_of("entry_out") + size_of("open_out")
        return unpack("entry_out", body), unpack("open_out", body, size_of("entry_out")).fh

    def open(self, node: int, flags: int = 2) -> int:
        fh: int = unpack("open_out", self.done(Opcode.OPEN, node, pack("open_in", flags=flags))).fh
        return fh

    def read(self, node: int, fh: int, offset: int = 0, size: int = 4096) -> bytes:
        return self.done(Opcode.READ, node, pack("read_in", fh=fh, offset=offset, size=size))

    def write(self, node: int, fh: int, data: bytes, offset: int = 0, flags: int = 0) -> int:
        body = pack("write_in", fh=fh, offset=offset, size=len(data), write_flags=flags) + data
        size: int = unpack("write_out", self.done(Opcode.WRITE, node, body)).size
        return size

    def getattr(self, node: int) -> SimpleNamespace:
        return unpack("attr_out", self.done(Opcode.GETATTR, node, pack("getattr_in")))

    def release(self, fh: int, node: int = ROOT) -> None:
        assert self.done(Opcode.RELEASE, node, pack("release_in", fh=fh)) == b""

    def forget(self, node: int, lookups: int = 1) -> None:
        assert self.answer(self.message(Opcode.FORGET, node, pack("forget_in", nlookup=lookups))) is None

    def names(self, node: int = ROOT, *, plus: bool = False, cookie: int = 0, room: int = 4096) -> list[DirectoryEntry]:
        """What one READDIR or READDIRPLUS lists."""
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        body = self.done(opcode, node, pack("read_in", offset=cookie, size=room))
        assert len(body) <= room
        return directory_entries(body, plus=plus)


def attr(found: Attributes) -> dict[str, int]:
    """The fields of fuse_attr."""
    seconds = {
        f"{name}time": getattr(found, f"{name}time_ns") // BILLION & 0xFFFFFFFFFFFFFFFF for name in ("a", "m", "c")
    }
    rest = {f"{name}timensec": getattr(found, f"{name}time_ns") % BILLION for name in ("a", "m", "c")}
    major, minor = os.major(found.rdev), os.minor(found.rdev)
    return {
        "ino": found.ino,
        "size": found.size,
        "blocks": found.blocks,
        **seconds,
        **rest,
        "mode": found.mode,
        "nlink": found.nlink,
        "uid": found.uid,
        "gid": found.gid,
        "rdev": minor & 0xFF | major << 8 | minor >> 8 << 20,
        "blksize": 4096,
    }


def ino_of(node: int) -> int:
    """The inode number in a node id that is not the root's."""
    return node & 0xFFFFFFFF


def entry(found: Attributes) -> bytes:
    """fuse_entry_out of an inode that is not the root."""
    return pack(
        "entry_out",
        nodeid=found.generation << 32 | found.ino,
        generation=found.generation,
        entry_valid=DAY,
        attr_valid=DAY,
        **attr(found),
    )


def attr_out(found: Attributes) -> bytes:
    """fuse_attr_out."""
    return pack("attr_out", attr_valid=DAY, **attr(found))


def check(message: bytes, reply: bytes | None) -> Answer | None:
    """What the kernel accepts as an answer to ``message``."""
    if reply is None:
        return None
    head = unpack("out_header", reply)
    assert head.len == len(reply)
    assert head.unique == unpack("in_header", message).unique
    assert -4095 <= head.error <= 0
    assert not head.error or len(reply) == OUT
    return Answer(-head.error, reply[OUT:])


def directory_entries(body: bytes, *, plus: bool) -> list[DirectoryEntry]:
    """The entries of a READDIR or READDIRPLUS; each is padded to 8 bytes with zeros."""
    found = []
    at = 0
    while at < len(body):
        entry = None
        if plus:
            entry = unpack("entry_out", body, at)
            at += size_of("entry_out")
        head = unpack("dirent", body, at)
        at += size_of("dirent")
        found.append(DirectoryEntry(body[at : at + head.namelen], head.ino, head.off, head.type, entry))
        end = at + head.namelen
        at = end + -end % 8
        assert body[end:at] == bytes(at - end)
    assert at == len(body)
    return found
