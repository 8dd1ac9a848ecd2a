"""Messages that no kernel would send get an error or no answer, in time, and do not harm the pool.

`Target.send` checks every answer: it has a valid header, it comes in time, no exception leaves the handlers, and the
volume has not turned read-only, since a wrong number in a message is not damage of the pool.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_rig import (
    ASKS_NO_ARGUMENTS,
    NAMES,
    NEEDLESS,
    VALID,
    WILD_NODES,
    WILD_NUMBERS,
    Message,
    Target,
    bounded_memory,
    image,
    numbers_of,
    target_in,
    with_field,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from message_rig import HEADER, ROOT, UNANSWERED, Answer, group_extension, header, pack, size_of, unpack

from daxfs.errors import Corrupt, CorruptKind, FsError
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.superblock import Superblock
from daxfs.fs import names
from daxfs.fs.types import Options
from daxfs.fuse.kernel.abi import Opcode
from daxfs.fuse.kernel.statistics import Counting
from daxfs.journal.view import PoolView
from daxfs.pmem.memory import MemoryPool
from daxfs.structures import inode_bitmaps, inodes

OPCODES = sorted(VALID)
EVERY = pytest.mark.parametrize("opcode", OPCODES, ids=lambda opcode: opcode.name)
NAMED_BY_NODE = (Opcode.LINK, Opcode.RENAME, Opcode.RENAME2)
"""Opcodes whose structure names a second node."""
NO_NODE = frozenset(
    {
        Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT, Opcode.STATFS, Opcode.SYNCFS, Opcode.OPENDIR, Opcode.RELEASEDIR,
        Opcode.READ, Opcode.WRITE, Opcode.RELEASE, Opcode.FSYNC, Opcode.FALLOCATE, Opcode.LSEEK,
        Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64, Opcode.FORGET, Opcode.BATCH_FORGET,
    }
)  # fmt: skip
"""Opcodes whose handlers ignore the node: they use a handle, or do not concern a file."""


CHANGES = frozenset(
    {
        Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME,
        Opcode.RENAME2, Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE,
        Opcode.TMPFILE, Opcode.OPEN, Opcode.COPY_FILE_RANGE,
    }
)  # fmt: skip
NEEDED = {Opcode.INIT: 16, Opcode.TMPFILE: size_of("create_in")}
"""The fewest bytes of a body: kernels before 7.36 have a shorter INIT, and TMPFILE needs no name."""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a new pool."""
    return image(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def target(content: bytes) -> Iterator[Target]:
    with bounded_memory(), target_in(content) as made:
        yield made


def errno_of(found: Answer | None) -> int:
    """Return the errno of an answer, 0 if there is no answer."""
    return found.error if found is not None else 0


def test_every_opcode_has_a_valid_message(target: Target) -> None:
    assert set(VALID) == set(target.rig.connection.table)
    last = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.RELEASE, Opcode.DESTROY)
    twice = (Opcode.RENAME2, Opcode.OPENDIR, *NEEDLESS)
    for opcode in (*(opcode for opcode in OPCODES if opcode not in last), *last):
        if opcode in (Opcode.RENAME, Opcode.UNLINK):
            target.rig.answer(
                target.rig.message(Opcode.MKNOD, target.directory, pack("mknod_in", mode=0o100600) + b"victim\0")
            )
        message = target.valid(opcode)
        found = target.ask(opcode, message.node, message.body)
        assert opcode in twice or errno_of(found) == 0, opcode


# The frame


@EVERY
def test_cut_short_at_every_length(target: Target, opcode: Opcode) -> None:
    cut_short(target, opcode)


