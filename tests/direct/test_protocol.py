"""``daxfs.protocol`` agrees with ``daxfs.h``: names, numbers, each field's place, width and type, by the C compiler.

The test finds what each side declares instead of listing it, so that a name on one side only also fails.
"""

from __future__ import annotations

import ast
import re
import struct
from enum import IntEnum, IntFlag
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pytest

import daxfs.direct
from daxfs import protocol
from daxfs.ext4.superblock import EXT4_SUPER_MAGIC, SUPERBLOCK_OFFSET, Superblock
from support import run

HEADER = Path(daxfs.direct.__file__).parent / "daxfs.h"

# Names that programs in C were written to, where Python's say more.
SPELLED = {"DAXFS_TOKEN": "TOKEN_SIZE", "slot": "entry"}
# What Python derives from the rest: sizes of records, and where in a status entry the daemon stores.
DERIVED = {
    "LEASE_SIZE": "sizeof(struct daxfs_lease)",
    "SHORT_LEASE_SIZE": "sizeof(struct daxfs_short_lease)",
    "ARMED_SIZE": "sizeof(struct daxfs_armed)",
    "EPOCH_AT": "offsetof(struct daxfs_slot, epoch)",
    "SIZE_AT": "offsetof(struct daxfs_slot, size)",
    "INO_AT": "offsetof(struct daxfs_slot, ino)",
    "CHANGES_AT": "offsetof(struct daxfs_slot, changes)",
}
TYPES = {"I": "uint32_t", "Q": "uint64_t", "4x": "uint32_t"}

EXTENT_SIZE = protocol.EXTENT.size
LAYOUTS = {
    **protocol.LAYOUTS,
    "daxfs_lease": {**protocol.LAYOUTS["daxfs_lease"], "extents": f"{protocol.EXTENTS * EXTENT_SIZE}s"},
    "daxfs_armed": {
        **protocol.LAYOUTS["daxfs_armed"],
        "words": f"{protocol.COMMIT_WORDS * protocol.COMMIT_WORD.size}s",
    },
    "daxfs_short_lease": {
        "head": f"{protocol.LEASE.size}s",
        "extents": f"{protocol.SHORT_EXTENTS * EXTENT_SIZE}s",
    },
}
"""All of a record: Python keeps what comes in numbers (extents, words) apart from the head."""


class Field(NamedTuple):
    """A field of a C structure; ``type`` as the compiler prints it, empty for arrays."""

    start: int
    size: int
    type: str


class Header(NamedTuple):
    """What the header declares, with values from the compiler."""

    numbers: dict[str, int]
    texts: dict[str, bytes]
    enums: dict[str, dict[str, int]]
    sizes: dict[str, int]
    fields: dict[str, dict[str, Field]]
    derived: dict[str, int]


def declared(text: str, kind: str) -> dict[str, str]:
    """Return the bodies of all ``struct`` or ``enum``, by tag."""
    return dict(re.findall(rf"\b{kind}\s+(\w+)\s*\{{(.*?)\}}\s*;", text, re.DOTALL))


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Header:
    """Read the names from the preprocessor's output and the numbers from a program that prints them."""
    folder = tmp_path_factory.mktemp("protocol")
    lone = folder / "lone.c"
    lone.write_text('#include "daxfs.h"\n')
    include = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-I", HEADER.parent)
    text = run("gcc", *include, "-E", "-P", lone)
    macros = dict(re.findall(r"#define (DAXFS_\w+)[ (](.+)", run("gcc", *include, "-E", "-dM", lone)))
    texts = {name: ast.literal_eval(f"b{value}") for name, value in macros.items() if value.startswith('"')}
    structs = {
        tag: [re.sub(r".*?(\w+)(\[.*)?$", r"\1", field.strip()) for field in body.split(";")[:-1]]
        for tag, body in declared(text, "struct").items()
        if tag.startswith("daxfs_")
    }
    enums = {
        tag: re.findall(r"\bDAXFS_\w+", body)
        for tag, body in declared(text, "enum").items()
        if tag.startswith("daxfs_")
    }
    assert len(re.findall(r"\bDAXFS_\w+\s*=", text)) == sum(map(len, enums.values())), "an enum without a name"

    values = {f"number {name}": name for name in macros.keys() - texts}
    values |= {f"enum {tag}.{name}": name for tag, names in enums.items() for name in names}
    values |= {f"size {tag}": f"sizeof(struct {tag})" for tag in structs}
    values |= {f"derived {name}": value for name, value in DERIVED.items()}
    lines = [f'printf("{name} %llu\\n", (unsigned long long)({value}));' for name, value in values.items()]
    kinds = "".join(
        f'{name}: "{name}", ' for name in ("uint8_t", "uint16_t", "uint32_t", "uint64_t", "int32_t", "int64_t")
    )
    for tag, names in structs.items():
        for name in names:
            field = f"((struct {tag} *)0)->{name}"
            lines.append(
                f'printf("field {tag}.{name} %zu %zu %s\\n", offsetof(struct {tag}, {name}), sizeof({field}),'
                f' _Generic({field}, {kinds}default: ""));'
            )
    source = folder / "print.c"
    body = "\n    ".join(lines)
    source.write_text(
        f'#include "daxfs.h"\n#include <stddef.h>\n#include <stdio.h>\nint main(void)\n{{\n    {body}\n}}\n'
    )
    run("gcc", *include, source, "-o", folder / "print")
    found = Header({}, texts, {tag: {} for tag in enums}, {}, {tag: {} for tag in structs}, {})
    for line in run(folder / "print").splitlines():
        what, name, *words = line.split(" ")
        tag, _, member = name.partition(".")
        match what:
            case "number":
                found.numbers[name] = int(words[0])
            case "enum":
                found.enums[tag][member] = int(words[0])
            case "size":
                found.sizes[name] = int(words[0])
            case "field":
                found.fields[tag][member] = Field(int(words[0]), int(words[1]), words[2])
            case _:
                found.derived[name] = int(words[0])
    return found


