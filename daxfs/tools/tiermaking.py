"""What `mkfs` does for a pool with storage (docs/TIERS.md): the storage's file, mke2fs's options, label and record.

The pool's file or device becomes the memory. mke2fs makes an image of memory and storage together, all of whose
metadata must lie in the memory; the image is then copied there, and each member of the storage gets nothing but its
label.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import NamedTuple

from daxfs.errors import UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.tiers import members
from daxfs.fs.types import ROOT_INO
from daxfs.pmem import kinds, storage
from daxfs.pmem.pool import Pool
from daxfs.pmem.storage import CONTENT, Label, Storage
from daxfs.runs import ByteRange
from daxfs.tools import room, targets
from daxfs.tools.imagecopy import used_ranges
from daxfs.tools.sizes import format_size, parse_size

BLOCK_SIZE = 4096
_FAILED = 1  # the exit code of mke2fs
_FEATURES = "sparse_super2,^meta_bg"
GROWTH = 16
"""How many times as large a pool may become by storage that joins later: blocks are reserved for descriptors."""
_LARGEST = (1 << 32) - 1
"""The most blocks that mke2fs knows for that."""


class Tier(NamedTuple):
    """What the user says of a member of the storage: its path, and the size of a new file."""

    path: str
    size: int | None


def parse(given: str) -> Tier:
    """Parse a value of ``--tier``: ``SLOWFILE`` or ``SLOWFILE:SIZE``.

    Raises:
        UserError: the size is none.
    """
    path, _, size = given.rpartition(":")
    if not path or os.path.exists(given):
        return Tier(given, None)
    return Tier(path, parse_size(size))


def options(features: str, memory: int, size: int, group: int, *, reserved: bool) -> tuple[list[str], list[str]]:
    """Return mke2fs's options, and its extended options, that keep metadata in the memory.

    Args:
        features: the user's ``-O``, or "".
        memory: bytes of it.
        size: bytes of memory and storage.
        group: bytes of a group.
        reserved: whether the user says how many blocks are reserved.
    """
    groups = -(-size // group)
    # One flexible group, whose tables and bitmaps lie together at its beginning; a backup in group 1 if that is memory.
    together = 1 << max(groups - 1, 1).bit_length()
    backups = 1 if memory >= 2 * group else 0
    blocks = size // BLOCK_SIZE
    grows = blocks < _LARGEST and "^resize_inode" not in features.split(",")
    words = ["-O", ",".join(filter(None, (_FEATURES, "" if grows else "^resize_inode", features))), "-G", str(together)]
    if not reserved:
        words += ["-m", f"{5 * memory / size:.2f}"]  # mke2fs takes five percent, here of the memory
    extended = ["packed_meta_blocks=1", f"num_backup_sb={backups}"]
    return words, [*extended, f"resize={min(GROWTH * blocks, _LARGEST)}"] if grows else extended


def group_bytes(passed: Sequence[str], block_size: int) -> int:
    """Return the bytes of a group, of a file system with these options for mke2fs.

    Raises:
        UserError: the blocks do not have 4 KiB.
    """
    if block_size != BLOCK_SIZE:
        raise UserError("a pool with --tier has blocks of 4096 bytes; leave -b out", _FAILED)
    given = dict(pairwise(passed)).get("-g", "")
    return (int(given) if re.fullmatch(r"[1-9][0-9]{0,4}", given) else 8 * BLOCK_SIZE) * BLOCK_SIZE


def memory_of(name: str, size: int, group: int) -> int:
    """Return how many bytes of a pool of ``size`` bytes are memory: those of whole groups.

    Raises:
        UserError: there is not one.
    """
    if size < group:
        text = f"{name} has {format_size(size)}; a pool with --tier needs {format_size(group)} of memory at least"
        raise UserError(f"{text} (-g makes groups smaller)", _FAILED)
    return size - size % group


@contextmanager
def opened(
    tier: Tier, pool: str, *, force: bool, sparse: bool, keep_mode: bool, trust_owner: bool
) -> Iterator[Storage]:
    """Open and claim the storage; a file that does not exist is made, and removed again if the body fails.

    Raises:
        UserError: as `targets.file_of_size`; it is the pool, or has content that is not to be overwritten.
    """
    if os.path.exists(tier.path) and os.path.exists(pool) and os.path.samefile(tier.path, pool):
        raise UserError(f"{tier.path} is given twice: as memory and as storage", _FAILED)
    if not os.path.exists(tier.path) and tier.size is None:
        raise UserError(f"{tier.path} does not exist; give its size to create it: {tier.path}:10G", _FAILED)
    with targets.file_of_size(tier.path, tier.size, trust_owner=trust_owner) as descriptor:
        found = Storage(tier.path)
        try:
            if not force:
                if found.label() is not None:
                    raise UserError(f"{tier.path} holds the storage of a pool; to overwrite it add -F", _FAILED)
                targets.refuse_content(tier.path, found.head, "add -F")
            whole = found.room + CONTENT
            if tier.size is not None and tier.size != whole:
                raise UserError(f"{tier.path} has {format_size(whole)}; leave its size out", _FAILED)
            if stat.S_ISREG(found.status.st_mode):
                if not keep_mode:
                    targets.restrict(tier.path, descriptor)
                if not sparse:
                    room.require(tier.path, descriptor, whole)
                    room.fill(tier.path, descriptor, whole, kinds.FILE)
            yield found
        finally:
            found.close()
        if stat.S_ISREG(found.status.st_mode):
            targets.sync_folder(tier.path)


@contextmanager
def all_opened(
    given: Sequence[Tier], pool: str, *, force: bool, sparse: bool, keep_mode: bool, trust_owner: bool
) -> Iterator[list[Storage]]:
    """Open and claim all members of the storage, as `opened`.

    Raises:
        UserError: as `opened`, or one is given twice.
    """
    with ExitStack() as stack:
        found: list[Storage] = []
        for tier in given:
            if os.path.exists(tier.path) and any(os.path.samestat(os.stat(tier.path), one.status) for one in found):
                raise UserError(f"{tier.path} is given twice", _FAILED)
            options = {"force": force, "sparse": sparse, "keep_mode": keep_mode, "trust_owner": trust_owner}
            found.append(stack.enter_context(opened(tier, pool, **options)))
        yield found


def place(storages: Sequence[Storage], memory: int, group: int) -> int:
    """Place members one after the other behind the memory, each with whole groups; return where the last one ends.

    Raises:
        UserError: a member has no room for one group.
    """
    end = memory
    for member in storages:
        size = member.room - member.room % group
        if not size:
            text = f"{member.path} has room for {format_size(member.room)}; storage needs {format_size(group)}"
            raise UserError(f"{text} at least (-g makes groups smaller)", _FAILED)
        member.place = ByteRange(end, end + size)
        end += size
    return end


def refuse_metadata_on_storage(name: str, image: str, memory: int) -> None:
    """Refuse an image in which a block past the memory is in use.

    Raises:
        UserError: there is one.
    """
    last = max(end for _, end in used_ranges(image))
    if last > memory:
        text = f"the metadata needs {format_size(last)}, and {name} has {format_size(memory)} of memory"
        raise UserError(f"{text}; give it more, the storage less, or fewer inodes (-i)", _FAILED)


def join(pool: Pool, storages: Sequence[Storage]) -> None:
    """Label the members of the storage, attach them to the new pool, and have the pool record where they are."""
    records: list[members.Record] = []
    for each in storages:
        begin, end = each.place
        label = Label(storage.new_id(), begin, end - begin)
        each.set_label(label)
        records.append(members.Record(label, kinds.lasting_path(each.path)))
    members.attach_all(pool, tuple(records))
    with FileSystem.open(pool) as fs:
        fs.setxattr(ROOT_INO, members.ATTRIBUTE, members.value_of(tuple(records)))
