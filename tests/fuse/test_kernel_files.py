"""Messages about open files, directories and ioctl(2): the exact bytes of each answer, and its effect."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from message_rig import (
    ALL,
    ANYBODY,
    CALLER,
    OUT,
    ROOT,
    Rig,
    entry,
    ino_of,
    pack,
    size_of,
    unpack,
)

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.fs.types import ROOT_INO, Caller, FsXattr, Options
from daxfs.fuse.kernel import dispatch
from daxfs.fuse.kernel.abi import Init, Opcode
from daxfs.fuse.kernel.announced import MOST_AHEAD
from daxfs.fuse.kernel.directories import PLUS_AT_ONCE
from daxfs.structures import dirlist

FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR, FOPEN_PARALLEL_DIRECT_WRITES = 1, 2, 8, 64
WRITE_CACHE, WRITE_KILL_SUIDGID = 1, 4


def waiting_blocks(rig: Rig) -> int:
    """Return the number of blocks that the next commit makes durable."""
    journal = rig.core.statistics().journal
    assert journal is not None
    return journal.running_blocks


# Files


def test_create(agreed: Rig) -> None:
    body = pack("create_in", flags=os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=stat.S_IFREG | 0o666, umask=0o026) + b"f\0"
    answer = agreed.done(Opcode.CREATE, ROOT, body, **ANYBODY)
    found = agreed.core.lookup(ROOT_INO, b"f")
    assert answer == entry(found) + pack("open_out", fh=1, open_flags=FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES)
    assert (found.mode, found.uid, found.gid) == (stat.S_IFREG | 0o640, 1000, 100)
    assert agreed.core.pins[found.ino] == 1
    assert agreed.refused(Opcode.CREATE, ROOT, body) == errno.EEXIST


def test_open_read_write_release(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    node = found.nodeid
    body = pack("write_in", fh=fh, offset=3, size=5) + b"hello"
    assert agreed.done(Opcode.WRITE, node, body) == pack("write_out", size=5)
    assert agreed.read(node, fh) == b"\0\0\0hello"
    assert agreed.read(node, fh, 4, 2) == b"el"
    assert agreed.read(node, fh, 8) == b""
    agreed.release(fh, node)
    assert agreed.refused(Opcode.READ, node, pack("read_in", fh=fh, size=1)) == errno.EBADF
    answer = agreed.done(Opcode.OPEN, node, pack("open_in", flags=os.O_RDONLY))
    assert answer == pack("open_out", fh=fh + 1, open_flags=FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES)
    assert agreed.read(node, fh + 1) == b"\0\0\0hello"
    assert agreed.refused(Opcode.WRITE, node, pack("write_in", fh=fh + 1, size=1) + b"x") == errno.EBADF


def test_a_read_is_the_pools_memory(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    agreed.write(found.nodeid, fh, b"x" * 8192)
    body = pack("read_in", fh=fh, size=8192)
    message = agreed.message(Opcode.READ, found.nodeid, body)
    agreed.buffer[: len(message)] = message

    reply = dispatch.answer(agreed.connection, agreed.request, len(message), agreed.connection.table)
    assert reply is not None
    head, data = reply
    assert isinstance(data, memoryview)
    with agreed.core.tree.open("/f") as file:
        memory = file.view(0, 8192)
    assert isinstance(memory, memoryview)
    assert data.obj is memory.obj
    assert unpack("out_header", bytes(head)).len == OUT + 8192


def test_data_that_the_kernel_may_keep(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(mount=Options(dax="never"))
    rig.init()
    found, _ = rig.create(b"f")
    answer = unpack("open_out", rig.done(Opcode.OPEN, found.nodeid, pack("open_in", flags=os.O_RDWR)))
    assert answer.open_flags == FOPEN_KEEP_CACHE


@pytest.mark.parametrize("how", [Opcode.CREATE, Opcode.TMPFILE, Opcode.OPEN])
def test_an_appending_write_goes_where_the_kernel_says(agreed: Rig, how: Opcode) -> None:
    """The kernel has set the offset of an appending write already, and pages that it writes back belong elsewhere."""
    flags = os.O_RDWR | os.O_APPEND
    if how == Opcode.TMPFILE:
        body = agreed.done(how, ROOT, pack("create_in", flags=flags, mode=0o600) + b"/\0")
        node, fh = unpack("entry_out", body).nodeid, 1
    else:
        found, fh = agreed.create(b"f", flags=flags)
        node = found.nodeid
        fh = agreed.open(node, flags) if how == Opcode.OPEN else fh
    agreed.write(node, fh, b"0123456789")
    agreed.write(node, fh, b"ab", offset=2)
    assert agreed.read(node, fh) == b"01ab456789"


def test_open_truncates(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    agreed.write(found.nodeid, fh, b"data")
    agreed.open(found.nodeid, os.O_RDWR | os.O_TRUNC)
    assert agreed.getattr(found.nodeid).size == 0


def test_open_says_whether_set_id_bits_go(fake: Rig) -> None:
    node = fake.create(b"f")[0].nodeid
    for flag in (0, 1):
        fake.done(Opcode.OPEN, node, pack("open_in", flags=os.O_TRUNC, open_flags=flag), **ANYBODY)
        assert fake.core.calls[-1] == ("open_file", (node, os.O_TRUNC, CALLER, bool(flag)))
    fake.init(ALL & ~Init.HANDLE_KILLPRIV_V2)
    fake.done(Opcode.OPEN, node, pack("open_in", flags=os.O_TRUNC, open_flags=1), **ANYBODY)
    assert fake.core.calls[-1] == ("open_file", (node, os.O_TRUNC, CALLER, None))


@pytest.mark.parametrize(("flags", "kill"), [(0, False), (WRITE_KILL_SUIDGID, True)])
def test_a_write_says_whether_set_id_bits_go(fake: Rig, flags: int, kill: bool) -> None:
    found, fh = fake.create(b"f")
    node = found.nodeid
    fake.write(node, fh, b"x", flags=flags)
    assert fake.core.calls[-1] == ("write", (node, 0, b"x"))
    assert fake.notifications == []
    fake.connection.files[fh].keeps_privileges = False
    fake.write(node, fh, b"x", flags=flags)
    assert fake.core.calls[-1] == ("write", (node, 0, b"x", kill, Caller()))
    assert fake.notifications == [(2, pack("notify_inval_inode_out", ino=node, off=-1))]
    fake.init(ALL & ~Init.HANDLE_KILLPRIV_V2)
    fake.write(node, fh, b"x", flags=flags)
    assert fake.core.calls[-1] == ("write", (node, 0, b"x", None, None))


def test_an_announced_write_is_atomic_once(fake: Rig) -> None:
    found, fh = fake.create(b"f")
    node = found.nodeid
    announced = fake.connection.announced
    announced.add(fh, 0, 2, 5)
    announced.add(fh + 1, 0, 1, 5)
    fake.write(node, fh, b"x")
    assert fake.core.calls[-1] == ("write", (node, 0, b"x"))
    fake.write(node, fh, b"xy", flags=WRITE_KILL_SUIDGID)
    assert fake.core.calls[-1] == ("write", (node, 0, b"xy", True, None, "atomic"))
    fake.write(node, fh, b"xy")
    assert fake.core.calls[-1] == ("write", (node, 0, b"xy"))
    assert list(announced.by_handle) == [fh + 1]
    announced.add(fh, 0, 2, 5)
    fake.done(Opcode.RELEASE, node, pack("release_in", fh=fh))
    assert list(announced.by_handle) == [fh + 1]
    for _ in range(MOST_AHEAD - 1):
        announced.add(fh + 1, 0, 1, 5)
    with pytest.raises(FsError, match="user 5"):
        announced.add(fh + 2, 0, 1, 5)
    announced.add(fh + 2, 0, 1, 6)


def test_set_id_bits_go_with_a_write(agreed: Rig) -> None:
    found, fh = agreed.create(b"f", mode=0o106755)
    agreed.write(found.nodeid, fh, b"x")
    agreed.write(found.nodeid, fh, b"y", flags=WRITE_CACHE)
    assert agreed.read(found.nodeid, fh) == b"y"
    assert stat.S_IMODE(agreed.getattr(found.nodeid).mode) == 0o6755
    agreed.write(found.nodeid, fh, b"x", flags=WRITE_KILL_SUIDGID)
    assert stat.S_IMODE(agreed.getattr(found.nodeid).mode) == 0o755
    assert agreed.notifications[-1] == (2, pack("notify_inval_inode_out", ino=found.nodeid, off=-1))


@pytest.mark.parametrize("how", ["truncate", "fallocate", "copy"])
def test_the_kernel_is_told_that_set_id_bits_went(agreed: Rig, how: str) -> None:
    """Otherwise the kernel would run content that another user has written with the rights of the file's owner."""
    found, fh = agreed.create(b"f", mode=0o106777)
    agreed.getattr(found.nodeid)
    _, source = agreed.create(b"source")
    agreed.write(found.nodeid, source, b"program")
    agreed.notifications.clear()
    if how == "truncate":
        agreed.done(Opcode.OPEN, found.nodeid, pack("open_in", flags=os.O_RDWR | os.O_TRUNC, open_flags=1), **ANYBODY)
    elif how == "fallocate":
        agreed.done(Opcode.FALLOCATE, found.nodeid, pack("fallocate_in", fh=fh, length=5), **ANYBODY)
    else:
        body = pack("copy_file_range_in", fh_in=source, nodeid_out=found.nodeid, fh_out=fh, len=7)
        agreed.done(Opcode.COPY_FILE_RANGE, found.nodeid, body, **ANYBODY)
    assert stat.S_IMODE(agreed.getattr(found.nodeid).mode) == 0o777
    assert agreed.notifications == [(2, pack("notify_inval_inode_out", ino=found.nodeid, off=-1))]