def cut_short(target: Target, opcode: Opcode) -> None:
    message = target.valid(opcode)
    for length in range(HEADER + len(message.body)):
        whole = header(opcode, message.node, length, 77) + message.body
        found = target.send(whole[:length])
        if length < HEADER or opcode in UNANSWERED:
            assert found is None
        elif opcode in NEEDLESS:
            assert errno_of(found) == errno.ENOSYS
        elif opcode not in ASKS_NO_ARGUMENTS and length < HEADER + NEEDED.get(opcode, len(message.body)):
            assert errno_of(found) == errno.EINVAL, length


@EVERY
def test_the_header_lies(target: Target, opcode: Opcode) -> None:
    node, body, _ = target.valid(opcode)
    length = HEADER + len(body)
    for said in (0, 1, 39, length - 1, length + 1, length + 8, 1 << 31, (1 << 32) - 1):
        found = target.send(header(opcode, node, said, 78) + body)
        assert found is None if opcode in UNANSWERED else errno_of(found) in (errno.EINVAL, errno.ENOSYS), said

    # The extensions would begin in the header or in the body, or end after the message.
    for extensions in (1, 2, 3, length // 8, length // 8 + 1, 1 << 15, (1 << 16) - 1):
        found = target.send(header(opcode, node, length, 79, extensions=extensions) + body)
        if extensions * 8 > len(body):
            assert found is None if opcode in UNANSWERED else errno_of(found) in (errno.EINVAL, errno.ENOSYS)


@pytest.mark.parametrize(
    ("extension", "refused"),
    [
        (pack("ext_header", size=0, type=32), True),
        (pack("ext_header", size=7, type=32), True),
        (pack("ext_header", size=16, type=32), True),
        (pack("ext_header", size=0xFFFFFFFF, type=32), True),
        (pack("ext_header", size=8, type=32), False),
        (pack("ext_header", size=16, type=32) + struct.pack("=II", 2, 5), True),
        (pack("ext_header", size=16, type=32) + struct.pack("=II", 0xFFFFFFFF, 5), True),
        (pack("ext_header", size=16, type=32) + struct.pack("=II", 0x40000000, 5), True),
        (pack("ext_header", size=12, type=32) + struct.pack("=II", 1, 5), True),
        (pack("ext_header", size=12, type=40) + bytes(12), True),
        (pack("ext_header", size=16, type=1) * 2, False),
        (group_extension(*range(1000)), False),
    ],
)
def test_extensions_that_lie(target: Target, extension: bytes, refused: bool) -> None:
    body = pack("mkdir_in", mode=0o755) + b"new\0"
    found = target.ask(Opcode.MKDIR, ROOT, body, extension)
    assert errno_of(found) == (errno.EINVAL if refused else 0)


@pytest.mark.parametrize(
    "opcode", [0, 7, 19, 31, 32, 33, 37, 41, 48, 49, 54, 55, 4096, 1048576, 436207616, (1 << 32) - 1]
)
def test_opcodes_that_nobody_knows(target: Target, opcode: int) -> None:
    for node in (0, ROOT, target.file, (1 << 64) - 1):
        for body in (b"", bytes(8), bytes(4096)):
            assert errno_of(target.ask(opcode, node, body)) == errno.ENOSYS


def test_forgets_that_lie(target: Target) -> None:
    before = dict(target.core.pins)
    for node in WILD_NODES:
        for lookups in WILD_NUMBERS:
            target.ask(Opcode.FORGET, node, pack("forget_in", nlookup=lookups))
    one = pack("forget_one", nodeid=target.file, nlookup=1)
    for count in WILD_NUMBERS:
        body = pack("batch_forget_in", count=count & 0xFFFFFFFF) + one
        if count & 0xFFFFFFFF > 1:
            assert target.ask(Opcode.BATCH_FORGET, 0, body) is None
            assert not target.rig.connection.forgets or target.rig.connection.forgets[-1][0] != target.file
    target.rig.connection.process_forgets()
    assert target.core.pins == before
    target.ask(Opcode.FORGET, target.file, pack("forget_in", nlookup=(1 << 64) - 1))
    target.rig.connection.process_forgets()
    assert target.rig.refused(Opcode.GETATTR, target.file) == errno.ESTALE
    assert target.rig.read(target.file, target.fh, 0, 4) == b"\0\1\2\3", "its handle is still good"


# Nodes


@EVERY
def test_nodes_that_nobody_was_told(target: Target, opcode: Opcode) -> None:
    message = target.valid(opcode)
    free = max(target.core.pins) + 1
    gone = target.rig.mkdir(b"gone").nodeid
    assert target.rig.done(Opcode.RMDIR, ROOT, b"gone\0") == b""
    target.rig.forget(gone)
    target.rig.connection.process_forgets()
    for node in (*WILD_NODES, free, gone, target.core.statfs().files, target.core.statfs().files + 1):
        found = target.ask(opcode, node, message.body)
        if opcode not in NO_NODE and opcode not in NEEDLESS:
            assert errno_of(found) == errno.ESTALE, node
        if opcode in NAMED_BY_NODE:
            field = {Opcode.LINK: "link_in"}.get(opcode, message.layout)
            offset = numbers_of(field)[0][1]
            changed = with_field(message, offset, 8, node)
            assert errno_of(target.ask(opcode, changed.node, changed.body)) == errno.ESTALE, node


def test_file_handles_of_inodes_that_were_never_used(tmp_path: Path) -> None:
    """open_by_handle_at(2) may ask for any number. An inode that was never used may hold any bytes without damage."""
    store = bytearray(image(tmp_path, "-E", "lazy_itable_init=1", size="32M"))
    geometry = Geometry.of(Superblock(memoryview(store)[1024:2048]))
    view = PoolView(MemoryPool(store), geometry)
    unused = [ino for ino in range(13, geometry.inodes_count + 1) if not inode_bitmaps.in_use(view, ino)]
    places = [divmod_of(inodes.position(view, ino), geometry.block_size) for ino in unused]
    garbage = random.Random(5)
    for place in places[64:]:
        store[place : place + 256] = garbage.randbytes(256)
    with target_in(bytes(store)) as target:
        for ino in unused:
            if ino not in target.core.pins:
                assert errno_of(target.ask(Opcode.LOOKUP, ino, b".\0")) == errno.ESTALE
                assert errno_of(target.ask(Opcode.LOOKUP, ino, b"..\0")) == errno.ESTALE
        for ino in range(2, 11):
            assert errno_of(target.ask(Opcode.LOOKUP, ino, b".\0")) == errno.ESTALE


def divmod_of(position: tuple[int, int], block_size: int) -> int:
    """Return the pool offset of an inode."""
    return position[0] * block_size + position[1]


def test_the_kernels_own_inodes_are_nobodys(tmp_path: Path) -> None:
    """The inodes of the file system itself can't be opened by number; the orphan file's number is an ordinary one."""
    content = image(tmp_path, "-O", "orphan_file")
    number = Superblock(memoryview(bytearray(content))[1024:2048]).s_orphan_file_inum
    assert number >= 11
    with target_in(content) as target:
        assert errno_of(target.ask(Opcode.LOOKUP, number, b".\0")) == errno.ESTALE


# Numbers


@EVERY
def test_wild_numbers_in_every_field(target: Target, opcode: Opcode) -> None:
    wild_numbers(target, opcode)


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE])
def test_data_while_requests_are_counted(target: Target, opcode: Opcode) -> None:
    """While requests are counted, a timing handler calls the handlers that read their arguments in place."""
    Counting(target.rig.connection, lasting=True)
    cut_short(target, opcode)
    wild_numbers(target, opcode)


