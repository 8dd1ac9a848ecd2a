"""The blocks of a directory: their places, their checksums, and the entries of one block.

The module serves every block with entries: those of a linear directory and the leaves of an index. Its callers `linear`
and `htree` determine the block that a name belongs to; `dirlist` and the facade `directories` call it too.

Entries are read without an object for each: the code steps through the block's u16 and u32 views, and checks each
``rec_len`` before it follows it. A valid checksum is not enough: that of a hostile image is right too, and a block may
have been checked as something else.

Sources: ``fs/ext4/namei.c`` (``ext4_bread_dirblock``, ``ext4_find_dest_de``, ``ext4_insert_dentry``,
``ext4_generic_delete_entry``), ``fs/ext4/dir.c`` (``__ext4_check_dir_entry``).
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, NamedTuple

from librt.strings import read_i32_le
from mypy_extensions import i64

from daxfs.errors import Corrupt, CorruptKind
from daxfs.ext4 import dirent
from daxfs.ext4 import htree as format_
from daxfs.ext4.inode import EXT4_INDEX_FL
from daxfs.structures import mapping
from daxfs.structures.dirhints import Hints

if TYPE_CHECKING:
    from daxfs.ext4.geometry import Geometry
    from daxfs.journal.handle import Handle
    from daxfs.journal.view import View
    from daxfs.structures.inodes import Inode

SECTOR = 512
"""The unit of ``i_blocks``."""
FEW_BLOCKS = 16
"""A directory whose size claims more blocks must also have them in ``i_blocks``. Otherwise a walk through a damaged
size would take minutes."""


def where(directory: Inode, number: int) -> str:
    """Return a directory block's name in error messages."""
    return f"directory {directory.number}, block {number}"


def is_indexed(view: View, directory: Inode) -> bool:
    """Whether the directory has a valid index (``is_dx``): its flag is set and the pool has dir_index."""
    return bool(directory.words[8] & EXT4_INDEX_FL) and view.geometry.has_dir_index


def count(view: View, directory: Inode) -> int:
    """Return the number of blocks of the directory; 0 when it was removed.

    Raises:
        Corrupt: the size is no whole number of blocks, is 0 although there are links, or exceeds the allocated blocks.
    """
    size = directory.size
    blocks, rest = divmod(size, view.block_size)
    beyond = blocks > FEW_BLOCKS and size > directory.blocks * SECTOR
    if rest or beyond or (not size and directory.links_count):
        raise Corrupt(CorruptKind.DIRECTORY_SIZE, f"inode {directory.number}: {size} bytes")
    return blocks


def number_of(view: View, directory: Inode, lblk: int) -> int:
    """Return the physical block of logical block ``lblk``.

    Raises:
        Corrupt: the block is past the directory's end, a hole, or unwritten.
    """
    hints = view.caches[Hints]
    key = (directory.number, directory.words[25])
    known = hints.maps.get(key)
    if known is not None:
        number = known.get(lblk)
        if number is not None:
            return number
    if lblk >= count(view, directory):
        raise Corrupt(CorruptKind.DIRECTORY_BLOCK, f"inode {directory.number}: block {lblk} is past the end")
    extent = mapping.lookup(view, directory, lblk)
    if not extent.pblk or extent.unwritten:
        raise Corrupt(CorruptKind.DIRECTORY_BLOCK, f"inode {directory.number}: block {lblk} is a hole")
    hints.put_map(key, lblk, extent.pblk)
    return extent.pblk


def limit_of(geometry: Geometry) -> int:
    """Return the byte of a block where its entries end."""
    return geometry.block_size - dirent.TAIL_SIZE if geometry.metadata_csum else geometry.block_size


# Checksums


def entries_block(view: View, directory: Inode, number: int) -> memoryview:
    """Return a block that holds entries, after a check of its checksum; code that follows the entries checks them."""
    if view.geometry.metadata_csum:
        return view.verified(number, _check_entries, view.geometry, directory, number)
    return view.block(number)


def index_block(view: View, directory: Inode, number: int, base: int) -> memoryview:
    """Return the words of a root or node (``base`` says which), after checks of its checksum and its hashes' order."""
    return _verified_index(view, directory, number, base).cast("I")


