"""Every opcode: a valid message has an answer with exactly the expected bytes, and its effect.

The expected answers are built from the layouts of `message_rig`, which are those of the system's header.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from message_rig import (
    ALL,
    ANYBODY,
    BILLION,
    CALLER,
    DAY,
    ROOT,
    Rig,
    attr_out,
    entry,
    group_extension,
    ino_of,
    pack,
    unpack,
)

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.fs.types import ROOT_INO, Caller, Options, RenameFlags, SetAttributes
from daxfs.fuse.kernel.abi import Init, Opcode

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME, FATTR_FH = (1 << bit for bit in range(7))
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_LOCKOWNER, FATTR_CTIME, FATTR_KILL_SUIDGID = (1 << bit for bit in range(7, 12))


def calls(rig: Rig) -> list[Any]:
    """Return the calls of the fake core since the last call of this function."""
    found = list(rig.core.calls)
    rig.core.calls.clear()
    return found


# The frame


def test_header_and_answer_to_the_byte(rig: Rig) -> None:
    """A message and its answer as literal bytes, as a check of the rig's own layouts."""
    rig.init()
    message = bytes.fromhex(
        "30000000" "19000000" "efcdab8967452301" "0100000000000000" "00000000" "00000000" "07000000" "0000" "0000"
        "0000000000000000"
    )  # fmt: skip
    assert rig.raw(message) == bytes.fromhex("10000000daffffffefcdab8967452301")  # FLUSH: ENOSYS


def test_unknown_opcodes_are_not_there(fake: Rig) -> None:
    known = set(fake.connection.table)
    for opcode in (*range(60), 4096, 1 << 20, 436207616, 0xFFFFFFFF):
        if opcode not in known:
            assert fake.refused(opcode) == errno.ENOSYS
    assert {Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.BMAP, Opcode.SETUPMAPPING}.isdisjoint(known)


@pytest.mark.parametrize("opcode", [Opcode.FLUSH, Opcode.POLL])
def test_what_the_kernel_need_not_ask(fake: Rig, opcode: Opcode) -> None:
    body = pack("flush_in" if opcode == Opcode.FLUSH else "poll_in")
    assert fake.refused(opcode, body=body) == errno.ENOSYS


def test_an_interrupt_has_no_answer(fake: Rig) -> None:
    assert fake.answer(fake.message(Opcode.INTERRUPT, 0, pack("interrupt_in", unique=2))) is None


def test_the_end(fake: Rig) -> None:
    assert not fake.connection.ended
    assert fake.done(Opcode.DESTROY, 0) == b""
    assert fake.connection.ended


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EDQUOT])
def test_a_refusal_is_answered_by_its_number(fake: Rig, number: int) -> None:
    fake.core.refuse = {"getattr": FsError(number)}
    assert fake.raw(fake.message(Opcode.GETATTR, ROOT, pack("getattr_in")))[4:8] == struct.pack("=i", -number)


def test_damage_is_euclean(fake: Rig) -> None:
    fake.core.refuse = {"getattr": Corrupt(CorruptKind.INODE_CHECKSUM, "inode 2")}
    assert fake.refused(Opcode.GETATTR, body=pack("getattr_in")) == errno.EUCLEAN


def test_an_unknown_exception_goes_up(fake: Rig) -> None:
    fake.core.refuse = {"getattr": KeyError("bug")}
    with pytest.raises(KeyError):
        fake.ask(Opcode.GETATTR, body=pack("getattr_in"))


def test_a_full_pool_gets_what_was_forgotten_and_is_asked_again(fake: Rig) -> None:
    node = fake.create(b"gone")[0].nodeid
    fake.forget(node)
    calls(fake)
    fake.core.refuse = {"mkdir": FsError(errno.ENOSPC)}
    assert fake.refused(Opcode.MKDIR, body=pack("mkdir_in", mode=0o755) + b"d\0") == errno.ENOSPC
    assert [name for name, _ in calls(fake)] == ["mkdir", "unpin", "mkdir"]
    assert fake.refused(Opcode.MKDIR, body=pack("mkdir_in", mode=0o755) + b"d\0") == errno.ENOSPC
    assert [name for name, _ in calls(fake)] == ["mkdir"], "no request waits"