def wild_numbers(target: Target, opcode: Opcode) -> None:
    layout = target.valid(opcode).layout
    for _, offset, size in numbers_of(layout) if layout else ():
        for number in WILD_NUMBERS:
            for value in (number, -number):
                message = with_field(target.valid(opcode), offset, size, value)
                target.ask(opcode, message.node, message.body)


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE, Opcode.FSYNC, Opcode.FALLOCATE, Opcode.LSEEK])
def test_handles_that_nobody_was_given(target: Target, opcode: Opcode) -> None:
    message = target.valid(opcode)
    target.rig.release(target.spare_fh)
    for fh in (0, target.spare_fh, 1000, 1 << 32, (1 << 64) - 1):
        changed = with_field(message, 0, 8, fh)
        assert errno_of(target.ask(opcode, changed.node, changed.body)) == errno.EBADF


@pytest.mark.parametrize("opcode", [Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64])
def test_copies_with_handles_that_nobody_was_given(target: Target, opcode: Opcode) -> None:
    message = target.valid(opcode)
    for offset in (0, 24):
        changed = with_field(message, offset, 8, 1000)
        assert errno_of(target.ask(opcode, changed.node, changed.body)) == errno.EBADF


@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_ACCMODE, os.O_TRUNC, os.O_RDWR | os.O_TRUNC]
)
def test_what_is_no_file_is_no_file_when_it_is_opened(target: Target, flags: int) -> None:
    """The kernel opens links and devices itself; their inodes have no map of blocks."""
    handles = []
    for node in (target.link, target.long_link, target.device, target.fifo, target.directory, ROOT):
        found = target.ask(Opcode.OPEN, node, pack("open_in", flags=flags))
        assert found is not None
        if not found.error:
            handles.append(unpack("open_out", found.body).fh)
    for fh in handles:
        target.ask(Opcode.READ, ROOT, pack("read_in", fh=fh, size=8192))
        target.ask(Opcode.READ, ROOT, pack("read_in", fh=fh, offset=5000, size=8192))
        target.ask(Opcode.WRITE, ROOT, pack("write_in", fh=fh, size=4) + b"data")
        target.ask(Opcode.WRITE, ROOT, pack("write_in", fh=fh, size=4, offset=100_000) + b"data")
        for mode in (0, 1, 3, 8, 16, 32):
            target.ask(Opcode.FALLOCATE, ROOT, pack("fallocate_in", fh=fh, length=8192, mode=mode))
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            target.ask(Opcode.LSEEK, ROOT, pack("lseek_in", fh=fh, whence=whence))
        for first, second in ((fh, target.fh), (target.fh, fh)):
            body = pack("copy_file_range_in", fh_in=first, fh_out=second, off_out=1 << 20, len=1 << 30)
            target.ask(Opcode.COPY_FILE_RANGE, ROOT, body)
        target.ask(Opcode.FSYNC, ROOT, pack("fsync_in", fh=fh))