def _verified_index(view: View, directory: Inode, number: int, base: int) -> memoryview:
    return view.verified(number, _check_index, view.geometry, directory, number, base)


def any_block(view: View, directory: Inode, number: int) -> memoryview:
    """Return a block, checked as the kind that its content shows; without checksums the kinds can be confused."""
    if view.geometry.metadata_csum:
        return view.verified(number, _check_any, view.geometry, directory, number)
    return view.block(number)


def _check_entries(geometry: Geometry, directory: Inode, number: int, content: memoryview) -> None:
    seed = geometry.inode_seed(directory.number, directory.words[25])
    dirent.verify_block(content, seed, where(directory, number))


def _check_index(geometry: Geometry, directory: Inode, number: int, base: int, content: memoryview) -> None:
    place = where(directory, number)
    if geometry.metadata_csum:
        format_.verify_block(content, geometry.inode_seed(directory.number, directory.words[25]), place)
    w = content.cast("I")
    if base == format_.ROOT_BASE:
        format_.root_info(w, place, large_dir=geometry.has_large_dir)
    elif not format_.is_node(w):
        raise Corrupt(CorruptKind.DIRECTORY_INDEX, f"{place}: not a node")
    format_.check(w, base, geometry.metadata_csum, place)


def _check_any(geometry: Geometry, directory: Inode, number: int, content: memoryview) -> None:
    w = content.cast("I")
    if format_.is_node(w) or format_.is_root(w):
        base = format_.NODE_BASE if format_.is_node(w) else format_.ROOT_BASE
        _check_index(geometry, directory, number, base, content)
    else:
        _check_entries(geometry, directory, number, content)


def _seal(geometry: Geometry, ino: int, generation: int, content: memoryview) -> None:
    """Make the checksum of a block of any kind, because block 0 may change its kind after its seal was registered.

    With checksums the kinds can't be confused: entries end before the checksum tail, and in index blocks the last entry
    ends at the end of the block.
    """
    w = content.cast("I")
    seal = format_.seal_block if format_.is_node(w) or format_.is_root(w) else dirent.seal_block
    seal(content, geometry.inode_seed(ino, generation))


# Changing


def writable(tx: Handle, directory: Inode, number: int) -> memoryview:
    """Return the writable copy of a block of the directory; the caller has checked its content."""
    tx.caches[Hints].changing(tx)
    geometry = tx.geometry
    if geometry.metadata_csum:
        return tx.edit(number, _seal, geometry, directory.number, directory.words[25])
    return tx.edit(number)


def append(tx: Handle, directory: Inode) -> tuple[int, int, memoryview]:
    """Append a block of zeros to the directory, and return (logical block, physical block, memory).

    The caller must fill the block at once.

    Raises:
        FsError: ENOSPC; EFBIG when the directory has its largest size.
    """
    geometry = tx.geometry
    hints = tx.caches[Hints]
    hints.changing(tx)
    lblk = count(tx, directory)
    number = mapping.allocate(tx, directory, lblk, 1).pblk
    directory.size = (lblk + 1) << geometry.block_bits
    if geometry.metadata_csum:
        block = tx.create(number, _seal, geometry, directory.number, directory.words[25])
    else:
        block = tx.create(number)
    hints.put_map((directory.number, directory.words[25]), lblk, number)
    hints.forget_entries(number)
    return lblk, number, block


def move(tx: Handle, directory: Inode, lblk: int, number: int, target: int) -> None:
    """Copy the block ``number``, logical block ``lblk``, to ``target``, which takes its place in the map afterwards.

    The checksum's seed does not depend on the place. The caller changes the map, which frees the old block.

    Raises:
        Corrupt: the block is damaged.
    """
    geometry = tx.geometry
    content = any_block(tx, directory, number)
    hints = tx.caches[Hints]
    hints.changing(tx)
    if geometry.metadata_csum:
        block = tx.create(target, _seal, geometry, directory.number, directory.words[25])
    else:
        block = tx.create(target)
    block[:] = content
    hints.forget_place((directory.number, directory.words[25]), lblk)
    hints.forget_entries(number)
    hints.forget_entries(target)