def test_pages_never_make_a_file_longer(agreed: Rig) -> None:
    """The kernel may write back mapped pages while the daemon answers the open that truncates the file."""
    found, fh = agreed.create(b"f")
    agreed.write(found.nodeid, fh, bytes(8192))
    assert agreed.write(found.nodeid, fh, b"a" * 4096, 4096, WRITE_CACHE) == 4096
    cut = agreed.open(found.nodeid, os.O_RDWR | os.O_TRUNC)
    assert agreed.write(found.nodeid, fh, b"b" * 4096, 4096, WRITE_CACHE) == 4096
    assert agreed.getattr(found.nodeid).size == 0
    agreed.write(found.nodeid, cut, b"short")
    assert agreed.write(found.nodeid, fh, b"c" * 4096, 0, WRITE_CACHE) == 4096
    assert agreed.read(found.nodeid, fh) == b"ccccc"


def test_one_write_that_shall_be_durable(agreed: Rig) -> None:
    """A write with RWF_DSYNC to a file that was opened without O_DSYNC is durable."""
    found, fh = agreed.create(b"f")
    body = pack("write_in", fh=fh, size=1, flags=os.O_RDWR) + b"x"
    agreed.done(Opcode.WRITE, found.nodeid, body)
    assert waiting_blocks(agreed)
    agreed.done(Opcode.WRITE, found.nodeid, pack("write_in", fh=fh, offset=1, size=1, flags=os.O_DSYNC) + b"x")
    assert not waiting_blocks(agreed)