def test_setattr_of_what_is_no_file(target: Target) -> None:
    for node in (target.link, target.long_link, target.device, target.fifo, target.directory, ROOT):
        for size in (0, 1, 4096, 1 << 20):
            found = target.ask(Opcode.SETATTR, node, pack("setattr_in", valid=8, size=size))
            assert errno_of(found) in (errno.EINVAL, errno.EISDIR)
        target.ask(Opcode.SETATTR, node, pack("setattr_in", valid=1, mode=0xFFFFFFFF))
        assert stat.S_IFMT(target.rig.getattr(node).mode) != 0


def test_a_read_of_a_hole_is_no_larger_than_a_request(target: Target) -> None:
    """A hole is answered with zeros that the session must allocate, at most as many as a request may ask for."""
    for size in (0xFFFFFFFF, 0x80000000, 1 << 30):
        for offset in (0, 1 << 30):
            found = target.ask(Opcode.READ, target.hole, pack("read_in", fh=target.hole_fh, offset=offset, size=size))
            assert found is not None
            assert 0 < len(found.body) <= 16 << 20


@pytest.mark.parametrize("command", [0x80086601, 0x80046601, 0x801C581F, 0x80087601, 0xC0185879])
def test_an_ioctl_may_want_any_number_of_bytes(target: Target, command: int) -> None:
    for room in WILD_NUMBERS:
        body = pack("ioctl_in", cmd=command, in_size=24, out_size=room & 0xFFFFFFFF) + bytes(24)
        found = target.ask(Opcode.IOCTL, ROOT, body)
        assert found is not None
        assert len(found.body) <= 1 << 16