def test_what_was_forgotten_makes_room(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(size="4M")
    rig.init()
    found, fh = rig.create(b"large")
    block = bytes(1 << 20)
    written = sum(iter_writes(rig, found.nodeid, fh, block))
    assert written > 1 << 20
    rig.release(fh, found.nodeid)
    assert rig.done(Opcode.UNLINK, body=b"large\0") == b""
    rig.forget(found.nodeid)
    assert rig.connection.forgets
    found, fh = rig.create(b"other")
    assert sum(iter_writes(rig, found.nodeid, fh, block)) >= written
    rig.release(fh, found.nodeid)


def iter_writes(rig: Rig, node: int, fh: int, block: bytes) -> Any:
    """Write until the pool is full; yield the bytes written each time."""
    offset = 0
    while True:
        body = pack("write_in", fh=fh, offset=offset, size=len(block)) + block
        found = rig.ask(Opcode.WRITE, node, body)
        if found.error:
            assert found.error == errno.ENOSPC
            return
        size = unpack("write_out", found.body).size
        offset += size
        yield size


# Names


def test_lookup(agreed: Rig) -> None:
    made = agreed.mkdir(b"d")
    found = agreed.core.getattr(made.ino)
    assert agreed.done(Opcode.LOOKUP, ROOT, b"d\0") == entry(found)
    assert agreed.core.pins[made.ino] == 2


def test_a_name_that_is_not_there_is_remembered_as_such(agreed: Rig) -> None:
    assert agreed.done(Opcode.LOOKUP, ROOT, b"nothing\0") == pack("entry_out", entry_valid=DAY)
    assert agreed.core.pins == {}


def test_lookup_of_the_parent_by_a_file_handle(agreed: Rig) -> None:
    node = agreed.mkdir(b"d").nodeid
    inner = agreed.mkdir(b"inner", node).nodeid
    assert agreed.lookup(b"..", inner).nodeid == node
    found = agreed.lookup(b"..", node)
    assert (found.nodeid, found.ino) == (ROOT, ROOT_INO)
    # The root is node 1 only, even when it is pinned.
    assert agreed.refused(Opcode.GETATTR, ROOT_INO, pack("getattr_in")) == errno.ESTALE


def test_lookup_of_a_node_that_the_kernel_has_forgotten(agreed: Rig) -> None:
    """open_by_handle_at(2) may ask for any number, with the name "."."""
    found, fh = agreed.create(b"f")
    node = found.nodeid
    agreed.release(fh, node)
    agreed.forget(node)
    agreed.connection.process_forgets()
    assert agreed.refused(Opcode.GETATTR, node, pack("getattr_in")) == errno.ESTALE
    assert agreed.lookup(b".", node).generation == found.generation
    assert agreed.getattr(node).ino == found.ino
    assert agreed.lookup(b".", ROOT).nodeid == ROOT
    assert agreed.done(Opcode.UNLINK, body=b"f\0") == b""
    assert agreed.refused(Opcode.LOOKUP, node, b".\0") == errno.ESTALE
    agreed.forget(node, 2)
    agreed.connection.process_forgets()
    for number in (0, *range(2, 11), node, node + 1, 100, 1 << 20, 1 << 32, 1 << 63, (1 << 64) - 1):
        assert agreed.refused(Opcode.LOOKUP, number, b".\0") == errno.ESTALE, number


def test_forget(fake: Rig) -> None:
    node = fake.mkdir(b"d").nodeid
    fake.lookup(b"d")
    fake.lookup(b"d")
    assert fake.core.pins == {node: 3}
    calls(fake)
    fake.forget(node, 2)
    assert calls(fake) == [], "forgetting waits"
    fake.connection.process_forgets()
    assert fake.core.pins == {node: 1}
    fake.forget(ROOT, 7)
    fake.connection.process_forgets()
    assert calls(fake) == [("unpin", (node, 2)), ("unpin", (ROOT_INO, 7))]


def test_batch_forget(fake: Rig) -> None:
    nodes = [fake.mkdir(name).nodeid for name in (b"a", b"b", b"c")]
    body = pack("batch_forget_in", count=2) + b"".join(pack("forget_one", nodeid=node, nlookup=1) for node in nodes)
    assert fake.answer(fake.message(Opcode.BATCH_FORGET, 0, body)) is None
    fake.connection.process_forgets()
    assert fake.core.pins == {nodes[2]: 1}, "as many as the count says"


def test_a_refusal_to_forget_stops_nothing(fake: Rig) -> None:
    nodes = [fake.mkdir(name).nodeid for name in (b"a", b"b")]
    fake.core.refuse = {"unpin": FsError(errno.EIO)}
    for node in nodes:
        fake.forget(node)
    fake.connection.process_forgets()
    assert [arguments for name, arguments in calls(fake) if name == "unpin"] == [(node, 1) for node in nodes]


def test_the_last_forget_frees_a_file_without_a_name(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    agreed.write(found.nodeid, fh, bytes(1 << 16))
    assert agreed.done(Opcode.UNLINK, body=b"f\0") == b""
    agreed.release(fh, found.nodeid)
    assert agreed.getattr(found.nodeid).nlink == 0
    free = agreed.core.statfs().files_free
    agreed.forget(found.nodeid)
    agreed.connection.process_forgets()
    assert agreed.core.statfs().files_free == free + 1
    assert agreed.refused(Opcode.GETATTR, found.nodeid, pack("getattr_in")) == errno.ESTALE


def test_symlink_and_readlink(agreed: Rig) -> None:
    body = agreed.done(Opcode.SYMLINK, ROOT, b"link\0target of it\0", uid=5, gid=6)
    found = agreed.core.lookup(ROOT_INO, b"link")
    assert body == entry(found)
    assert (found.mode, found.uid, found.gid) == (stat.S_IFLNK | 0o777, 5, 6)
    assert agreed.done(Opcode.READLINK, agreed.lookup(b"link").nodeid) == b"target of it"
    long = b"x" * 4095
    node = agreed.symlink(b"long", long).nodeid
    assert agreed.done(Opcode.READLINK, node) == long
    assert agreed.refused(Opcode.READLINK, ROOT) == errno.EINVAL


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_mknod(agreed: Rig, kind: int) -> None:
    rdev = 0x12_3_45 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    body = pack("mknod_in", mode=kind | 0o666, rdev=rdev, umask=0o022) + b"node\0"
    answer = agreed.done(Opcode.MKNOD, ROOT, body, **ANYBODY)
    found = agreed.core.lookup(ROOT_INO, b"node")
    assert answer == entry(found)
    assert (found.mode, found.uid, found.gid) == (kind | 0o644, 1000, 100)
    assert unpack("entry_out", answer).rdev == rdev


@pytest.mark.parametrize(
    ("major", "minor", "encoded"), [(1, 3, 0x103), (8, 0x12345, 0x12300845), (0xFFF, 0xFFFFF, 0xFFFFFFFF)]
)
def test_device_numbers_are_the_kernels(fake: Rig, major: int, minor: int, encoded: int) -> None:
    body = pack("mknod_in", mode=stat.S_IFBLK, rdev=encoded) + b"b\0"
    assert unpack("entry_out", fake.done(Opcode.MKNOD, ROOT, body)).rdev == encoded
    assert fake.core.calls[-1][1][3] == os.makedev(major, minor)


def test_mkdir(agreed: Rig) -> None:
    body = pack("mkdir_in", mode=stat.S_IFDIR | 0o777, umask=0o027) + b"d\0"
    answer = agreed.done(Opcode.MKDIR, ROOT, body, **ANYBODY)
    found = agreed.core.lookup(ROOT_INO, b"d")
    assert answer == entry(found)
    assert (found.mode, found.uid, found.gid, found.nlink) == (stat.S_IFDIR | 0o750, 1000, 100, 2)
    assert agreed.refused(Opcode.MKDIR, ROOT, body) == errno.EEXIST


def test_link(agreed: Rig) -> None:
    node, other = agreed.mknod(b"f", stat.S_IFREG | 0o600).nodeid, agreed.mkdir(b"d").nodeid
    answer = agreed.done(Opcode.LINK, other, pack("link_in", oldnodeid=node) + b"again\0")
    found = agreed.core.lookup(ino_of(other), b"again")
    assert answer == entry(found)
    assert (found.ino, found.nlink) == (ino_of(node), 2)
    assert agreed.core.pins[ino_of(node)] == 2


def test_unlink_and_rmdir(agreed: Rig) -> None:
    agreed.mknod(b"f", stat.S_IFREG)
    agreed.mkdir(b"d")
    assert agreed.refused(Opcode.UNLINK, body=b"d\0") == errno.EISDIR
    assert agreed.refused(Opcode.RMDIR, body=b"f\0") == errno.ENOTDIR
    assert agreed.done(Opcode.UNLINK, body=b"f\0") == b""
    assert agreed.done(Opcode.RMDIR, body=b"d\0") == b""
    assert agreed.core.tree.listdir("/") == [b"lost+found"]


def test_rename(agreed: Rig) -> None:
    node = agreed.mkdir(b"d").nodeid
    agreed.mknod(b"f", stat.S_IFREG)
    assert agreed.done(Opcode.RENAME, ROOT, pack("rename_in", newdir=node) + b"f\0g\0") == b""
    assert agreed.core.tree.listdir("/d") == [b"g"]
    assert agreed.done(Opcode.RENAME, node, pack("rename_in", newdir=ROOT) + b"g\0h\0") == b""
    assert sorted(agreed.core.tree.listdir("/")) == [b"d", b"h", b"lost+found"]


def test_rename2(agreed: Rig, fake: Rig) -> None:
    body = pack("rename2_in", newdir=ROOT, flags=2) + b"a\0b\0"
    a, b = agreed.mkdir(b"a").nodeid, agreed.mknod(b"b", stat.S_IFREG).nodeid
    assert agreed.done(Opcode.RENAME2, ROOT, body) == b""
    assert (agreed.lookup(b"a").nodeid, agreed.lookup(b"b").nodeid) == (b, a)
    assert agreed.refused(Opcode.RENAME2, ROOT, pack("rename2_in", newdir=ROOT, flags=1) + b"a\0b\0") == errno.EEXIST
    fake.mkdir(b"a")
    fake.done(Opcode.RENAME2, ROOT, pack("rename2_in", newdir=ROOT, flags=4) + b"a\0b\0", **ANYBODY)
    assert fake.core.calls[-1] == ("rename", (ROOT_INO, b"a", ROOT_INO, b"b", RenameFlags.WHITEOUT, CALLER))


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b"d\0"),
        (Opcode.MKNOD, pack("mknod_in", mode=stat.S_IFREG) + b"new\0"),
        (Opcode.MKDIR, pack("mkdir_in") + b"new\0"),
        (Opcode.SYMLINK, b"new\0target\0"),
        (Opcode.CREATE, pack("create_in", flags=os.O_RDWR) + b"new\0"),
        (Opcode.TMPFILE, pack("create_in", flags=os.O_RDWR) + b"/\0"),
        (Opcode.READDIRPLUS, pack("read_in", size=4096)),
    ],
)
def test_a_lookup_that_nobody_wanted_is_taken_back(fake: Rig, opcode: Opcode, body: bytes) -> None:
    fake.mkdir(b"d")
    fake.core.pins.clear()
    before = dict(fake.core.pins), fake.core.open_files
    fake.done(opcode, ROOT, body)
    assert (fake.core.pins, fake.core.open_files) != before
    fake.undo()
    assert (fake.core.pins, fake.core.open_files) == before
    assert fake.connection.files == {}


