"""``daxfs dump``: print structures of a pool field by field, by the kernel's names."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, CorruptKind, FsError, UserError
from daxfs.ext4 import jbd2
from daxfs.structures import directories, groups, mapping
from daxfs.tools.reading import Reading, reading

if TYPE_CHECKING:
    from daxfs.ext4.record import Record

SHOWN_BYTES = 32
MAX_LOG_BLOCKS = 1 << 22


def show(pool: str, what: Sequence[str]) -> None:
    """Print a structure.

    Raises:
        UserError: an unknown kind of structure, or the wrong number of words.
    """
    kind, *rest = what
    if kind not in _DUMPS:
        raise UserError(f"{kind} can't be dumped; write one of: {', '.join(_DUMPS)}", os.EX_USAGE)
    words, dump = _DUMPS[kind]
    if len(rest) != words:
        raise UserError(
            f"dump {kind} takes {'one more word: a number or path' if words else 'no more words'}", os.EX_USAGE
        )
    with reading(pool) as found:
        for line in dump(found, *rest):
            found.pool.faults.check()  # a line made of zeros that the pool does not hold is not printed
            print(line)


def fields(record: Record) -> Iterator[str]:
    """Yield a line for each field of a record, in the order of their offsets."""
    for row in record.field_table():
        if isinstance(row.value, int):
            shown = f"{row.value:<20} {row.value:#x}"
        else:
            value = bytes(row.value)
            shown = value[:SHOWN_BYTES].hex(" ", 4) + (" ..." if len(value) > SHOWN_BYTES else "")
        yield f"{row.offset:#06x} {row.name:<28} {shown}"


def _superblock(found: Reading) -> Iterator[str]:
    yield from fields(found.superblock)


def _group(found: Reading, which: str) -> Iterator[str]:
    geometry = found.geometry
    if not which.isascii() or not which.isdigit() or int(which) >= geometry.groups_count:
        raise UserError(f"{which} is not a group; write a number from 0 to {geometry.groups_count - 1}", os.EX_USAGE)
    number = int(which)
    first = geometry.first_block(number)
    yield f"group {number}: blocks {first} to {first + geometry.blocks_in_group(number) - 1}"
    yield from fields(groups.descriptor(found.view, number))


def _inode(found: Reading, which: str) -> Iterator[str]:
    inode = found.inode(which)
    yield f"inode {inode.number}: {stat.filemode(inode.mode)}, {inode.size} bytes"
    yield from fields(inode)


def _extents(found: Reading, which: str) -> Iterator[str]:
    inode = found.inode(which)
    yield f"inode {inode.number}: {inode.size} bytes"
    for extent in mapping.walk(found.view, inode):
        last = extent.lblk + extent.length - 1
        note = " unwritten" if extent.unwritten else ""
        yield f"{extent.lblk:>12} - {last:<12} {extent.pblk:>14} {extent.length:>8}{note}"


def _directory(found: Reading, which: str) -> Iterator[str]:
    inode = found.inode(which)
    if not stat.S_ISDIR(inode.mode):
        raise UserError(f"{which} is not a directory", os.EX_USAGE)
    for entry in directories.entries(found.view, inode):
        yield f"{entry.ino:>10}  {entry.file_type}  {entry.name.decode(errors='backslashreplace')}"


def _journal(found: Reading) -> Iterator[str]:
    if not found.geometry.has_journal or not found.superblock.s_journal_inum:
        raise UserError(f"{found.pool.path} has no journal inside the pool", os.EX_USAGE)
    inode = found.inode(str(found.superblock.s_journal_inum))
    pieces = (range(extent.pblk, extent.pblk + extent.length) for extent in mapping.walk(found.view, inode))
    blocks = list(islice(chain.from_iterable(pieces), MAX_LOG_BLOCKS))
    if not blocks:
        raise Corrupt(CorruptKind.JOURNAL_INODE_WITHOUT_BLOCKS, f"inode {inode.number}")
    sb = jbd2.verify_superblock(found.view.block(blocks[0]), found.geometry.block_size, len(blocks))
    for name, value in zip(sb._fields, sb, strict=True):
        yield f"{name:<20} {value.hex() if isinstance(value, bytes) else value}"
    yield f"{'features':<20} {' '.join(sb.feature_names)}"
    yield "empty" if not sb.s_start else f"to be replayed from block {sb.s_start}, transaction {sb.s_sequence}"
    yield from _log(found, blocks, jbd2.Format.of(sb))


def _log(found: Reading, blocks: list[int], form: jbd2.Format) -> Iterator[str]:
    """Yield a line for every block of the log with a jbd2 header, including blocks of old transactions."""
    for place, number in enumerate(blocks[1:], 1):
        content = found.view.block(number)
        header = jbd2.header(content)
        if header is None:
            continue
        said = ""
        if header.h_blocktype == jbd2.DESCRIPTOR_BLOCK:
            homes = [tag.blocknr for tag in jbd2.unpack_tags(content, form)]
            said = f"{len(homes)} blocks: {' '.join(map(str, homes[:8]))}{' ...' * (len(homes) > 8)}"
        elif header.h_blocktype == jbd2.REVOKE_BLOCK:
            said = _revoked(content, form)
        kind = _BLOCK_TYPES.get(header.h_blocktype, f"type {header.h_blocktype}")
        yield f"{place:>8}  transaction {header.h_sequence:<10} {kind:<11} {said}".rstrip()


def _revoked(content: memoryview, form: jbd2.Format) -> str:
    try:
        return f"{len(jbd2.unpack_revoke(content, form))} blocks"
    except FsError as error:
        return error.strerror or "damaged"


_BLOCK_TYPES = {jbd2.DESCRIPTOR_BLOCK: "descriptor", jbd2.COMMIT_BLOCK: "commit", jbd2.REVOKE_BLOCK: "revoke"}

_DUMPS: dict[str, tuple[int, Callable[..., Iterator[str]]]] = {
    "superblock": (0, _superblock),
    "group": (1, _group),
    "inode": (1, _inode),
    "extents": (1, _extents),
    "dir": (1, _directory),
    "journal": (0, _journal),
}
