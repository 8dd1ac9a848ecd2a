"""Compare the layouts and numbers of `abi` with the system's header, by a small C program."""

from __future__ import annotations

import re
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from message_rig import HEADER, LAYOUTS, STRUCTS

from daxfs.fuse.kernel import abi, ioctls
from daxfs.fuse.kernel.layout import Layout
from support import run

LAYOUT_OF = {
    "IN_HEADER": "in_header",
    "OUT_HEADER": "out_header",
    "EXT_HEADER": "ext_header",
    "SUPP_GROUPS": "supp_groups",
    "INIT_OUT": "init_out",
    "ATTR": "attr",
    "ATTR_OUT": "attr_out",
    "ENTRY_OUT": "entry_out",
    "DIRENT": "dirent",
    "STATX_IN": "statx_in",
    "STATX_OUT": "statx_out",
    "FORGET_IN": "forget_in",
    "BATCH_FORGET_IN": "batch_forget_in",
    "FORGET_ONE": "forget_one",
    "SETATTR_IN": "setattr_in",
    "MKNOD_IN": "mknod_in",
    "MKDIR_IN": "mkdir_in",
    "RENAME_IN": "rename_in",
    "RENAME2_IN": "rename2_in",
    "LINK_IN": "link_in",
    "OPEN_IN": "open_in",
    "OPEN_OUT": "open_out",
    "CREATE_IN": "create_in",
    "RELEASE_IN": "release_in",
    "READ_IN": "read_in",
    "WRITE_IN": "write_in",
    "WRITE_OUT": "write_out",
    "STATFS_OUT": "statfs_out",
    "FSYNC_IN": "fsync_in",
    "SETXATTR_IN_EXT": "setxattr_in",
    "GETXATTR_IN": "getxattr_in",
    "GETXATTR_OUT": "getxattr_out",
    "ACCESS_IN": "access_in",
    "INTERRUPT_IN": "interrupt_in",
    "IOCTL_IN": "ioctl_in",
    "IOCTL_OUT": "ioctl_out",
    "FALLOCATE_IN": "fallocate_in",
    "LSEEK_IN": "lseek_in",
    "LSEEK_OUT": "lseek_out",
    "COPY_FILE_RANGE_IN": "copy_file_range_in",
    "COPY_FILE_RANGE_OUT": "copy_file_range_out",
    "INVAL_INODE_OUT": "notify_inval_inode_out",
}
IN_PIECES = ("ENTRY_HEAD", "INIT_IN", "INIT_IN_EXT", "SETXATTR_IN")
"""Layouts of parts of a structure, which have separate tests."""
REQUESTS = sorted(
    name for name, value in vars(abi).items() if isinstance(value, Layout) and name not in ("INIT_IN_EXT", *IN_PIECES)
)
UNUSED = re.compile(r"(^|\.)(padding|dummy|unused\d*|spare|reserved|__spare\d|__reserved)$")

NEWER = {
    "Opcode": {"STATX": 52, "COPY_FILE_RANGE_64": 53},
    "Init": {
        "HAS_SYNCFS": 1 << 43,
        "CREATE_SUPP_GROUP": 1 << 34,
        "HAS_EXPIRE_ONLY": 1 << 35,
        "DIRECT_IO_ALLOW_MMAP": 1 << 36,
        "PASSTHROUGH": 1 << 37,
        "NO_EXPORT_SUPPORT": 1 << 38,
        "HAS_RESEND": 1 << 39,
        "ALLOW_IDMAP": 1 << 40,
        "OVER_IO_URING": 1 << 41,
        "REQUEST_TIMEOUT": 1 << 42,
    },
}
"""Names of protocol 7.45 that headers of protocol 7.38 lack."""