def test_what_is_taken_back_is_of_this_request(fake: Rig) -> None:
    fake.mkdir(b"d")
    fake.getattr(ROOT)
    assert fake.request.undo is None


def test_a_file_that_nobody_wanted_is_gone(agreed: Rig) -> None:
    """If the caller of O_TMPFILE was killed, the kernel knows neither handle nor node, and the file is freed."""
    free = agreed.core.statfs().files_free
    agreed.done(Opcode.TMPFILE, ROOT, pack("create_in", flags=os.O_RDWR, mode=0o600) + b"/\0")
    assert agreed.core.statfs().files_free == free - 1
    agreed.undo()
    assert agreed.core.statfs().files_free == free


# Callers


def test_the_caller_arrives_whole(fake: Rig) -> None:
    fake.done(Opcode.MKDIR, ROOT, pack("mkdir_in", mode=0o755, umask=0o022) + b"d\0", **ANYBODY)
    assert fake.core.calls[-1][1][-1] == CALLER._replace(umask=0o022)


@pytest.mark.parametrize("groups", [(100,), (7, 8, 9), ()])
def test_supplementary_groups(fake: Rig, groups: tuple[int, ...]) -> None:
    body = pack("mkdir_in", mode=0o755) + b"d\0"
    fake.done(Opcode.MKDIR, ROOT, body, group_extension(*groups), **ANYBODY)
    assert fake.core.calls[-1][1][1] == b"d"
    assert fake.core.calls[-1][1][-1] == CALLER._replace(groups=frozenset(groups))