def test_modes_of_files_that_there_are_not(target: Target) -> None:
    for kind in range(16):
        for bits in (0, 0o7777, 0xFFFF0000):
            body = pack("mknod_in", mode=kind << 12 | bits) + f"{kind}-{bits}".encode() + b"\0"
            found = target.ask(Opcode.MKNOD, target.directory, body)
            if kind not in (0, 1, 2, 6, 8, 12):
                assert errno_of(found) == errno.EINVAL, kind
        for opcode, layout in ((Opcode.MKDIR, "mkdir_in"), (Opcode.CREATE, "create_in"), (Opcode.TMPFILE, "create_in")):
            body = pack(layout, mode=kind << 12 | 0xFFFF0777) + f"{opcode}-{kind}".encode() + b"\0"
            assert errno_of(target.ask(opcode, target.directory, body)) == 0


@pytest.mark.parametrize("many", [3, 700])
@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_cookies_that_nobody_was_given(target: Target, many: int, opcode: Opcode) -> None:
    for number in range(many):
        target.rig.mknod(f"name {number}".encode(), stat.S_IFREG, target.directory)
    chance = random.Random(many)
    cookies = [*WILD_NUMBERS, *range(40), *(1 << bit for bit in range(64))]
    cookies += [chance.getrandbits(chance.randrange(1, 65)) for _ in range(300)]
    for cookie in cookies:
        found = target.ask(opcode, target.directory, pack("read_in", offset=cookie, size=512))
        assert errno_of(found) == 0, cookie


def test_times_that_no_inode_holds(target: Target) -> None:
    for number in (*WILD_NUMBERS, -(1 << 31), 1 << 33, 1 << 34, 1 << 35):
        fields = {"atime": number, "mtime": -number, "ctime": number}
        body = pack("setattr_in", valid=0x430, **{name: value & (1 << 64) - 1 for name, value in fields.items()})
        found = target.ask(Opcode.SETATTR, target.file, body)
        assert errno_of(found) == 0
        target.ask(Opcode.STATX, target.file, pack("statx_in"))


# Names

TAKES_A_NAME = {
    Opcode.LOOKUP: b"",
    Opcode.SYMLINK: b"",
    Opcode.MKNOD: pack("mknod_in", mode=stat.S_IFREG),
    Opcode.MKDIR: pack("mkdir_in", mode=0o755),
    Opcode.UNLINK: b"",
    Opcode.RMDIR: b"",
    Opcode.CREATE: pack("create_in", flags=os.O_RDWR),
    Opcode.REMOVEXATTR: b"",
}
MAKES = frozenset({Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.CREATE, Opcode.LINK, Opcode.RENAME})


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:8]) + str(len(name)))
def test_names(target: Target, name: bytes) -> None:
    messages = [Message(target.directory, before + name + b"\0") for before in TAKES_A_NAME.values()]
    opcodes = list(TAKES_A_NAME)
    messages[opcodes.index(Opcode.SYMLINK)] = Message(target.directory, name + b"\0target\0")
    messages += [
        Message(target.directory, pack("link_in", oldnodeid=target.other) + name + b"\0"),
        Message(target.directory, pack("rename_in", newdir=ROOT) + b"victim\0" + name + b"\0"),
        Message(target.directory, pack("rename_in", newdir=ROOT) + name + b"\0moved\0"),
        Message(target.directory, b"made" + str(len(name)).encode() + b"\0" + name + b"\0"),
    ]
    opcodes += [Opcode.LINK, Opcode.RENAME, Opcode.RENAME, Opcode.SYMLINK]
    bad = not name or b"/" in name or len(name) > 255
    for opcode, message in zip(opcodes[:-1], messages[:-1], strict=True):
        found = target.ask(opcode, message.node, message.body)
        if bad and opcode in MAKES:
            assert errno_of(found) in (errno.EINVAL, errno.ENAMETOOLONG), opcode
        if bad and opcode == Opcode.LOOKUP and len(name) <= 255:
            assert found == Answer(0, pack("entry_out", entry_valid=86400))
    target.ask(opcodes[-1], *messages[-1][:2])
    everything = target.rig.names(target.directory, room=1 << 16)
    assert not bad or name not in [item.name for item in everything]