PLAIN = {
    "MAJOR": "FUSE_KERNEL_VERSION",
    "ROOT_ID": "FUSE_ROOT_ID",
    "MIN_READ_BUFFER": "FUSE_MIN_READ_BUFFER",
    "FOPEN_DIRECT_IO": "FOPEN_DIRECT_IO",
    "FOPEN_KEEP_CACHE": "FOPEN_KEEP_CACHE",
    "FOPEN_CACHE_DIR": "FOPEN_CACHE_DIR",
    "FOPEN_PARALLEL_DIRECT_WRITES": "FOPEN_PARALLEL_DIRECT_WRITES",
    "OPEN_KILL_SUIDGID": "FUSE_OPEN_KILL_SUIDGID",
    "READ_LOCKOWNER": "FUSE_READ_LOCKOWNER",
    "WRITE_CACHE": "FUSE_WRITE_CACHE",
    "WRITE_KILL_SUIDGID": "FUSE_WRITE_KILL_SUIDGID",
    "FSYNC_FDATASYNC": "FUSE_FSYNC_FDATASYNC",
    "SETXATTR_ACL_KILL_SGID": "FUSE_SETXATTR_ACL_KILL_SGID",
    "IOCTL_COMPAT": "FUSE_IOCTL_COMPAT",
    "NOTIFY_INVAL_INODE": "FUSE_NOTIFY_INVAL_INODE",
}
BY_HAND = {"BODY": 40, "IOCTL_ARGUMENT": 72, "MINOR": 45, "OLDEST_MINOR": 31, "EXT_GROUPS": 32}