def test_groups_behind_an_extension_that_nobody_knows(fake: Rig) -> None:
    unknown = pack("ext_header", size=24, type=40) + bytes(16)
    fake.done(Opcode.SYMLINK, ROOT, b"link\0target\0", unknown + group_extension(5), **ANYBODY)
    assert fake.core.calls[-1] == ("symlink", (ROOT_INO, b"link", b"target", CALLER._replace(groups=frozenset({5}))))


# Attributes


def test_getattr(agreed: Rig) -> None:
    node = agreed.mkdir(b"d").nodeid
    body = pack("getattr_in")
    assert agreed.done(Opcode.GETATTR, node, body) == attr_out(agreed.core.getattr(ino_of(node)))
    assert agreed.done(Opcode.GETATTR, ROOT, body) == attr_out(agreed.core.getattr(ROOT_INO))


def test_times_before_1970_and_after_2106(fake: Rig) -> None:
    fake.core.inodes[ROOT_INO].times = [-1, -(10**10), 2**33 * BILLION + 5]
    found = fake.getattr(ROOT)
    assert (found.atime, found.atimensec) == ((1 << 64) - 1, 999_999_999)
    assert (found.mtime, found.mtimensec) == ((1 << 64) - 10, 0)
    assert (found.ctime, found.ctimensec) == (2**33, 5)