def test_changed_flags_move_the_time_of_change(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    agreed.notifications.clear()
    body = pack("ioctl_in", fh=fh, cmd=0x40086602, in_size=8) + (0x80000 | 0x40).to_bytes(8, "little")
    agreed.done(Opcode.IOCTL, found.nodeid, body)
    assert agreed.notifications == [(2, pack("notify_inval_inode_out", ino=found.nodeid, off=-1))]


def test_tmpfile_and_its_first_name(agreed: Rig) -> None:
    body = pack("create_in", flags=os.O_RDWR, mode=0o640) + b"/\0"
    answer = agreed.done(Opcode.TMPFILE, ROOT, body, **ANYBODY)
    node = unpack("entry_out", answer).nodeid
    found = agreed.core.getattr(ino_of(node))
    assert answer == entry(found) + pack("open_out", fh=1, open_flags=FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES)
    assert (found.nlink, found.uid, found.gid, stat.S_IMODE(found.mode)) == (0, 1000, 100, 0o640)
    agreed.write(node, 1, b"content")
    agreed.done(Opcode.LINK, ROOT, pack("link_in", oldnodeid=node) + b"named\0")
    assert agreed.core.tree.read_bytes("/named") == b"content"


@pytest.mark.parametrize(("opcode", "directory"), [(Opcode.FSYNC, False), (Opcode.FSYNCDIR, True)])
def test_fsync(fake: Rig, opcode: Opcode, directory: bool) -> None:
    found, fh = fake.create(b"f")
    node, ino = (ROOT, ROOT_INO) if directory else (found.nodeid, found.nodeid)
    for flags in (0, 1):
        assert fake.done(opcode, node, pack("fsync_in", fh=fh, fsync_flags=flags)) == b""
        assert fake.core.calls[-1] == ("fsync", (ino, bool(flags)))


def test_fsync_is_durable(agreed: Rig) -> None:
    found, fh = agreed.create(b"f")
    agreed.write(found.nodeid, fh, b"data")
    assert waiting_blocks(agreed)
    agreed.done(Opcode.FSYNC, found.nodeid, pack("fsync_in", fh=fh))
    assert not waiting_blocks(agreed)
    agreed.mkdir(b"d")
    agreed.done(Opcode.SYNCFS, ROOT, pack("syncfs_in"))
    assert not waiting_blocks(agreed)


def test_fallocate_and_lseek(agreed: Rig, fake: Rig) -> None:
    found, fh = agreed.create(b"f")
    node = found.nodeid
    agreed.write(node, fh, b"x" * 12288)
    assert agreed.done(Opcode.FALLOCATE, node, pack("fallocate_in", fh=fh, offset=4096, length=4096, mode=3)) == b""
    for whence, offset, expected in ((4, 0, 4096), (3, 4096, 8192), (4, 9000, 12288)):
        body = pack("lseek_in", fh=fh, offset=offset, whence=whence)
        assert agreed.done(Opcode.LSEEK, node, body) == pack("lseek_out", offset=expected)
    assert agreed.refused(Opcode.LSEEK, node, pack("lseek_in", fh=fh, offset=12288, whence=3)) == errno.ENXIO
    assert agreed.refused(Opcode.LSEEK, node, pack("lseek_in", fh=fh, whence=0)) == errno.EINVAL
    made, handle = fake.create(b"f")
    fake.done(Opcode.FALLOCATE, made.nodeid, pack("fallocate_in", fh=handle, offset=1, length=2, mode=3))
    assert fake.core.calls[-1] == ("fallocate", (made.nodeid, 3, 1, 2, None))


@pytest.mark.parametrize(
    ("opcode", "answer"),
    [
        (Opcode.COPY_FILE_RANGE, pack("write_out", size=5000)),
        (Opcode.COPY_FILE_RANGE_64, pack("copy_file_range_out", bytes_copied=5000)),
    ],
)
def test_copy_file_range(agreed: Rig, opcode: Opcode, answer: bytes) -> None:
    (source, fh_in), (target, fh_out) = agreed.create(b"a"), agreed.create(b"b")
    content = os.urandom(6000)
    agreed.write(source.nodeid, fh_in, content)
    given = {"fh_in": fh_in, "off_in": 1000, "nodeid_out": target.nodeid, "fh_out": fh_out, "off_out": 10}
    body = pack("copy_file_range_in", len=7000, **given)
    assert agreed.done(opcode, source.nodeid, body) == answer
    assert agreed.read(target.nodeid, fh_out, 0, 8192) == bytes(10) + content[1000:]
    assert agreed.refused(opcode, source.nodeid, pack("copy_file_range_in", len=1, flags=1, **given)) == errno.EINVAL


def test_a_copy_is_a_piece_of_what_was_asked(fake: Rig) -> None:
    node, fh = fake.create(b"a")
    given = {"fh_in": fh, "nodeid_out": node.nodeid, "fh_out": fh, "off_out": 1 << 40, "len": 1 << 36}
    body = pack("copy_file_range_in", **given)
    small = fake.done(Opcode.COPY_FILE_RANGE, node.nodeid, body)
    large = fake.done(Opcode.COPY_FILE_RANGE_64, node.nodeid, body)
    assert small == pack("write_out", size=64 << 20)
    assert large == pack("copy_file_range_out", bytes_copied=64 << 20)


# Directories


def test_opendir_need_not_be_asked(fake: Rig) -> None:
    body = pack("open_in", flags=os.O_RDONLY)
    assert fake.refused(Opcode.OPENDIR, ROOT, body) == errno.ENOSYS
    fake.init(ALL & ~Init.NO_OPENDIR_SUPPORT)
    assert fake.done(Opcode.OPENDIR, ROOT, body) == pack("open_out", open_flags=FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)
    assert fake.done(Opcode.RELEASEDIR, ROOT, pack("release_in")) == b""


def test_readdir_to_the_byte(fake: Rig) -> None:
    fake.create(b"name")
    fake.mkdir(b"eightees")
    expected = b""
    for ino, off, kind, name in ((2, 1, 4, b"."), (2, 2, 4, b".."), (12, 3, 8, b"name"), (13, 4, 4, b"eightees")):
        expected += pack("dirent", ino=ino, off=off, namelen=len(name), type=kind) + name + bytes(-len(name) % 8)
    assert fake.done(Opcode.READDIR, ROOT, pack("read_in", size=4096)) == expected
    assert fake.core.open_files == 1, "only the file"


def test_readdir_types(agreed: Rig) -> None:
    kinds = {b"f": 8, b"d": 4, b"c": 2, b"b": 6, b"p": 1, b"s": 12, b"l": 10}
    modes = {8: stat.S_IFREG, 2: stat.S_IFCHR, 6: stat.S_IFBLK, 1: stat.S_IFIFO, 12: stat.S_IFSOCK}
    for name, kind in kinds.items():
        if kind == 4:
            agreed.mkdir(name)
        elif kind == 10:
            agreed.symlink(name, b"t")
        else:
            agreed.mknod(name, modes[kind])
    assert {found.name: found.type for found in agreed.names() if found.name in kinds} == kinds


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_in_small_pieces_has_everything_once(agreed: Rig, plus: bool) -> None:
    directory = agreed.mkdir(b"d").nodeid
    wanted = {f"{number:03}{'x' * (number % 17)}".encode() for number in range(300)}
    for name in wanted:
        agreed.mknod(name, stat.S_IFREG, directory)
    found: list[bytes] = []
    cookie = 0
    while names := agreed.names(directory, plus=plus, cookie=cookie, room=400):
        found += [item.name for item in names]
        cookie = names[-1].off
    assert sorted(found) == sorted({*wanted, b".", b".."})


@pytest.mark.parametrize(("plus", "most"), [(False, 2 * dirlist.MOST_NAMES), (True, PLUS_AT_ONCE)])
def test_one_answer_has_some_hundred_names_whatever_room_there_is(agreed: Rig, plus: bool, most: int) -> None:
    directory = agreed.mkdir(b"d").nodeid
    wanted = {b"%04d" % number for number in range(2 * dirlist.MOST_NAMES)}
    for name in wanted:
        agreed.mknod(name, stat.S_IFREG, directory)
    found: list[bytes] = []
    cookie = 0
    while names := agreed.names(directory, plus=plus, cookie=cookie, room=1 << 20):
        assert len(names) <= most
        found += [item.name for item in names]
        cookie = names[-1].off
    assert sorted(found) == sorted({*wanted, b".", b".."})


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_without_room_is_empty(fake: Rig, plus: bool) -> None:
    fake.mkdir(b"d")
    for room in range(24):
        assert fake.names(plus=plus, room=room) == []
    assert fake.core.pins == {12: 1}


def test_readdirplus_has_entries_and_pins_them(agreed: Rig) -> None:
    node = agreed.mknod(b"f", stat.S_IFREG | 0o640).nodeid
    agreed.core.unpin(ino_of(node))
    found = {item.name: item for item in agreed.names(plus=True)}
    assert set(found) == {b".", b"..", b"lost+found", b"f"}
    for name in (b".", b".."):
        dot = found[name].entry
        assert (dot.nodeid, dot.ino, stat.S_IFMT(dot.mode)) == (0, ROOT_INO, stat.S_IFDIR)
    attributes = agreed.core.getattr(ino_of(node))
    assert found[b"f"].entry == SimpleNamespace(**vars(unpack("entry_out", entry(attributes))))
    assert agreed.core.pins == {ino_of(node): 1, found[b"lost+found"].ino: 1}
    agreed.undo()
    assert agreed.core.pins == {}


def test_readdirplus_does_not_tell_twice(agreed: Rig) -> None:
    """A node that the kernel knows is listed without a node, which does not count as a lookup."""
    node = agreed.mknod(b"f", stat.S_IFREG | 0o640).nodeid
    found = {item.name: item for item in agreed.names(plus=True)}
    assert (found[b"f"].ino, found[b"f"].type, found[b"f"].entry.nodeid) == (ino_of(node), stat.S_IFREG >> 12, 0)
    assert agreed.core.pins[ino_of(node)] == 1


def test_readdirplus_pins_only_what_there_was_room_for(fake: Rig) -> None:
    for name in (b"a", b"b", b"c"):
        fake.mkdir(name)
    fake.core.pins.clear()
    size = size_of("entry_out") + size_of("dirent") + 8
    assert [item.name for item in fake.names(plus=True, room=4 * size)] == [b".", b"..", b"a", b"b"]
    assert fake.core.pins == {12: 1, 13: 1}
    assert [item.name for item in fake.names(plus=True, room=4 * size, cookie=4)] == [b"c"]
    assert fake.core.pins == {12: 1, 13: 1, 14: 1}


def test_readdirplus_lists_an_inode_that_is_damaged(fake: Rig) -> None:
    fake.mkdir(b"d")
    fake.core.pins.clear()
    fake.core.refuse = {"getattr": Corrupt(CorruptKind.INODE_CHECKSUM, "inode 12")}
    found = fake.names(plus=True)[2]
    assert (found.name, found.entry.nodeid, found.entry.ino, stat.S_IFMT(found.entry.mode)) == (
        b"d", 0, 12, stat.S_IFDIR,
    )  # fmt: skip
    assert fake.core.pins == {}


def test_readdirplus_pins_no_inode_without_links(fake: Rig) -> None:
    fake.mkdir(b"d")
    fake.core.pins.clear()
    fake.core.inodes[12].links = 0
    assert fake.names(plus=True)[2].entry.nodeid == 0
    assert fake.core.pins == {}


# ioctl(2)

GETFLAGS, SETFLAGS, GETFLAGS32, SETFLAGS32 = 0x80086601, 0x40086602, 0x80046601, 0x40046602
GETVERSION, FSGETXATTR, FSSETXATTR, FITRIM = 0x80087601, 0x801C581F, 0x401C5820, 0xC0185879


def ioctl(rig: Rig, command: int, given: bytes = b"", room: int = 0, node: int = ROOT, **who: int) -> Any:
    """Send an ioctl and return the argument of its answer, or the errno."""
    compat = command in (GETFLAGS32, SETFLAGS32)
    body = pack("ioctl_in", cmd=command, in_size=len(given), out_size=room, flags=16 | compat) + given
    found = rig.ask(Opcode.IOCTL, node, body, **who)
    if found.error:
        return found.error
    assert found.body[:16] == pack("ioctl_out")
    return found.body[16:]


def test_inode_flags(fake: Rig) -> None:
    assert ioctl(fake, GETFLAGS, room=8) == struct.pack("=II", 0x80000, 0)
    assert ioctl(fake, GETFLAGS32, room=4) == struct.pack("=I", 0x80000)
    for command in (SETFLAGS, SETFLAGS32):
        assert ioctl(fake, command, struct.pack("=I", 0x80010), **ANYBODY) == b""
        assert fake.core.calls[-1] == ("set_flags", (ROOT_INO, 0x80010, CALLER))
        assert ioctl(fake, command, b"123") == errno.EINVAL


def test_commands_of_32_bit_programs_are_theirs_alone(fake: Rig) -> None:
    for command, given, room in ((GETFLAGS32, b"", 4), (SETFLAGS32, bytes(4), 0)):
        body = pack("ioctl_in", cmd=command, in_size=len(given), out_size=room, flags=16) + given
        assert fake.refused(Opcode.IOCTL, ROOT, body) == errno.ENOTTY


def test_extended_flags(fake: Rig) -> None:
    assert ioctl(fake, FSGETXATTR, room=28) == struct.pack("=IIIII8x", 0x8000, 1, 2, 3, 4)
    assert ioctl(fake, FSSETXATTR, struct.pack("=IIIII8x", 5, 6, 7, 8, 9), **ANYBODY) == b""
    assert fake.core.calls[-1] == ("set_fsxattr", (ROOT_INO, FsXattr(5, 6, 7, 8, 9), CALLER))
    assert ioctl(fake, FSSETXATTR, bytes(27)) == errno.EINVAL


def test_the_other_commands(fake: Rig, agreed: Rig) -> None:
    node = fake.create(b"f")[0].nodeid
    assert ioctl(fake, GETVERSION, room=8, node=node) == struct.pack("=Q", node + 1000)
    assert ioctl(fake, FITRIM, struct.pack("=QQQ", 1, 2, 3), 24) == struct.pack("=QQQ", 1, 12345, 3)
    assert fake.core.calls[-1] == ("trim", (1, 2, 3))
    assert ioctl(fake, FITRIM, struct.pack("=QQQ", 1, 2, 3), 24, **ANYBODY) == errno.EPERM
    assert ioctl(fake, 0xC020660B, bytes(32), 32) == errno.ENOTTY
    assert ioctl(agreed, GETFLAGS, room=8) == struct.pack("=Q", agreed.core.get_flags(ROOT_INO))


def test_a_user_may_have_so_many_files_open(agreed: Rig) -> None:
    agreed.connection.options = replace(agreed.connection.options, max_open_files=2)
    directory = agreed.mkdir(b"d", mode=0o777).nodeid
    create = pack("create_in", flags=os.O_RDWR, mode=0o100644)
    tmpfile, read_only = create + b"/\0", pack("open_in", flags=os.O_RDONLY)
    first = agreed.done(Opcode.CREATE, directory, create + b"f\0", **ANYBODY)
    node, fh = unpack("entry_out", first).nodeid, unpack("open_out", first, size_of("entry_out")).fh
    agreed.done(Opcode.TMPFILE, directory, tmpfile, **ANYBODY)
    refused = ((Opcode.CREATE, directory, create + b"g\0"), (Opcode.TMPFILE, directory, tmpfile))
    for opcode, place, body in (*refused, (Opcode.OPEN, node, read_only)):
        assert agreed.refused(opcode, place, body, **ANYBODY) == errno.ENFILE
    assert agreed.connection.open_limit.refused == 3
    assert agreed.core.tree.listdir("/d") == [b"f"], "nothing was made"
    for _ in range(3):
        agreed.done(Opcode.OPEN, node, read_only, uid=1001)
        agreed.done(Opcode.OPEN, node, read_only)
        agreed.undo()
        agreed.connection.options = replace(agreed.connection.options, max_open_files=3)
    assert agreed.refused(Opcode.OPEN, node, read_only, uid=1001) == errno.ENFILE, "each user has an own limit"
    agreed.connection.options = replace(agreed.connection.options, max_open_files=2)
    agreed.release(fh, node)
    agreed.done(Opcode.OPEN, node, read_only, **ANYBODY)
    assert agreed.refused(Opcode.OPEN, node, read_only, **ANYBODY) == errno.ENFILE
    agreed.connection.options = replace(agreed.connection.options, max_open_files=0)
    agreed.done(Opcode.OPEN, node, read_only, **ANYBODY)
    agreed.undo()
    agreed.done(Opcode.OPEN, node, read_only, uid=1001)
    for handle in tuple(agreed.connection.files):
        agreed.connection.closed(handle)
    assert not agreed.connection.open_limit._counts
    assert not agreed.connection.open_limit._users
