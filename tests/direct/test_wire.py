"""``daxfs.direct.wire`` is ``daxfs.h``: every offset, size and number, as the C compiler sees them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import daxfs.direct
from daxfs.direct import wire
from support import run

FIELDS = {
    "daxfs_pool": ("version persistence device inode rdevice size block_size lock uuid path token", wire.POOL.size),
    "daxfs_extent": ("offset pool_offset length kind reserved", wire.EXTENT.size),
    "daxfs_lease": (
        "holder offset length flags count next size slot epoch device inode lock token reserved extents",
        wire.LEASE_SIZE,
    ),
    "daxfs_short_lease": ("head extents", wire.SHORT_LEASE_SIZE),
    "daxfs_stored": ("size flags reserved", wire.STORED.size),
    "daxfs_appended": ("base size holder flags reserved changes", wire.APPENDED.size),
    "daxfs_slot": ("epoch size ino changes reserved", wire.SLOT.size),
}
NUMBERS = {
    "DAXFS_VERSION": wire.VERSION,
    "DAXFS_LOCKS": wire.LOCKS,
    "DAXFS_FIRST_STEP": wire.FIRST_STEP,
    "DAXFS_LAST_STEP": wire.LAST_STEP,
    "DAXFS_TOKEN": wire.TOKEN_SIZE,
    "DAXFS_DURABLE": wire.DURABLE,
    "DAXFS_DATA_ONLY": wire.DATA_ONLY,
    "DAXFS_IOC_POOL": wire.IOC_POOL,
    "DAXFS_IOC_LEASE": wire.IOC_LEASE,
    "DAXFS_IOC_SHORT_LEASE": wire.IOC_SHORT_LEASE,
    "DAXFS_IOC_STORED": wire.IOC_STORED,
    "DAXFS_IOC_APPENDED": wire.IOC_APPENDED,
    "DAXFS_IOC_SYNC": wire.IOC_SYNC,
    **{f"DAXFS_{item.name}": item.value for group in (wire.Persistence, wire.Kind, wire.Flag) for item in group},
}


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Everything that the header defines, printed by a C program."""
    folder = tmp_path_factory.mktemp("wire")
    lines = [f'printf("%s %llu\\n", "{name}", (unsigned long long)({name}));' for name in NUMBERS]
    for name, (fields, _) in FIELDS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [
            f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));'
            f'printf("{name}.{field}# %zu\\n", sizeof(((struct {name} *)0)->{field}));'
            for field in fields.split()
        ]
    source = folder / "wire.c"
    body = "\n    ".join(lines)
    source.write_text(
        f'#include "daxfs.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{{\n    {body}\n}}\n'
    )
    include = Path(daxfs.direct.__file__).parent
    run("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", include, source, "-o", folder / "wire")
    words = (line.split() for line in run(folder / "wire").splitlines())
    return {name: int(value) for name, value in words}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_the_headers(header: dict[str, int], name: str) -> None:
    assert NUMBERS[name] == header[name]


@pytest.mark.parametrize("name", FIELDS)
def test_sizes_are_the_headers(header: dict[str, int], name: str) -> None:
    assert FIELDS[name][1] == header[name]


def test_the_header_has_no_other_numbers() -> None:
    text = (Path(daxfs.direct.__file__).parent / "daxfs.h").read_text()
    words = text.replace("=", " ").replace(",", " ").split("\n")
    defined = {
        word
        for line in words
        for word in line.split("/*")[0].split()[:3]
        if word.startswith("DAXFS_") and word not in {"DAXFS_H", "DAXFS_"}
    }
    assert {word for word in defined if word.isupper()} <= set(NUMBERS)


def spread(header: dict[str, int], name: str, record: bytes) -> dict[str, int]:
    """The record's fields, read at the places that the compiler chose."""
    found = {}
    for field in FIELDS[name][0].split():
        start, size = header[f"{name}.{field}"], header[f"{name}.{field}#"]
        if size in {4, 8}:
            found[field] = struct.unpack_from("=I" if size == 4 else "=Q", record, start)[0]
    return found


