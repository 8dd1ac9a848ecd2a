"""Ranges of files for the tests: a model of one file, and the same calls on a pool and on the kernel's ext4."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daxfs.errors import FsError
from daxfs.fs.filesystem import ROOT_INO, FileSystem, OpenFile
from daxfs.fs.types import SetAttributes
from daxfs.structures import inodes

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
PUNCH = PUNCH_HOLE | KEEP_SIZE
IN_PLACE = (0, KEEP_SIZE, PUNCH, ZERO, ZERO | KEEP_SIZE)
MOVES = (COLLAPSE, INSERT)
EVERY_MODE = (*IN_PLACE, *MOVES)
SIZES = (1, 5, 1000, 4096, 8192, 20_000, 40_960, 100_000)
"""Lengths that show where blocks and pages begin and end."""
FS_IOC_FIEMAP = 0xC020660B
UNWRITTEN, LAST = 0x800, 0x1

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def make(fs: FileSystem, name: bytes = b"f", flags: int = os.O_RDWR) -> OpenFile:
    """Create a file in the root directory, and open it."""
    return fs.create(ROOT_INO, name, 0o644, flags)[0]


def content(fs: FileSystem, file: OpenFile) -> bytes:
    """The whole content of an open file."""
    return bytes(fs.read(file, 0, file.size))


class Model:
    """One file: its bytes, and its blocks as {logical block: unwritten}, those past EOF included."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.content = bytearray()
        self.blocks: dict[int, bool] = {}

    def touched(self, offset: int, length: int) -> range:
        """Return the blocks that contain the bytes."""
        return range(offset // self.block_size, -(-(offset + length) // self.block_size))

    def within(self, offset: int, length: int) -> range:
        """Return the blocks that lie wholly in the bytes."""
        return range(-(-offset // self.block_size), (offset + length) // self.block_size)

    def grow(self, size: int) -> None:
        self.content += bytes(max(size - len(self.content), 0))

    def clear(self, offset: int, length: int) -> None:
        """Zero the bytes, up to EOF."""
        end = min(offset + length, len(self.content))
        if offset < end:
            self.content[offset:end] = bytes(end - offset)

    def write(self, offset: int, content: bytes) -> None:
        self.grow(offset + len(content))
        self.content[offset : offset + len(content)] = content
        self.blocks.update(dict.fromkeys(self.touched(offset, len(content)), False))

    def truncate(self, size: int) -> None:
        if size <= len(self.content):
            end = -(-size // self.block_size)
            self.blocks = {lblk: unwritten for lblk, unwritten in self.blocks.items() if lblk < end}
        del self.content[size:]
        self.grow(size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Do what `FileSystem.fallocate` does when it does not refuse."""
        if mode in (COLLAPSE, INSERT):
            self.move(offset, length if mode == INSERT else -length)
            return
        if mode == PUNCH:
            size = len(self.content)
            if offset + length > size:
                length = size + -size % 4096 - offset if offset < size else 0
            for lblk in self.within(offset, length):
                self.blocks.pop(lblk, None)
            self.clear(offset, length)
            return
        for lblk in self.touched(offset, length):
            self.blocks.setdefault(lblk, True)
        if not mode & KEEP_SIZE:
            self.grow(offset + length)
        if mode & ZERO:
            self.blocks.update(dict.fromkeys(self.within(offset, length), True))
            self.clear(offset, length)

    def move(self, offset: int, by: int) -> None:
        """Collapse (by < 0) or insert at ``offset``."""
        if by < 0:
            del self.content[offset : offset - by]
        else:
            self.content[offset:offset] = bytes(by)
        first, end, steps = (value // self.block_size for value in (offset, offset - min(by, 0), by))
        self.blocks = {
            lblk + steps if lblk >= end else lblk: unwritten
            for lblk, unwritten in self.blocks.items()
            if lblk < first or lblk >= end
        }

    def copy(self, source: Model, source_offset: int, offset: int, length: int) -> int:
        """Do what `FileSystem.copy_range` into this file does; return the number of bytes."""
        end = min(source_offset + length, len(source.content))
        begin = source_offset
        while begin < end:
            hole = source.seek(begin, os.SEEK_DATA)
            is_data = hole == begin
            stop = source.seek(begin, os.SEEK_HOLE) if is_data else hole
            stop = end if stop is None else min(stop, end)
            at = offset + begin - source_offset
            if is_data:
                self.write(at, bytes(source.content[begin:stop]))
            else:
                self.put_hole(at, stop - begin)
            begin = stop
        return max(end - source_offset, 0)

    def put_hole(self, offset: int, length: int) -> None:
        """Zero the bytes; if none of their blocks is written, the blocks stay as they are."""
        inside = min(offset + length, len(self.content)) - offset
        if inside > 0 and not all(self.blocks.get(lblk, True) for lblk in self.touched(offset, inside)):
            self.fallocate(PUNCH, offset, inside)
        self.grow(offset + length)

    def seek(self, offset: int, whence: int) -> int | None:
        """Return the result of lseek(2); None for ENXIO."""
        size = len(self.content)
        if not 0 <= offset < size:
            return None
        for lblk in range(offset // self.block_size, -(-size // self.block_size)):
            is_data = not self.blocks.get(lblk, True)
            if is_data == (whence == os.SEEK_DATA):
                return max(lblk * self.block_size, offset)
        return size if whence == os.SEEK_HOLE else None


class PoolFile:
    """A file of a pool. Each call returns its result, or the name of its errno."""

    def __init__(self, fs: FileSystem, name: bytes, *, flags: int = os.O_RDWR) -> None:
        self.fs = fs
        self.file: OpenFile
        try:
            ino = fs.lookup(ROOT_INO, name).ino
            self.file = fs.open_file(ino, flags)
        except FsError:
            self.file, made = fs.create(ROOT_INO, name, 0o644, flags)
            ino = made.ino
        self.ino = ino

    def write(self, offset: int, content: bytes) -> Any:
        return outcome(self.fs.write, self.file, offset, content)

    def truncate(self, size: int) -> Any:
        return outcome(lambda: self.fs.setattr(self.ino, SetAttributes(size=size)) and None)

    def fallocate(self, mode: int, offset: int, length: int) -> Any:
        return outcome(self.fs.fallocate, self.file, mode, offset, length)

    def seek(self, offset: int, whence: int) -> Any:
        return outcome(self.fs.seek, self.file, offset, whence)

    def copy(self, source: PoolFile, source_offset: int, offset: int, length: int) -> Any:
        return outcome(self.fs.copy_range, source.file, source_offset, self.file, offset, length)

    def content(self) -> bytes:
        return bytes(self.fs.read(self.file, 0, 1 << 40))

    def size(self) -> int:
        return self.fs.getattr(self.ino).size

    def blocks(self) -> dict[int, bool]:
        """Return {logical block: unwritten}."""
        return {run.lblk + at: run.unwritten for run in self.fs.describe(self.ino) for at in range(run.length)}

    def close(self) -> None:
        self.fs.release(self.file)


class KernelFile:
    """The same calls on a file of a mounted file system."""

    def __init__(self, path: Path, block_size: int, *, flags: int = os.O_RDWR) -> None:
        self.block_size = block_size
        self.descriptor = os.open(path, flags | os.O_CREAT, 0o644)

    def write(self, offset: int, content: bytes) -> Any:
        return outcome(os.pwrite, self.descriptor, content, offset)

    def truncate(self, size: int) -> Any:
        return outcome(os.ftruncate, self.descriptor, size)

    def fallocate(self, mode: int, offset: int, length: int) -> Any:
        if libc.fallocate(self.descriptor, mode, offset, length):
            return errno.errorcode[ctypes.get_errno()]
        return None

    def seek(self, offset: int, whence: int) -> Any:
        os.fsync(self.descriptor)  # pages in the cache are data, too
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return outcome(os.lseek, self.descriptor, offset, whence)

    def copy(self, source: KernelFile, source_offset: int, offset: int, length: int) -> Any:
        return outcome(os.copy_file_range, source.descriptor, self.descriptor, length, source_offset, offset)

    def content(self) -> bytes:
        return os.pread(self.descriptor, self.size(), 0)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def blocks(self) -> dict[int, bool]:
        """Return {logical block: unwritten}."""
        found = {}
        for logical, _, length, flags in kernel_fiemap(self.descriptor):
            for at in range(logical, logical + length, self.block_size):
                found[at // self.block_size] = bool(flags & UNWRITTEN)
        return found

    def close(self) -> None:
        os.close(self.descriptor)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call, or the name of its errno."""
    try:
        return call(*arguments)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]


def kernel_fiemap(
    descriptor: int, start: int = 0, length: int = (1 << 63) - 1, limit: int = 2000
) -> list[tuple[int, int, int, int]]:
    """Return FS_IOC_FIEMAP's answer after a sync: (logical, physical, length, flags), in bytes."""
    header = struct.pack("<QQIIII", start, length, 1, 0, limit, 0)
    answer = bytearray(header + bytes(56 * limit))
    fcntl.ioctl(descriptor, FS_IOC_FIEMAP, answer)
    mapped = struct.unpack_from("<I", answer, 20)[0]
    records = (struct.unpack_from("<QQQ16xI12x", answer, 32 + 56 * at) for at in range(mapped))
    return [(logical, physical, size, flags) for logical, physical, size, flags in records]


def zeroing_off(root: Path) -> None:
    """Have the mounted ext4 split unwritten extents instead of zeroing their rest."""
    device = os.stat(root).st_dev
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    Path(f"/sys/fs/ext4/{name}/extent_max_zeroout_kb").write_text("0")


def check_credits(fs: FileSystem) -> None:
    """Raise an error, from now on, if a handle changes more blocks than its credits."""
    fs.volume.journal._handle._strict = True


def refused(number: int) -> pytest.RaisesExc[FsError]:
    """Expect an FsError with this errno."""
    return pytest.RaisesExc(FsError, check=lambda error: error.errno == number)


def set_flag(fs: FileSystem, ino: int, flag: int) -> None:
    """Set one of the inode's flags (chattr)."""
    with fs.volume.handle(1) as tx:
        inodes.edit(tx, ino).flags |= flag
    fs.volume.refresh(ino)