def test_numbers_are_the_headers(header: Header) -> None:
    enumerated = {member.name for tag in enumerations().values() for member in tag}
    ours = {
        name: value
        for name, value in vars(protocol).items()
        if isinstance(value, int) and name.isupper() and name[0] != "_" and name not in {*DERIVED, *enumerated}
    }
    assert ours == {SPELLED.get(name, name.removeprefix("DAXFS_")): value for name, value in header.numbers.items()}
    assert {name: getattr(protocol, name) for name in DERIVED} == header.derived


def test_texts_are_the_headers(header: Header) -> None:
    ours = {
        f"DAXFS_{name}": value if isinstance(value, bytes) else value.encode()
        for name, value in vars(protocol).items()
        if isinstance(value, str | bytes) and name.isupper() and name[0] != "_"
    }
    assert ours == header.texts


def test_the_superblock_is_where_ext4_has_it() -> None:
    pool = bytearray(protocol.LEAST_POOL)
    pool[protocol.MAGIC_AT : protocol.MAGIC_AT + len(protocol.MAGIC)] = protocol.MAGIC
    pool[protocol.UUID_AT : protocol.UUID_AT + 16] = bytes(range(16))
    found = Superblock(memoryview(pool)[SUPERBLOCK_OFFSET:])
    assert (found.s_magic, bytes(found.s_uuid)) == (EXT4_SUPER_MAGIC, bytes(range(16)))


def enumerations() -> dict[str, type[IntEnum]]:
    """Return Python's enumerations under the names of C."""
    return {
        f"daxfs_{name.lower()}": value
        for name, value in vars(protocol).items()
        if isinstance(value, type) and issubclass(value, IntEnum | IntFlag) and value.__module__ == protocol.__name__
    }


def test_enumerations_are_the_headers(header: Header) -> None:
    ours = {tag: {f"DAXFS_{one.name}": one.value for one in kind} for tag, kind in enumerations().items()}
    assert ours == header.enums
    plain = {name: getattr(protocol, name) for name in protocol.Durability.__members__}
    assert plain == dict(protocol.Durability.__members__)


def test_records_are_the_headers(header: Header) -> None:
    ours = {}
    for tag, layout in LAYOUTS.items():
        sizes = [struct.calcsize(f"={form}") for form in layout.values()]
        starts = accumulate(sizes, initial=0)
        ours[tag] = {name: (start, size) for name, start, size in zip(layout, starts, sizes, strict=False)}
    assert ours == {tag: {name: field[:2] for name, field in fields.items()} for tag, fields in header.fields.items()}
    assert {tag: sum(size for _, size in fields.values()) for tag, fields in ours.items()} == header.sizes
    for tag, layout in LAYOUTS.items():
        for name, form in layout.items():
            assert header.fields[tag][name].type == TYPES.get(form, ""), f"{tag}.{name}"