def test_pool_fields_are_where_c_has_them(header: dict[str, int]) -> None:
    pool = wire.Pool(2, 3, 4, 5, 6, 7, 8, bytes(range(16)), b"/dev/dax0.0", token=9, version=1)
    record = pool.pack()
    expected = {"version": 1, "persistence": 2, "device": 3, "inode": 4, "rdevice": 5, "size": 6, "block_size": 7}
    assert spread(header, "daxfs_pool", record) == {**expected, "lock": 8, "token": 9}
    assert record[header["daxfs_pool.uuid"] :][:16] == bytes(range(16))
    assert record[header["daxfs_pool.path"] :].startswith(b"/dev/dax0.0\0")
    assert wire.Pool.unpack(record) == pool


def test_lease_fields_are_where_c_has_them(header: dict[str, int]) -> None:
    extents = (wire.Extent(11, 12, 13, 1), wire.Extent(24, 0, 5, 0))
    lease = wire.Lease(1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, bytes(range(16)), extents)
    record = lease.pack(wire.LEASE_SIZE)
    assert len(record) == header["daxfs_lease"]
    names = FIELDS["daxfs_lease"][0].split()[:12]
    assert spread(header, "daxfs_lease", record) == dict(
        zip(names, [1, 2, 3, 4, 2, 6, 7, 8, 9, 10, 11, 12], strict=True)
    )
    assert record[header["daxfs_lease.token"] :][:16] == bytes(range(16))
    first = record[header["daxfs_lease.extents"] :]
    assert spread(header, "daxfs_extent", first) == {
        "offset": 11,
        "pool_offset": 12,
        "length": 13,
        "kind": 1,
        "reserved": 0,
    }
    assert spread(header, "daxfs_extent", first[header["daxfs_extent"] :])["offset"] == 24
    assert wire.Lease.unpack(record) == lease
    assert wire.Lease.unpack(lease.pack()) == lease


def test_stored_and_slot_fields_are_where_c_has_them(header: dict[str, int]) -> None:
    appended = wire.Appended(4, 5, 6, wire.DATA_ONLY, 7)
    fields = {"base": 4, "size": 5, "holder": 6, "flags": 2, "reserved": 0, "changes": 7}
    assert spread(header, "daxfs_appended", appended.pack()) == fields
    assert wire.Appended.unpack(appended.pack()) == appended
    stored = wire.Stored(5, wire.DURABLE)
    assert spread(header, "daxfs_stored", stored.pack()) == {"size": 5, "flags": 1, "reserved": 0}
    assert wire.Stored.unpack(stored.pack()) == stored
    slot = wire.Slot(1, 2, 3, 4)
    assert spread(header, "daxfs_slot", slot.pack()) == {"epoch": 1, "size": 2, "ino": 3, "changes": 4}
    assert wire.Slot.unpack(slot.pack()) == slot


def test_more_extents_than_the_record_has_room_for_are_an_error() -> None:
    extents = (wire.Extent(0, 0, 1, 0),) * 5
    with pytest.raises(struct.error):
        wire.Lease(1, 2, 3, 4, extents=extents).pack(wire.SHORT_LEASE_SIZE)
    forged = bytearray(wire.Lease(1, 2, 3, 4).pack(wire.SHORT_LEASE_SIZE))
    struct.pack_into("=I", forged, 28, 5)
    with pytest.raises(struct.error):
        wire.Lease.unpack(forged)
    assert wire.room(wire.SHORT_LEASE_SIZE) == 4
    assert wire.room(wire.LEASE_SIZE) == 124


def test_a_path_that_is_too_long_is_an_error() -> None:
    assert wire.Pool.unpack(wire.Pool(0, 0, 0, 0, 0, 0, 0, bytes(16), b"x" * 951).pack()).path == b"x" * 951
    with pytest.raises(ValueError, match="951 fit"):
        wire.Pool(0, 0, 0, 0, 0, 0, 0, bytes(16), b"x" * 952).pack()