def test_statx(agreed: Rig) -> None:
    node = agreed.mknod(b"n", stat.S_IFCHR | 0o640, rdev=0x103).nodeid
    body = pack("statx_in", sx_mask=0xFFF)
    found = agreed.core.getattr(ino_of(node))
    expected: dict[str, int] = {"attr_valid": DAY, "mask": 0xFFF, "blksize": 4096, "attributes_mask": 0x200070}
    for name, when in (
        ("atime", found.atime_ns),
        ("btime", found.crtime_ns),
        ("ctime", found.ctime_ns),
        ("mtime", found.mtime_ns),
    ):
        expected[f"{name}_tv_sec"], expected[f"{name}_tv_nsec"] = divmod(when, BILLION)
    for name in ("mode", "nlink", "uid", "gid", "ino", "size", "blocks"):
        expected[name] = getattr(found, name)
    assert agreed.done(Opcode.STATX, node, body) == pack("statx_out", rdev_major=1, rdev_minor=3, **expected)


@pytest.mark.parametrize(("dax", "shown"), [("always", 0x200000), ("never", 0)])
def test_statx_tells_what_bypasses_the_page_cache(rig_of: Callable[..., Rig], dax: str, shown: int) -> None:
    rig = rig_of(mount=Options(dax=dax))
    rig.init()
    node = rig.mknod(b"f", stat.S_IFREG).nodeid
    assert unpack("statx_out", rig.done(Opcode.STATX, node, pack("statx_in"))).attributes == shown
    assert unpack("statx_out", rig.done(Opcode.STATX, ROOT, pack("statx_in"))).attributes == 0