def fill(tx: Handle, number: int, block: memoryview, pieces: list[bytes]) -> None:
    """Fill a block with ``pieces``: one or more entries without slack. The last one takes the rest of the block."""
    hints = tx.caches[Hints]
    hints.moves += 1
    limit = limit_of(tx.geometry)
    body = b"".join(pieces)
    last = len(body) - len(pieces[-1])
    block[: len(body)] = body
    block[len(body) : limit] = bytes(limit - len(body))
    block[last + 4 : last + 6] = (limit - last).to_bytes(2, "little")
    if limit < len(block):
        dirent.put_tail(block)
    hints.forget_entries(number)
    hints.put_tail(number, last)


# The entries of one block


def bad_entry(directory: Inode, number: int, offset: int) -> Corrupt:
    """Return the error for an entry whose ``rec_len`` or ``name_len`` is impossible."""
    return Corrupt(
        CorruptKind.DIRECTORY_ENTRY, f"{where(directory, number)}: the lengths at byte {offset} are impossible"
    )


def find(view: View, directory: Inode, number: int, name: bytes) -> int:
    """Return the offset of the entry called ``name`` in a block, or -1."""
    geometry = view.geometry
    if geometry.metadata_csum:
        content = view.verified(number, _check_entries, geometry, directory, number)
        limit = geometry.block_size - dirent.TAIL_SIZE
    else:
        content = view.block(number)
        limit = geometry.block_size
    return dirent.find(content, limit, name, view.caches[Hints].starts_of(number))


class UsedEntries(NamedTuple):
    """The used entries of a block, in the order of their offsets."""

    offsets: list[int]
    names: list[bytes]
    inos: list[int]
    file_types: list[int]


def live(directory: Inode, number: int, data: bytes, start: int, limit: int) -> UsedEntries:
    """Return the used entries of a block from byte ``start`` on. Inode numbers and file types are not checked.

    Raises:
        Corrupt: a length is impossible, or a name contains a byte that names can't contain.
    """
    offsets: list[int] = []
    names: list[bytes] = []
    inos: list[int] = []
    file_types: list[int] = []
    offset: i64 = start
    stop: i64 = limit
    while offset <= stop - dirent.MIN_REC_LEN:
        ino: int = read_i32_le(data, offset)
        rec_len: i64 = data[offset + 4] | data[offset + 5] << 8
        length: i64 = data[offset + 6] if ino else 4
        begin, end = offset + 8, offset + rec_len
        if not length or begin + length > end or rec_len & 3 or end > stop:
            raise bad_entry(directory, number, offset)
        if ino:
            offsets.append(offset)
            names.append(data[begin : begin + length])
            inos.append(ino & 0xFFFFFFFF)
            file_types.append(data[offset + 7])
        offset = end
    if offset != limit:
        raise bad_entry(directory, number, offset)
    joined = b"".join(names)
    if 0x2F in joined or 0 in joined:
        raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{where(directory, number)}: a name holds a slash or a zero byte")
    return UsedEntries(offsets, names, inos, file_types)


def find_room(directory: Inode, number: int, content: memoryview, limit: int, need: int) -> tuple[int, int, int]:
    """Return the first entry with a gap of ``need`` bytes: (offset, bytes that the entry itself uses, ``rec_len``).

    An offset of -1 means that there is no such entry; then the second number is the largest gap.
    """
    data = bytes(content)
    largest: i64 = 0
    offset: i64 = 0
    stop: i64 = limit
    while offset <= stop - dirent.MIN_REC_LEN:
        rec_len: i64 = data[offset + 4] | data[offset + 5] << 8
        used: i64 = data[offset + 6] + 11 & 0x1FC if read_i32_le(data, offset) else 0
        gap = rec_len - used
        if gap < 0 or rec_len < 12 or rec_len & 3 or offset + rec_len > stop:
            raise bad_entry(directory, number, offset)
        if gap >= need:
            return offset, used, rec_len
        largest = max(largest, gap)
        offset += rec_len
    if offset != stop:
        raise bad_entry(directory, number, offset)
    return -1, largest, 0