@cache
def c_words(program: str) -> dict[str, int]:
    """Compile and run a C program with this body of main; return the names and numbers that it prints."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "layouts.c"
        source.write_text(
            "#include <stddef.h>\n#include <stdio.h>\n#include <linux/fs.h>\n#include <linux/fuse.h>\n"
            '#define SAY(name, value) printf("%s %llu\\n", name, (unsigned long long)(value))\n'
            "#define SIZE(type, member) sizeof(((type *)0)->member)\n"
            f"int main(void) {{\n{program}\nreturn 0;\n}}\n"
        )
        run("cc", "-Wall", "-Werror", "-o", Path(name) / "layouts", source)
        said = run(str(Path(name) / "layouts"))
    return {word: int(number) for word, number in (line.split() for line in said.splitlines())}


def c_layouts() -> dict[str, int]:
    lines = []
    for name in STRUCTS:
        lines.append(f'SAY("{name}", sizeof(struct {name}));')
        for member, _, _ in LAYOUTS[name].offsets():
            lines.append(f'SAY("{name}.{member}", offsetof(struct {name}, {member}));')
            lines.append(f'SAY("{name}.{member}:size", SIZE(struct {name}, {member}));')
    return c_words("\n".join(lines))


@pytest.mark.parametrize("name", STRUCTS)
def test_the_layouts_of_these_tests_are_the_headers(name: str) -> None:
    layout, words = LAYOUTS[name], c_layouts()
    assert layout.size == words[name]
    for member, offset, size in layout.offsets():
        assert (offset, size) == (words[f"{name}.{member}"], words[f"{name}.{member}:size"]), member


def test_the_newer_layouts() -> None:
    sizes = {name: LAYOUTS[name].size for name in LAYOUTS if name not in STRUCTS}
    assert sizes == {
        "fuse_supp_groups": 4,
        "fuse_statx_in": 24,
        "fuse_statx_out": 288,
        "fuse_copy_file_range_out": 8,
    }
    places = {member: offset for member, offset, _ in LAYOUTS["fuse_statx_out"].offsets()}
    # struct fuse_statx begins at 32; its members have the offsets of struct statx of statx(2).
    assert {places[f"stat.{name}"] - 32 for name in ("mask", "nlink", "mode", "ino", "attributes_mask")} == {
        0, 0x10, 0x1C, 0x20, 0x38,
    }  # fmt: skip
    assert [places[f"stat.{name}.tv_sec"] - 32 for name in ("atime", "btime", "ctime", "mtime")] == [
        0x40, 0x50, 0x60, 0x70,
    ]  # fmt: skip
    assert places["stat.rdev_major"] - 32 == 0x80


def fields(layout: struct.Struct) -> list[tuple[int, int]]:
    """Return (offset, size) of each value of a ``struct.Struct`` in standard sizes."""
    found = []
    at = 0
    for times, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        for _ in range(int(times or 1)):
            size = struct.calcsize("=" + code)
            if code != "x":
                found.append((at, size))
            at += size
    assert at == layout.size
    return found


@pytest.mark.parametrize("name", LAYOUT_OF)
def test_a_layout_of_the_session(name: str) -> None:
    assert_same(fields(struct_of(name)), struct_of(name).size, LAYOUT_OF[name])


def struct_of(name: str) -> struct.Struct:
    layout = getattr(abi, name)
    return layout.struct if isinstance(layout, Layout) else layout


@pytest.mark.parametrize("name", REQUESTS)
def test_fields_of_a_request_have_their_c_names_and_lie_where_they_do(name: str) -> None:
    """The offset is in the header, or in the arguments after it."""
    layout: Layout[Any] = getattr(abi, name)
    begin = 0 if name == "IN_HEADER" else HEADER
    expected = [(member, (begin + at) // size) for member, at, size in LAYOUTS["fuse_" + LAYOUT_OF[name]].offsets()]
    assert list(layout.index._asdict().items()) == expected
    content = bytes(range(layout.size))
    assert tuple(layout.read(b"\0" * 8 + content, 8)) == LAYOUTS["fuse_" + LAYOUT_OF[name]].struct.unpack(content)


def test_the_rest_of_init_behind_its_beginning() -> None:
    assert abi.INIT_IN_EXT.index == ((HEADER + abi.INIT_IN.size) // 4,)
    assert abi.INIT_IN.index._fields + abi.INIT_IN_EXT.index._fields == tuple(LAYOUTS["fuse_init_in"].names[:5])


def assert_same(found: list[tuple[int, int]], size: int, name: str) -> None:
    """Check that the fields are those of the C structure, except unused ones; a newer field may be in a gap of it."""
    layout = LAYOUTS["fuse_" + name]
    assert size == layout.size
    members = layout.offsets()
    used = {(offset, length) for member, offset, length in members if not UNUSED.search(member)}
    room = [(offset, length) for member, offset, length in members if UNUSED.search(member)]
    assert used <= set(found)
    for offset, length in set(found) - used:
        assert any(begin <= offset and offset + length <= begin + free for begin, free in room), offset


def test_the_layouts_in_two_pieces() -> None:
    assert abi.SETXATTR_IN.size == c_words('SAY("size", FUSE_COMPAT_SETXATTR_IN_SIZE);')["size"]
    assert fields(abi.SETXATTR_IN.struct) == fields(abi.SETXATTR_IN_EXT.struct)[:2]
    assert abi.SETXATTR_IN.index._asdict().items() <= abi.SETXATTR_IN_EXT.index._asdict().items()
    first = abi.INIT_IN.size
    both = fields(abi.INIT_IN.struct) + [(first + offset, size) for offset, size in fields(abi.INIT_IN_EXT.struct)]
    assert_same(both, first + abi.INIT_IN_EXT.size, "init_in")


def test_an_entry_is_its_head_and_attributes() -> None:
    head, attributes = range(1, 7), range(7, 23)
    both = abi.ENTRY_HEAD.pack(*head) + abi.ATTR.pack(*attributes)
    assert both == abi.ENTRY_OUT.pack(*head, *attributes)


def test_no_layout_is_forgotten() -> None:
    every = {name for name, value in vars(abi).items() if isinstance(value, struct.Struct | Layout)}
    assert every == {*LAYOUT_OF, *IN_PIECES}


def test_numbers() -> None:
    wanted: dict[str, int] = {}
    lines = []
    for kind, prefix in ((abi.Opcode, "FUSE_"), (abi.Init, "FUSE_"), (abi.SetAttr, "FATTR_")):
        for member in kind:
            if member.name in NEWER.get(kind.__name__, {}):
                assert member == NEWER[kind.__name__][member.name]
            else:
                wanted[f"{kind.__name__}.{member.name}"] = int(member)
                lines.append(f'SAY("{kind.__name__}.{member.name}", {prefix}{member.name});')
    for name, c_name in PLAIN.items():
        wanted[name] = getattr(abi, name)
        lines.append(f'SAY("{name}", {c_name});')
    assert c_words("\n".join(lines)) == wanted
    assert {name: getattr(abi, name) for name in BY_HAND} == BY_HAND


def test_no_number_is_forgotten() -> None:
    every = {name for name, value in vars(abi).items() if type(value) is int}
    assert every == {*PLAIN, *BY_HAND}


def test_ioctl_numbers() -> None:
    words = c_words(
        "\n".join(
            f'SAY("{name}", {name});'
            for name in ("FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS", "FS_IOC32_GETFLAGS", "FS_IOC32_SETFLAGS", "FITRIM",
                         "FS_IOC_GETVERSION", "FS_IOC_FSGETXATTR", "FS_IOC_FSSETXATTR")
        )
        + '\nSAY("FSXATTR", sizeof(struct fsxattr)); SAY("FSTRIM_RANGE", sizeof(struct fstrim_range));'
    )  # fmt: skip
    assert words.pop("FSXATTR") == ioctls.FSXATTR.size
    assert words.pop("FSTRIM_RANGE") == ioctls.FSTRIM_RANGE.size
    assert words == {name: getattr(ioctls, name) for name in words}