def test_setattr_does_what_is_asked(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    node = found.nodeid
    given = {"mode": 0o100640, "uid": 7, "gid": 8, "size": 5000, "atime": 11, "mtime": 12, "ctime": 13}
    given |= {"atimensec": 1, "mtimensec": 2, "ctimensec": 3}
    valid = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | FATTR_CTIME | FATTR_FH
    answer = agreed.done(Opcode.SETATTR, node, pack("setattr_in", valid=valid, fh=fh, **given))
    after = agreed.core.getattr(ino_of(node))
    assert answer == attr_out(after)
    assert (after.mode, after.uid, after.gid, after.size) == (0o100640, 7, 8, 5000)
    assert (after.atime_ns, after.mtime_ns, after.ctime_ns) == (11 * BILLION + 1, 12 * BILLION + 2, 13 * BILLION + 3)
    agreed.release(fh, node)


@pytest.mark.parametrize(
    ("valid", "changes"),
    [
        (0, {}),
        (FATTR_MODE, {"mode": 0o4755}),
        (FATTR_UID, {"uid": 7}),
        (FATTR_GID, {"gid": 8}),
        (FATTR_SIZE, {"size": 99, "kill_privileges": False}),
        (FATTR_SIZE | FATTR_KILL_SUIDGID, {"size": 99, "kill_privileges": True}),
        (FATTR_KILL_SUIDGID | FATTR_UID, {"uid": 7}),
        (FATTR_ATIME, {"atime_ns": -2 * BILLION + 5}),
        (FATTR_MTIME, {"mtime_ns": 3 * BILLION + 6}),
        (FATTR_CTIME, {"ctime_ns": 4 * BILLION + 7}),
        (FATTR_ATIME | FATTR_ATIME_NOW, {"atime_now": True}),
        (FATTR_MTIME | FATTR_MTIME_NOW, {"mtime_now": True}),
        (FATTR_LOCKOWNER | FATTR_FH, {}),
    ],
)
def test_setattr_passes_on_only_what_is_asked(fake: Rig, valid: int, changes: dict[str, Any]) -> None:
    body = pack(
        "setattr_in", valid=valid, mode=stat.S_IFREG | 0o4755, uid=7, gid=8, size=99, fh=3, lock_owner=4,
        atime=(1 << 64) - 2, mtime=3, ctime=4, atimensec=5, mtimensec=6, ctimensec=7,
    )  # fmt: skip
    fake.done(Opcode.SETATTR, ROOT, body)
    assert fake.core.calls[-1] == ("setattr", (ROOT_INO, SetAttributes(**changes), Caller()))


def test_setattr_with_a_kernel_that_does_not_say_who_may_keep_set_id_bits(fake: Rig) -> None:
    fake.init(ALL & ~Init.HANDLE_KILLPRIV_V2)
    fake.done(Opcode.SETATTR, ROOT, pack("setattr_in", valid=FATTR_SIZE, size=1), **ANYBODY)
    assert fake.core.calls[-1][1][1] == SetAttributes(size=1, kill_privileges=None)


@pytest.mark.parametrize("field", ["atimensec", "mtimensec", "ctimensec"])
def test_a_second_has_a_billion_nanoseconds(fake: Rig, field: str) -> None:
    body = pack("setattr_in", valid=FATTR_ATIME | FATTR_MTIME | FATTR_CTIME, **{field: BILLION})
    assert fake.refused(Opcode.SETATTR, ROOT, body) == errno.EINVAL


def test_groups_of_a_caller_who_gives_a_file_away(fake: Rig) -> None:
    """S_ISGID without group execution marks mandatory locking, and stays if the caller is in the file's group."""
    node = fake.create(b"f", mode=stat.S_IFREG | stat.S_ISGID | 0o644)[0].nodeid
    body = pack("setattr_in", valid=FATTR_GID, gid=5)
    fake.done(Opcode.SETATTR, node, body, uid=1000, pid=os.getpid())
    assert fake.core.calls[-1][1][2].groups == frozenset(os.getgroups())
    fake.done(Opcode.SETATTR, node, body, uid=1000, pid=0)
    assert fake.core.calls[-1][1][2].groups == frozenset()
    fake.done(Opcode.SETATTR, ROOT, body, uid=1000, pid=os.getpid())
    assert fake.core.calls[-1][1][2].groups == frozenset()


def test_access(agreed: Rig) -> None:
    node = agreed.mkdir(b"d", mode=0o750).nodeid
    assert agreed.done(Opcode.ACCESS, node, pack("access_in", mask=os.R_OK | os.X_OK)) == b""
    assert agreed.refused(Opcode.ACCESS, node, pack("access_in", mask=os.R_OK), uid=5, gid=5) == errno.EACCES
    assert agreed.done(Opcode.ACCESS, node, pack("access_in", mask=os.F_OK), uid=5, gid=5) == b""


def test_statfs(fake: Rig, agreed: Rig) -> None:
    assert fake.done(Opcode.STATFS, ROOT) == pack(
        "statfs_out", blocks=1000, bfree=600, bavail=500, files=300, ffree=200, bsize=4096, namelen=255, frsize=4096
    )
    found = unpack("statfs_out", agreed.done(Opcode.STATFS, ROOT))
    assert (found.bfree, found.files) == (agreed.core.statfs().free, agreed.core.statfs().files)


def set_xattr(rig: Rig, node: int, name: bytes, value: bytes, flags: int = 0, extra: int = 0, **who: int) -> bytes:
    body = pack("setxattr_in", size=len(value), flags=flags, setxattr_flags=extra) + name + b"\0" + value
    return rig.done(Opcode.SETXATTR, node, body, **who)


def test_extended_attributes(agreed: Rig) -> None:
    node = agreed.mknod(b"f", stat.S_IFREG).nodeid
    value = b"va\0lue"
    assert set_xattr(agreed, node, b"user.one", value) == b""
    assert set_xattr(agreed, node, b"user.two", b"") == b""
    query = pack("getxattr_in", size=100)
    assert agreed.done(Opcode.GETXATTR, node, query + b"user.one\0") == value
    assert agreed.done(Opcode.GETXATTR, node, query + b"user.two\0") == b""
    assert agreed.done(Opcode.GETXATTR, node, pack("getxattr_in") + b"user.one\0") == pack("getxattr_out", size=6)
    assert agreed.done(Opcode.GETXATTR, node, pack("getxattr_in", size=6) + b"user.one\0") == value
    assert agreed.refused(Opcode.GETXATTR, node, pack("getxattr_in", size=5) + b"user.one\0") == errno.ERANGE
    assert agreed.done(Opcode.LISTXATTR, node, query) == b"user.one\0user.two\0"
    assert agreed.done(Opcode.LISTXATTR, node, pack("getxattr_in")) == pack("getxattr_out", size=18)
    assert agreed.refused(Opcode.LISTXATTR, node, pack("getxattr_in", size=17)) == errno.ERANGE
    assert agreed.done(Opcode.REMOVEXATTR, node, b"user.one\0") == b""
    assert agreed.refused(Opcode.GETXATTR, node, query + b"user.one\0") == errno.ENODATA
    assert agreed.refused(Opcode.REMOVEXATTR, node, b"user.one\0") == errno.ENODATA


def test_flags_of_setxattr(agreed: Rig) -> None:
    create, replace = (pack("setxattr_in", size=1, flags=flag) + b"user.x\0v" for flag in (1, 2))
    assert agreed.refused(Opcode.SETXATTR, ROOT, replace) == errno.ENODATA
    assert agreed.done(Opcode.SETXATTR, ROOT, create) == b""
    assert agreed.refused(Opcode.SETXATTR, ROOT, create) == errno.EEXIST
    assert agreed.done(Opcode.SETXATTR, ROOT, replace) == b""


def test_setxattr_of_a_kernel_without_the_longer_form(rig: Rig) -> None:
    rig.init(ALL & ~Init.SETXATTR_EXT)
    body = struct.pack("=II", 5, 0) + b"user.x\0value"
    assert rig.done(Opcode.SETXATTR, ROOT, body) == b""
    assert rig.core.getxattr(ROOT_INO, b"user.x") == b"value"


def test_who_keeps_a_set_group_id_bit_when_an_acl_is_set(fake: Rig) -> None:
    set_xattr(fake, ROOT, b"user.x", b"1", flags=2, extra=1, **ANYBODY)
    assert fake.core.calls[-1] == ("setxattr", (ROOT_INO, b"user.x", b"1", 2, CALLER, True))
    set_xattr(fake, ROOT, b"user.x", b"1", **ANYBODY)
    assert fake.core.calls[-1][1][-2:] == (CALLER, False)
    fake.init(ALL & ~Init.SETXATTR_EXT)
    fake.done(Opcode.SETXATTR, ROOT, struct.pack("=II", 1, 0) + b"user.x\x001", **ANYBODY)
    assert fake.core.calls[-1][1][-2:] == (CALLER, None)


# The end of a connection


def test_close_all_closes_and_forgets(fake: Rig) -> None:
    found, _ = fake.create(b"a")
    fake.create(b"b")
    fake.forget(found.nodeid)
    fake.connection.close_all(unmounted=False)
    assert fake.core.open_files == 0
    assert fake.connection.files == {}
    assert found.nodeid not in fake.core.pins


@pytest.mark.parametrize("error", [Corrupt(CorruptKind.INODE_NUMBER, "12"), FsError(errno.EIO)])
def test_close_all_goes_on_after_a_refusal(fake: Rig, error: FsError, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal because of damage does not stop `close_all`; the core has logged the damage already."""
    fake.create(b"a")
    fake.create(b"b")
    fake.core.refuse = {"release": error}
    fake.connection.close_all(unmounted=False)
    assert [name for name, _ in fake.core.calls].count("release") == 2
    assert fake.connection.files == {}
    said = [record.getMessage() for record in caplog.records if "closing" in record.getMessage()]
    assert len(said) == (0 if isinstance(error, Corrupt) else 2)


def test_a_handle_is_gone_even_if_its_close_fails(fake: Rig) -> None:
    _, fh = fake.create(b"a")
    fake.core.refuse = {"release": FsError(errno.EIO)}
    assert fake.refused(Opcode.RELEASE, ROOT, pack("release_in", fh=fh)) == errno.EIO
    fake.core.refuse = {}
    assert fake.refused(Opcode.RELEASE, ROOT, pack("release_in", fh=fh)) == errno.EBADF


def test_times_of_answers_are_now(agreed: Rig) -> None:
    before = time.time()
    found = agreed.mkdir(b"d")
    assert before - 1 < found.mtime + found.mtimensec / BILLION < time.time() + 1


def test_a_node_id_never_names_another_file(agreed: Rig) -> None:
    """A new file has the number of a removed one, and another generation: the old node id is refused everywhere."""
    old = agreed.mknod(b"f", stat.S_IFREG | 0o600)
    assert agreed.done(Opcode.UNLINK, body=b"f\0") == b""
    agreed.forget(old.nodeid)
    agreed.connection.process_forgets()
    new = agreed.mknod(b"f", stat.S_IFREG | 0o600)
    assert (new.ino, new.nodeid >> 32) == (old.ino, new.generation)
    assert new.nodeid != old.nodeid
    for node in (old.nodeid, old.ino, new.nodeid ^ 1 << 63):
        assert agreed.refused(Opcode.GETATTR, node, pack("getattr_in")) == errno.ESTALE
        assert agreed.refused(Opcode.LOOKUP, node, b".\0") == errno.ESTALE
        assert agreed.refused(Opcode.LINK, ROOT, pack("link_in", oldnodeid=node) + b"g\0") == errno.ESTALE
        agreed.forget(node)
        agreed.connection.process_forgets()
    assert agreed.core.pins == {new.ino: 1}, "a forget of another file counts for nothing"
    assert agreed.getattr(new.nodeid).ino == new.ino


def test_no_generation_makes_another_inode_the_root(agreed: Rig) -> None:
    agreed.lookup(b"..", agreed.mkdir(b"d").nodeid)
    assert agreed.core.pins[ROOT_INO] == 1
    for node in (ROOT_INO, 7 << 32 | ROOT_INO, 7 << 32 | ROOT):
        assert agreed.refused(Opcode.GETATTR, node, pack("getattr_in")) == errno.ESTALE
        assert agreed.refused(Opcode.LOOKUP, node, b".\0") == errno.ESTALE
    agreed.forget(ROOT)
    agreed.connection.process_forgets()
    assert ROOT_INO not in agreed.core.pins


def test_notifications_name_the_node(agreed: Rig) -> None:
    made = agreed.mknod(b"f", stat.S_IFREG | 0o600)
    agreed.connection.invalidate_attributes(made.ino)
    agreed.connection.invalidate_attributes(ROOT_INO)
    names = [pack("notify_inval_inode_out", ino=node, off=-1) for node in (made.nodeid, ROOT)]
    assert agreed.notifications == [(2, name) for name in names]
    agreed.forget(made.nodeid)
    agreed.connection.process_forgets()
    agreed.connection.invalidate_attributes(made.ino)
    assert len(agreed.notifications) == 2, "the kernel has forgotten it"