def _tail_room(content: memoryview, offset: int, limit: int, need: int) -> tuple[int, int, int] | None:
    """Return the entry at ``offset`` as `find_room` does, if it is the block's last entry and has room; else None."""
    w = content.cast("I")
    at = offset >> 2
    head = w[at + 1]
    rec_len = head & 0xFFFF
    used = (head >> 16 & 0xFF) + 11 & 0x1FC if w[at] else 0
    return (offset, used, rec_len) if offset + rec_len == limit and rec_len - used >= need else None


def place(tx: Handle, directory: Inode, number: int, name: bytes, ino: int, file_type: int) -> bool:
    """Put an entry into a block if the block has room.

    Args:
        tx: the handle.
        directory: from ``inodes.edit``.
        number: the block.
        name: of 1 to 255 bytes, not in the directory yet.
        ino: the inode.
        file_type: ``FT_*``.

    Returns:
        False: the block has no room.
    """
    geometry = tx.geometry
    limit = limit_of(geometry)
    need = len(name) + 11 & ~3
    hints = tx.caches[Hints]
    if hints.rooms.get(number, limit) < need:
        return False
    content = entries_block(tx, directory, number)
    tail = hints.tails.get(number)
    found = None if tail is None else _tail_room(content, tail, limit, need)
    if found is None:
        found = find_room(directory, number, content, limit, need)
        if found[0] < 0:
            hints.put_room(number, found[1])
            return False
    offset, used, rec_len = found
    hints.absence = None
    block = writable(tx, directory, number)
    if used:
        block[offset + 4 : offset + 6] = used.to_bytes(2, "little")
        offset += used
        rec_len -= used
        starts = hints.starts.get(number)
        if starts is not None and offset < starts[-1]:
            insort(starts, offset)
    entry = dirent.pack_entry(ino, rec_len, name, file_type if geometry.has_filetype else 0)
    block[offset : offset + len(entry)] = entry
    if offset + rec_len == limit:
        hints.put_tail(number, offset)
    return True


def take(tx: Handle, directory: Inode, number: int, offset: int) -> None:
    """Remove the entry at ``offset`` (from `find`): zero its bytes, and give its space to the entry before it."""
    hints = tx.caches[Hints]
    limit = limit_of(tx.geometry)
    content = entries_block(tx, directory, number)
    starts = hints.starts_of(number)
    index = dirent.index_of(content, limit, starts, offset)
    rec_len = content[offset + 4] | content[offset + 5] << 8
    if index < 0 or not dirent.MIN_REC_LEN <= rec_len <= limit - offset:
        raise bad_entry(directory, number, offset)
    block = writable(tx, directory, number)
    hints.moves += 1
    hints.rooms.pop(number, None)
    if not index:
        block[:4] = bytes(4)
        block[6:rec_len] = bytes(rec_len - 6)
        return
    before = starts[index - 1]
    del starts[index]
    block[offset : offset + rec_len] = bytes(rec_len)
    block[before + 4 : before + 6] = (offset + rec_len - before).to_bytes(2, "little")
    if hints.tails.get(number) == offset:
        hints.tails[number] = before


def dots(view: View, directory: Inode) -> tuple[int, memoryview, int]:
    """Return where "." and ".." are: (block, its content, offset of "..").

    Raises:
        Corrupt: block 0 does not begin with "." and "..".
    """
    number = number_of(view, directory, 0)
    if is_indexed(view, directory):
        content = _verified_index(view, directory, number, format_.ROOT_BASE)
    else:
        content = entries_block(view, directory, number)
    w = content.cast("I")
    at = w[1] & 0xFFFF
    if w[1] >> 16 & 0xFF == 1 and content[8] == 0x2E and 12 <= at <= len(content) - 24 and not at & 3 and w[0]:
        second = w[at // 4 + 1]
        fits = 12 <= second & 0xFFFF <= len(content) - at
        if second >> 16 & 0xFF == 2 and fits and w[at // 4 + 2] & 0xFFFF == 0x2E2E and w[at // 4]:
            return number, content, at
    raise Corrupt(CorruptKind.DIRECTORY_ENTRY, f"{where(directory, number)}: does not begin with . and ..")
