"""Pools that a test damages or reshapes, and the errors that opening them raises."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from daxfs.errors import Corrupt, CorruptKind, PoolError
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET, Superblock
from daxfs.fs import damage
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from support import run


def digest(path: Path) -> str:
    """Return a digest of the pool's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def poke(path: Path, offset: int, content: bytes) -> None:
    """Store bytes into the pool."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int) -> None:
    """Change one byte of the pool."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


def superblock(path: Path) -> Superblock:
    """Return a copy of the pool's superblock."""
    with path.open("rb") as file:
        file.seek(SUPERBLOCK_OFFSET)
        return Superblock(memoryview(bytearray(file.read(Superblock.SIZE))))


def place_of(path: Path, what: str) -> int:
    """Return the pool's offset of metadata of the first group, such as its "Block bitmap" (dumpe2fs)."""
    said = run("dumpe2fs", path)
    block, size = re.search(what + r" at (\d+)", said), re.search(r"Block size:\s+(\d+)", said)
    assert block
    assert size
    return int(block[1]) * int(size[1])


def stopped_by_damage(fs: FileSystem) -> None:
    """Have damage make the volume read-only."""
    fs.volume.adopt(replace(fs.options, errors="remount-ro"))
    damage.report(fs.volume, Corrupt(CorruptKind.INODE_NUMBER, "nowhere"))
    assert fs.read_only


def reshape(path: Path, **fields: int) -> None:
    """Set fields of the superblock, and the checksum that fits them."""
    sb = superblock(path)
    for name, value in fields.items():
        setattr(sb, name, value)
    sb.seal()
    poke(path, SUPERBLOCK_OFFSET, bytes(sb.buffer))


def refusal(path: Path, mount: Options | None = None) -> Exception:
    """Return the error that opening the pool raises; check that the pool is unchanged and not in use afterwards."""
    before = digest(path)
    for _ in range(2):
        with pytest.raises((OSError, PoolError)) as caught:
            FileSystem.open(path, mount)
        assert digest(path) == before, "a refused pool was changed"
        assert "\n" not in str(caught.value)
    return caught.value