def spread(header: Header, tag: str, record: bytes) -> dict[str, int | bytes]:
    """Return the record's fields under Python's names, read at the places that the compiler chose."""
    found: dict[str, int | bytes] = {}
    for name, (start, size, kind) in header.fields[tag].items():
        content = record[start : start + size]
        found[SPELLED.get(name, name)] = int.from_bytes(content, "little") if kind else content
    return found


def written(record: NamedTuple, **other: int | bytes) -> dict[str, int | bytes]:
    """Return what a record must hold: its own fields, ``reserved`` zeros, and fields of nested records."""
    return {"reserved": 0, **record._asdict(), **other}


def test_pool_fields_are_where_c_has_them(header: Header) -> None:
    pool = protocol.Pool(2, 3, 4, 5, 6, 7, 8, bytes(range(16)), b"/dev/dax0.0", align=9, token=10, version=1)
    expected = written(pool, path=pool.path.ljust(protocol.PATH_SIZE, b"\0"))
    del expected["reserved"]
    assert spread(header, "daxfs_pool", pool.pack()) == expected
    assert protocol.Pool.unpack(pool.pack()) == pool


def test_lease_fields_are_where_c_has_them(header: Header) -> None:
    extents = (protocol.GrantedExtent(11, 12, 13, 1), protocol.GrantedExtent(24, 0, 5, 0))
    lease = protocol.Lease(1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, bytes(range(16)), extents)
    record = lease.pack(protocol.LEASE_SIZE)
    found = spread(header, "daxfs_lease", record)
    rest = found.pop("extents")
    expected = written(lease, reserved=bytes(24), count=2)
    del expected["extents"]
    assert found == expected
    assert isinstance(rest, bytes)
    for number, extent in enumerate(extents):
        assert spread(header, "daxfs_extent", rest[number * EXTENT_SIZE :]) == written(extent)
    assert protocol.Lease.unpack(record) == lease
    assert protocol.Lease.unpack(lease.pack()) == lease


def test_stored_and_entry_fields_are_where_c_has_them(header: Header) -> None:
    appended = protocol.Appended(4, 5, 6, protocol.DATA_ONLY, 7)
    assert spread(header, "daxfs_appended", appended.pack()) == written(appended)
    assert protocol.Appended.unpack(appended.pack()) == appended
    stored = protocol.Stored(5, protocol.DURABLE)
    assert spread(header, "daxfs_stored", stored.pack()) == written(stored)
    assert protocol.Stored.unpack(stored.pack()) == stored
    entry = protocol.StatusEntry(1, 2, 3, 4)
    assert spread(header, "daxfs_slot", entry.pack()) == written(entry, reserved=bytes(32))
    assert protocol.StatusEntry.unpack(entry.pack()) == entry


def test_what_is_not_given_is_zero() -> None:
    stated = struct.pack("=QQQI", 1, 2, 3, 4)
    assert protocol.Lease(1, 2, 3, 4).pack() == stated.ljust(protocol.LEASE.size, b"\0")
    assert protocol.Stored().pack() == bytes(protocol.STORED.size)
    assert protocol.Appended(1, 2, 3).pack() == protocol.Appended(1, 2, 3, 0, 0).pack()
    assert protocol.StatusEntry(1, 2, 3).pack() == protocol.StatusEntry(1, 2, 3, 0).pack()
    pool = protocol.Pool(0, 0, 0, 0, 0, 0, 0, bytes(16), b"")
    assert pool.pack() == struct.pack("=I", protocol.VERSION).ljust(protocol.POOL.size, b"\0")


def test_more_extents_than_the_record_has_room_for_are_an_error() -> None:
    extents = (protocol.GrantedExtent(0, 0, 1, 0),) * 5
    with pytest.raises(struct.error):
        protocol.Lease(1, 2, 3, 4, extents=extents).pack(protocol.SHORT_LEASE_SIZE)
    forged = bytearray(protocol.Lease(1, 2, 3, 4).pack(protocol.SHORT_LEASE_SIZE))
    struct.pack_into("=I", forged, 28, 5)
    with pytest.raises(struct.error):
        protocol.Lease.unpack(forged)
    assert protocol.room(protocol.SHORT_LEASE_SIZE) == 4
    assert protocol.room(protocol.LEASE_SIZE) == 124


def test_a_path_that_is_too_long_is_an_error() -> None:
    assert protocol.Pool.unpack(protocol.Pool(0, 0, 0, 0, 0, 0, 0, bytes(16), b"x" * 943).pack()).path == b"x" * 943
    with pytest.raises(ValueError, match="943 fit"):
        protocol.Pool(0, 0, 0, 0, 0, 0, 0, bytes(16), b"x" * 944).pack()