@pytest.mark.parametrize(
    "opcode", [Opcode.LOOKUP, Opcode.SYMLINK, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME]
)
def test_names_without_an_end(target: Target, opcode: Opcode) -> None:
    """Bytes of an older message that follow in the buffer are not part of the message."""
    before = {Opcode.MKDIR: pack("mkdir_in"), Opcode.RENAME: pack("rename_in", newdir=ROOT) + b"victim\0"}.get(
        opcode, b""
    )
    for name in (b"", b"x", b"inner", b"x" * 5000):
        assert errno_of(target.ask(opcode, target.directory, before + name)) == errno.EINVAL


XATTR_NAMES = (
    b"", b"user", b"user.", b"user.\xff", b"trusted.", b"security.", b"security.capability", b"system.", b"system.data",
    b"system.posix_acl_access", b"system.posix_acl_default", b"system.richacl", b"nothing.x", b".",
    b"user." + b"x" * 250, b"user." + b"x" * 251, b"user." + b"x" * 4000,
)  # fmt: skip


@pytest.mark.parametrize("name", XATTR_NAMES, ids=lambda name: repr(name[:24]) + str(len(name)))
def test_extended_attributes(target: Target, name: bytes) -> None:
    values = [b"", b"x", bytes(4), struct.pack("=I", 2), struct.pack("=IHHI", 2, 1, 7, 0), b"v" * 3000, b"w" * 65536]
    values += [struct.pack("=IHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 4, 0xFFFF, 0, 0x20, 7, 0), b"u" * 70000]
    for node in (target.file, target.directory, target.link, target.device, ROOT):
        for value in values:
            for flags in (0, 1, 2, 3, 0xFFFFFFFF):
                body = pack("setxattr_in", size=len(value), flags=flags) + name + b"\0" + value
                target.ask(Opcode.SETXATTR, node, body)
        for room in (0, 1, 100, 1 << 16, 0xFFFFFFFF):
            target.ask(Opcode.GETXATTR, node, pack("getxattr_in", size=room) + name + b"\0")
            found = target.ask(Opcode.LISTXATTR, node, pack("getxattr_in", size=room))
            assert found is not None
        target.ask(Opcode.REMOVEXATTR, node, name + b"\0")


# Random messages


@pytest.mark.parametrize("aborted", [False, True])
@pytest.mark.interpreted
def test_a_volume_that_has_turned_read_only_goes_on_answering(
    content: bytes, aborted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A volume that is read-only, after damage or an aborted journal, still answers all messages."""

    def damage(*_: object) -> None:
        raise Corrupt(CorruptKind.BLOCK_BITMAP, "group 0")

    with target_in(content, check=False) as target:
        target.core.sync()
        target.core.remount(Options(errors="remount-ro"))
        if aborted:
            target.core.abort(FsError(errno.EIO))
        else:
            with monkeypatch.context() as damaged:
                damaged.setattr(names, "make", damage)
                body = pack("mkdir_in", mode=0o755) + b"new\0"
                assert target.rig.refused(Opcode.MKDIR, body=body) == errno.EUCLEAN
        assert target.core.read_only
        for opcode in OPCODES:
            message = target.valid(opcode)
            found = target.rig.answer(target.rig.message(opcode, message.node, message.body))
            if opcode in CHANGES:
                assert errno_of(found) == errno.EROFS, opcode


WORDS = st.one_of(
    st.sampled_from([number & 0xFFFFFFFFFFFFFFFF for number in (*WILD_NUMBERS, *WILD_NODES, *range(1, 40))]),
    st.integers(0, (1 << 64) - 1),
)


@st.composite
def noise(draw: st.DrawFn) -> bytes:
    """Generate a message of random bytes, most with a valid header."""
    body = draw(st.binary(max_size=200))
    if draw(st.integers(0, 9)) == 0:
        return body
    opcode = draw(st.one_of(st.sampled_from(OPCODES), st.integers(0, 60), st.integers(0, (1 << 32) - 1)))
    node = draw(st.one_of(st.just(ROOT), st.integers(11, 40), WORDS))
    extensions = draw(st.sampled_from([0] * 8 + [1, 2, 9, 65535]))
    length = HEADER + len(body) + draw(st.sampled_from([0] * 9 + [1]))
    ids = {name: draw(st.sampled_from([0, 0, 1000, 0xFFFFFFFF])) for name in ("uid", "gid", "pid")}
    return header(opcode, node, length, draw(WORDS), extensions=extensions, **ids) + body


@st.composite
def changed(draw: st.DrawFn) -> tuple[Opcode, list[tuple[str, int, int]]]:
    """Generate an opcode and changes of its valid message: (what, where, value)."""
    opcode = draw(st.sampled_from(OPCODES))
    kinds = st.sampled_from(["byte", "word", "cut", "insert", "node", "caller"])
    return opcode, draw(st.lists(st.tuples(kinds, st.integers(0, 150), WORDS), max_size=4))


def altered(target: Target, opcode: Opcode, changes: list[tuple[str, int, int]]) -> bytes:
    """Return a valid message with these changes, and with the right length in its header."""
    node, body, _ = target.valid(opcode)
    caller = 0
    for kind, at, value in changes:
        at %= len(body) + 1
        if kind == "byte":
            body = body[:at] + bytes([value & 0xFF]) + body[at + 1 :]
        elif kind == "word":
            at -= at % 4
            body = body[:at] + (value & 0xFFFFFFFF).to_bytes(4, "little") + body[at + 4 :]
        elif kind == "cut":
            body = body[:at]
        elif kind == "insert":
            body = body[:at] + bytes([value & 0xFF]) * (value % 300) + body[at:]
        elif kind == "node":
            node = known_node(target, value) if at % 2 and target.core.pins else value
        else:
            caller = value & 0xFFFFFFFF
    return target.rig.message(opcode, node, body, uid=caller, gid=caller)


def known_node(target: Target, number: int) -> int:
    """One of the node ids that the kernel knows."""
    pins = target.core.pins
    ino = sorted(pins)[number % len(pins)]
    return pins.generation(ino) << 32 | ino


def storm(content: bytes, examples: int, *, counted: bool = False) -> None:
    """Send series of random and of changed messages, each series to a new pool; ``counted``: count the requests."""

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(st.one_of(noise(), changed()), min_size=5, max_size=60))
    def blow(series: list[bytes | tuple[Opcode, list[tuple[str, int, int]]]]) -> None:
        with bounded_memory(), target_in(content) as target:
            if counted:
                Counting(target.rig.connection, lasting=True)
            for item in series:
                message = item if isinstance(item, bytes) else altered(target, *item)
                answered = target.send(message) is not None
                undo = target.rig.request.undo
                if answered and undo is not None and len(message) % 3 == 0:
                    undo()

    blow()


@pytest.mark.parametrize("counted", [False, True])
def test_noise(content: bytes, counted: bool) -> None:
    storm(content, 25, counted=counted)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_much_noise(content: bytes) -> None:
    storm(content, 20_000)
