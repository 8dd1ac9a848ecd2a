"""Change fields of an image's structures, and make the checksums fit again, so that damage gets past them."""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from daxfs.errors import FsError
from daxfs.ext4 import extent, fast_commit, htree, orphan
from daxfs.ext4 import xattr as xattr_format
from daxfs.ext4.checksum import crc32c
from daxfs.ext4.fast_commit import Tag
from daxfs.ext4.geometry import Geometry
from daxfs.ext4.group import descriptor
from daxfs.ext4.inode import EXT4_ROOT_INO, seal_slot
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import mounting
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.journal.log import load_superblock
from daxfs.journal.view import View
from daxfs.pmem.memory import MemoryPool
from daxfs.snapshots import format as store_format
from daxfs.structures import dirblocks, inode_bitmaps, inodes, mapping
from fuzz.images import Stage

VALUES = (0, 1, 2, 3, 7, 8, 11, 12, 0x7F, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000)
LARGEST = 0xFFFFFFFF
STORES = "/.daxfs/snapshots"


class Places:
    """Where the structures of an image lie: every kind is found before it is damaged.

    Args:
        image: the image.
        focus: the structure that is damaged in every second mutation.
        stage: the other member of a tiered pool, whose memory the image is.
    """

    def __init__(self, image: bytes, focus: str = "", stage: Stage | None = None) -> None:
        self.focus, self.stage = focus, stage
        self.inodes: list[int] = []
        self.data: dict[int, list[int]] = {}
        """The blocks of files."""
        self.directories: list[tuple[int, int, int]] = []
        """Inode, generation, block."""
        self.indexes: list[tuple[int, int, int]] = []
        self.extents: list[tuple[int, int, int]] = []
        self.attributes: list[int] = []
        self.orphans: list[tuple[int, int, int]] = []
        self.log: list[int] = []
        self.fast: list[int] = []
        self.stores: list[list[int]] = []
        """The blocks of each snapshot's store, in order."""
        self.recovers = False
        """Whether a mount begins with recovery, which stores before it may meet damage."""
        pool = MemoryPool(bytearray(image)) if stage is None else stage.put(image, stage.storage)
        with FileSystem.open(pool, Options(read_only=True, replay=False)) as fs:
            view = fs.volume.view
            self.geometry = view.geometry
            self.recovers = mounting.needs_recovery(view.superblock())
            self.tables = {
                group: descriptor(view.block(number), offset, view.geometry).inode_table
                for group in range(view.geometry.groups_count)
                for number, offset in (view.geometry.descriptor_position(group),)
            }
            self._find(view)
            if any(name == b".daxfs" for name in fs.tree.listdir("/")):
                inos = [fs.tree.stat(f"{STORES}/{name.decode()}").ino for name in fs.tree.listdir(STORES)]
                self.stores = [_blocks(view, inodes.read(view, ino)) for ino in inos]
                for ino in inos:
                    self.data.pop(ino, None)
            if self.log:
                self.fast = _fast_commits(view)

    def _find(self, view: View) -> None:
        geometry = view.geometry
        for ino in (2, 7, 8, *range(geometry.first_ino, geometry.inodes_count + 1)):
            if not inode_bitmaps.in_use(view, ino):
                continue
            try:
                inode = inodes.read(view, ino)
            except FsError:
                continue  # reserved and never used
            self.inodes.append(ino)
            if inode.file_acl:
                self.attributes.append(inode.file_acl)
            key = ino, inode.generation
            if inode.has_extents and inode.block_area.cast("I")[1] >> 16:
                self.extents += [(*key, block) for _, block in extent.indexes(inode.block_area.cast("I"))]
            if not (stat.S_ISDIR(inode.mode) or stat.S_ISREG(inode.mode)):
                continue
            blocks = _blocks(view, inode)
            if stat.S_ISDIR(inode.mode):
                self.directories += [(*key, block) for block in blocks]
                self.indexes += [(*key, block) for block in blocks if _is_index(view.block(block).cast("I"))]
            elif ino == 8:
                self.log += blocks[:64]
            elif ino == view.superblock().s_orphan_file_inum:
                self.orphans += [(*key, block) for block in blocks]
            elif ino >= geometry.first_ino and inode.links_count:  # recovery frees others, and gives their blocks away
                end = -(-inode.size // geometry.block_size)
                runs = [run for run in mapping.walk(view, inode, 0, max(end - 1, 0)) if not run.unwritten]
                found = [run.pblk + at for run in runs for at in range(run.length)]
                self.data[ino] = [number for number in found if number < geometry.memory_blocks]


def _blocks(view: View, inode: inodes.Inode) -> list[int]:
    return [run.pblk + at for run in mapping.walk(view, inode) for at in range(run.length)]


def _is_index(w: memoryview) -> bool:
    return htree.is_root(w) or htree.is_node(w)


def _fast_commits(view: View) -> list[int]:
    """Return the blocks of the journal that hold fast commits."""
    area = mounting.log_area(view, view.superblock())
    log = load_superblock(view.pool, view.geometry, area)
    found = [area.physical(at) for at in range(log.log_end + 1, area.blocks)]
    return [number for number in found if any(view.block(number)[:8])]


class Mutator:
    """One mutated copy of an image."""

    def __init__(self, image: bytes, places: Places, chance: random.Random) -> None:
        self.content = bytearray(image)
        self.storage = bytearray(places.stage.storage if places.stage else b"")
        self._places = places
        self._geometry: Geometry = places.geometry
        self._chance = chance

    def mutate(self) -> str:
        """Damage one structure; return its kind."""
        kinds: dict[str, Callable[[], None]] = {
            "superblock": self._superblock,
            "descriptor": self._descriptor,
            "bitmap": self._bitmap,
            "inode": self._inode,
            "extent root": self._map,
            "log": self._log,
        }
        for name, found, change in (
            ("directory", self._places.directories, self._directory),
            ("directory index", self._places.indexes, self._index),
            ("fast commit", self._places.fast, self._fast_commit),
            ("snapshot", self._places.stores, self._store),
            ("extent block", self._places.extents, self._extent_block),
            ("attributes", self._places.attributes, self._attributes),
            ("orphan file", self._places.orphans, self._orphan),
            ("storage label", self.storage, self._label),
        ):
            if found:
                kinds[name] = change
        focus = self._places.focus
        kind = focus if focus and self._chance.random() < 0.5 else self._chance.choice(list(kinds))
        kinds[kind]()
        return kind

    def _poke(self, memory: memoryview, offset: int, end: int) -> None:
        """Change one field or bit somewhere in [offset, end)."""
        chance = self._chance
        width = chance.choice((1, 2, 2, 4, 4))
        at = offset + chance.randrange(0, max(end - offset - width, 1), width)
        field = memory[at : at + width]
        value = int.from_bytes(field, "little")
        how = chance.randrange(4)
        if how == 0:
            value ^= 1 << chance.randrange(8 * width)
        elif how == 1:
            value += chance.choice((-1, 1, -8, 8))
        elif how == 2:
            value = chance.choice((*VALUES, LARGEST, self._geometry.blocks_count, self._geometry.inodes_count))
        else:
            value = chance.getrandbits(8 * width)
        field[:] = (value % (1 << 8 * width)).to_bytes(width, "little")

    def _block(self, number: int) -> memoryview:
        size = self._geometry.block_size
        return memoryview(self.content)[number * size : number * size + size]

    def _superblock(self) -> None:
        sb = Superblock(memoryview(self.content)[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + 1024])
        self._poke(sb.buffer, 0, self._chance.choice((0x68, 0x400)))
        if sb.s_feature_ro_compat & 0x400:
            sb.seal()

    def _descriptor(self) -> None:
        group = self._chance.randrange(self._geometry.groups_count)
        number, offset = self._geometry.descriptor_position(group)
        desc = descriptor(self._block(number), offset, self._geometry)
        self._poke(self._block(number), offset, offset + 0x1E)
        desc.seal(group, self._geometry)

    def _bitmap(self) -> None:
        geometry = self._geometry
        group = self._chance.randrange(geometry.groups_count)
        number, offset = geometry.descriptor_position(group)
        desc = descriptor(self._block(number), offset, geometry)
        of_blocks = self._chance.random() < 0.5
        where = desc.block_bitmap if of_blocks else desc.inode_bitmap
        if not 0 < where < geometry.blocks_count:
            return
        bitmap = self._block(where)
        bits = geometry.blocks_in_group(group) if of_blocks else geometry.inodes_per_group
        for _ in range(self._chance.choice((1, 1, 8, 64))):
            bit = self._chance.randrange(min(bits, self._chance.choice((64, bits))))
            free = not bitmap[bit >> 3] >> (bit & 7) & 1
            bitmap[bit >> 3] ^= 1 << (bit & 7)
            step = -1 if free else 1
            if self._chance.random() < 0.9:  # the counter fits as a rule
                if of_blocks:
                    desc.free_blocks_count = max(desc.free_blocks_count + step, 0)
                else:
                    desc.free_inodes_count = max(desc.free_inodes_count + step, 0)
        if of_blocks:
            desc.seal_block_bitmap(bitmap, geometry)
        else:
            desc.seal_inode_bitmap(bitmap, geometry)
        desc.seal(group, geometry)

    def _slot(self) -> tuple[int, memoryview, int]:
        geometry = self._geometry
        ino = self._chance.choice(self._places.inodes)
        group, index = divmod(ino - 1, geometry.inodes_per_group)
        block, slot = divmod(index, geometry.inodes_per_block)
        return ino, self._block(self._places.tables[group] + block), slot * geometry.inode_size

    def _inode(self, low: int = 0, high: int | None = None) -> None:
        ino, block, offset = self._slot()
        self._poke(block, offset + low, offset + (self._geometry.inode_size if high is None else high))
        if self._geometry.metadata_csum:
            seal_slot(self._geometry, ino, offset, block)

    def _map(self) -> None:
        self._inode(0x28, 0x64)

    def _directory(self) -> None:
        ino, generation, number = self._chance.choice(self._places.directories)
        block = self._block(number)
        for _ in range(self._chance.choice((1, 1, 2, 5))):
            self._poke(block, 0, self._chance.choice((48, len(block) - 12)))
        if self._geometry.metadata_csum:
            with suppress(OSError):
                dirblocks._seal(self._geometry, ino, generation, block)

    def _index(self) -> None:
        """Damage the parameters of an index block, its first pairs, or one anywhere."""
        ino, generation, number = self._chance.choice(self._places.indexes)
        block = self._block(number)
        for _ in range(self._chance.choice((1, 1, 2, 5))):
            self._poke(block, *self._chance.choice(((8, 24), (24, 32), (32, 64), (8, len(block)))))
        if self._geometry.metadata_csum:
            with suppress(OSError, IndexError, ValueError):
                htree.seal_block(block, self._geometry.inode_seed(ino, generation))

    def _fast_commit(self) -> None:
        """Damage a record of a fast commit."""
        area = self._gathered(self._places.fast)
        records = list(_records(area))
        if not records:
            return  # the damage before has taken the first one away
        for _ in range(self._chance.choice((1, 1, 2, 5))):
            begin, end = self._chance.choice(records)
            self._poke(memoryview(area), begin + self._chance.choice((0, 4, 4, 4)), end)
        _seal_fast_commits(area)
        self._scattered(self._places.fast, area)

    def _store(self) -> None:
        """Damage the header of a snapshot's store, or an entry of its first area."""
        numbers = self._chance.choice(self._places.stores)
        size, own = store_format.SMALLEST_CHUNK, store_format.OWN_AT
        taken = numbers[: 2 * size // self._geometry.block_size]
        content = self._gathered(taken)
        for _ in range(self._chance.choice((1, 1, 2, 5))):
            self._poke(
                memoryview(content),
                *self._chance.choice(((0, 16), (own, own + 64), (1024, 1064), (size, size + 64), (size, 2 * size))),
            )
        end = own + store_format._OWN.size
        content[own + 12 : own + 16] = bytes(4)
        content[own + 12 : own + 16] = crc32c(LARGEST, content[own:end]).to_bytes(4, "little")
        self._scattered(taken, content)

    def _gathered(self, numbers: list[int]) -> bytearray:
        return bytearray(b"".join([self._block(number) for number in numbers]))

    def _scattered(self, numbers: list[int], content: bytearray) -> None:
        size = self._geometry.block_size
        for at, number in enumerate(numbers):
            self._block(number)[:] = content[at * size : (at + 1) * size]

    def _extent_block(self) -> None:
        ino, generation, number = self._chance.choice(self._places.extents)
        block = self._block(number)
        self._poke(block, 0, 60)
        if self._geometry.metadata_csum:
            with suppress(OSError, IndexError, ValueError):
                extent.seal_block(block, self._geometry.inode_seed(ino, generation))

    def _attributes(self) -> None:
        number = self._chance.choice(self._places.attributes)
        block = self._block(number)
        self._poke(block, 0, self._chance.choice((32, 96, len(block))))
        if self._geometry.metadata_csum:
            xattr_format.seal_block(block, self._geometry.csum_seed, number)

    def _orphan(self) -> None:
        ino, generation, number = self._chance.choice(self._places.orphans)
        block = self._block(number)
        self._poke(block, 0, 64)
        if self._geometry.metadata_csum:
            orphan.seal_block(block, self._geometry.inode_seed(ino, generation), number)

    def _label(self) -> None:
        """Damage the label of a member of the storage, or the pool's record of it, or cut the member."""
        how = self._chance.randrange(8)
        if how == 0:
            del self.storage[self._chance.randrange(len(self.storage)) :]
        elif how < 4 or not self._places.attributes:
            self._poke(memoryview(self.storage), 0, min(48, len(self.storage)))
        else:
            ino = EXT4_ROOT_INO
            block = self._block(self._places.tables[0] + (ino - 1) // self._geometry.inodes_per_block)
            offset = (ino - 1) % self._geometry.inodes_per_block * self._geometry.inode_size
            self._poke(block, offset + 160, offset + self._geometry.inode_size)
            seal_slot(self._geometry, ino, offset, block)

    def _log(self) -> None:
        if self._places.log:
            self._poke(self._block(self._chance.choice(self._places.log)), 0, self._chance.choice((64, 1024)))


def _records(area: bytearray) -> Iterator[tuple[int, int]]:
    """Yield where the records of fast commits begin and end."""
    at = 0
    while at + fast_commit.HEADER.size <= len(area):
        tag, length = fast_commit.HEADER.unpack_from(area, at)
        end = at + fast_commit.HEADER.size + length
        if not tag or end > len(area):
            break
        yield at, end
        at = end


def _seal_fast_commits(area: bytearray) -> None:
    """Make the checksums in the TAIL records, as far as the records can be followed."""
    crc = 0
    for begin, end in _records(area):
        tag, length = fast_commit.HEADER.unpack_from(area, begin)
        if tag != Tag.TAIL:
            crc = crc32c(crc, area[begin:end])
        elif length >= fast_commit.TAIL.size:
            area[begin + 8 : begin + 12] = crc32c(crc, area[begin : begin + 8]).to_bytes(4, "little")
            crc = 0
