"""Processes that use the files of one mount together: descriptors, mappings, locks, ranges.

An `Actor` is a process whose working directory is the mount. It makes the calls it is asked for and answers with a
plain value: what the call returned, an errno's name, or ``SIGBUS``. A `Stage` has several actors on one mount; a script
is a list of ``(who, call, *arguments)`` that two stages play step by step, and their answers must be equal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import mmap
import multiprocessing
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Step = tuple[Any, ...]
Outcome = Any

PAGE = mmap.PAGESIZE
SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
READ, WRITE = mmap.PROT_READ, mmap.PROT_WRITE
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
MADV_DONTNEED = 4
MREMAP_MAYMOVE = 1

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.msync.argtypes = libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mprotect.argtypes = libc.msync.argtypes
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
libc.posix_fallocate.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
libc.pwrite.argtypes = libc.pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
libc.copy_file_range.argtypes = (
    *(ctypes.c_int, ctypes.POINTER(ctypes.c_int64)) * 2,
    ctypes.c_size_t,
    ctypes.c_uint,
)
libc.copy_file_range.restype = libc.pwrite.restype = libc.pread.restype = ctypes.c_ssize_t


def checked(result: int | None) -> int:
    """Raise the exception that a libc call's -1 stands for."""
    if result is None or result in {-1, ctypes.c_size_t(-1).value}:
        raise OSError(ctypes.get_errno(), "")
    return result


class Calls:
    """The calls of one process. The script chooses the numbers of files and mappings."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}
        self.maps: dict[int, tuple[int, int]] = {}

    # Files

    def open(self, slot: int, name: str, flags: int, mode: int = 0o644) -> None:
        self.files[slot] = os.open(name, flags, mode)

    def close(self, slot: int) -> None:
        os.close(self.files.pop(slot))

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self.files[slot], size, offset)

    def pwrite(self, slot: int, content: bytes, offset: int) -> int:
        return os.pwrite(self.files[slot], content, offset)

    def append(self, slot: int, content: bytes) -> int:
        return os.write(self.files[slot], content)

    def read_aligned(self, slot: int, size: int, offset: int) -> bytes:
        """Read into memory that begins on a page boundary, as O_DIRECT requires."""
        with mmap.mmap(-1, size + PAGE) as memory:
            with memoryview(memory)[:size] as view:
                count = os.preadv(self.files[slot], [view], offset)
            return memory[:count]

    def write_aligned(self, slot: int, content: bytes, offset: int) -> int:
        with mmap.mmap(-1, len(content)) as memory:
            memory[:] = content
            return os.pwritev(self.files[slot], [memory], offset)

    def truncate(self, name: str, size: int) -> None:
        os.truncate(name, size)

    def fsync(self, slot: int) -> None:
        os.fsync(self.files[slot])

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        checked(libc.fallocate(self.files[slot], mode, offset, length))

    def seek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self.files[slot], offset, whence)

    def seek_written(self, slot: int, offset: int, whence: int) -> int:
        """Seek after the page cache was written back."""
        os.fsync(self.files[slot])
        return os.lseek(self.files[slot], offset, whence)

    def copy(
        self, source: int, source_offset: int, target: int, target_offset: int, length: int, flags: int = 0
    ) -> int:
        """Copy as programs do, which ask again after a short copy: daxfs ends one after some milliseconds."""
        at, to = ctypes.c_int64(source_offset), ctypes.c_int64(target_offset)
        done = 0
        while done < length or not length:
            try:
                copied = checked(
                    libc.copy_file_range(self.files[source], at, self.files[target], to, length - done, flags)
                )
            except OSError:
                if not done:
                    raise
                break
            if not copied:
                break
            done += copied
        return done

    def size(self, name: str) -> int:
        return os.stat(name).st_size

    def blocks(self, slot: int) -> int:
        """Return st_blocks, in units of 512 bytes, after delayed allocation."""
        os.fsync(self.files[slot])
        return os.fstat(self.files[slot]).st_blocks

    def content(self, name: str) -> bytes:
        return Path(name).read_bytes()

    def unlink(self, name: str) -> None:
        os.unlink(name)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def exists(self, name: str) -> bool:
        return os.path.lexists(name)

    # Mappings

    def map(self, number: int, slot: int, length: int, protection: int, flags: int, offset: int = 0) -> None:
        found = checked(libc.mmap(None, length, protection, flags, self.files[slot], offset))
        self.maps[number] = found, length

    def unmap(self, number: int) -> None:
        checked(libc.munmap(*self.maps.pop(number)))

    def remap(self, number: int, length: int) -> None:
        address, old = self.maps[number]
        self.maps[number] = checked(libc.mremap(address, old, length, MREMAP_MAYMOVE)), length

    def protect(self, number: int, protection: int) -> None:
        checked(libc.mprotect(*self.maps[number], protection))

    def load(self, number: int, offset: int, size: int) -> bytes | str:
        address = self.maps[number][0] + offset
        return harmless(lambda: ctypes.string_at(address, size)) or ctypes.string_at(address, size)

    def store(self, number: int, offset: int, content: bytes) -> str | None:
        address = self.maps[number][0] + offset
        # The child does it first: of a page that is not there it dies, in a private one it leaves no trace.
        died = harmless(lambda: ctypes.memmove(address, content, len(content)))
        if not died:
            ctypes.memmove(address, content, len(content))
        return died or None

    def msync(self, number: int, flags: int = MS_SYNC, offset: int = 0, length: int | None = None) -> None:
        address, whole = self.maps[number]
        checked(libc.msync(address + offset, whole - offset if length is None else length, flags))

    def drop(self, number: int) -> None:
        """Drop the mapping's page-table entries: the next access faults."""
        checked(libc.madvise(*self.maps[number], MADV_DONTNEED))

    def write_from(self, slot: int, offset: int, number: int, map_offset: int, size: int) -> int:
        """Call write(2) with a mapping as its buffer."""
        return checked(libc.pwrite(self.files[slot], self.maps[number][0] + map_offset, size, offset))

    def read_into(self, slot: int, offset: int, number: int, map_offset: int, size: int) -> int:
        """Call read(2) with a mapping as its buffer."""
        return checked(libc.pread(self.files[slot], self.maps[number][0] + map_offset, size, offset))

    def store_within(self, slot: int, number: int, offset: int, content: bytes) -> str | None:
        """`store`, if the whole range lies below EOF.

        Bytes past EOF in the last page are zeroed when the page is written back, at a time that no test can know.
        """
        if offset + len(content) > os.fstat(self.files[slot]).st_size:
            return "past EOF"
        return self.store(number, offset, content)

    def move_within(self, call: str, slot: int, offset: int, number: int, map_offset: int, size: int) -> int | None:
        """`write_from` or `read_into`, if the whole range lies below EOF and does not overlap its buffer.

        Where memory ends amid the transfer, FUSE finds out before the transfer begins and other file systems after a
        part of it: both are right. So is every order in which overlapping bytes are moved.
        """
        if max(offset, map_offset) + size > os.fstat(self.files[slot]).st_size or abs(offset - map_offset) < size:
            return None
        move: Callable[..., int] = {"write": self.write_from, "read": self.read_into}[call]
        return move(slot, offset, number, map_offset, size)

    # Locks

    def flock(self, slot: int, how: int) -> None:
        fcntl.flock(self.files[slot], how)

    def lockf(self, slot: int, how: int, length: int, start: int) -> None:
        fcntl.lockf(self.files[slot], how, length, start)

    def blocking_lock(self, slot: int, kind: int, start: int, length: int) -> tuple[int, int, int]:
        """Return the lock that is in the way: kind, start and length (F_GETLK)."""
        asked = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        found = fcntl.fcntl(self.files[slot], fcntl.F_GETLK, asked)
        kind, _, start, length, _ = struct.unpack("hhqqi4x", found)
        return kind, start, length

    def open_file_lock(self, slot: int, kind: int, start: int, length: int) -> None:
        """Take a lock that belongs to the open file, not to the process (F_OFD_SETLK)."""
        fcntl.fcntl(self.files[slot], 37, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))

    def ioctl(self, slot: int, number: int, argument: bytes) -> bytes:
        return fcntl.ioctl(self.files[slot], number, argument)


def harmless(action: Callable[[], object]) -> str:
    """Try something in a child; return the name of the signal that killed it, "" if none did."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return signal.Signals(-code).name if code else ""


class Actor:
    """A process that makes calls in a directory until it is ended."""

    def __init__(self, root: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._pipe.close()
                perform(root, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def ask(self, call: str, *arguments: Any) -> None:
        """Start a call."""
        self._pipe.send((call, *arguments))

    def answer(self, limit: float = 60) -> Outcome:
        """Return the result of the call."""
        assert self._pipe.poll(limit), "no answer"
        outcome = self._pipe.recv()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def busy(self) -> bool:
        """Return whether the call still waits, a moment after it was started."""
        return not self._pipe.poll(0.1)

    def do(self, call: str, *arguments: Any) -> Outcome:
        """Make one call and return its result."""
        self.ask(call, *arguments)
        return self.answer()

    def end(self) -> None:
        """End the process; what it holds is closed."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        os.waitpid(self.pid, 0)


def perform(root: Path, pipe: Connection, kind: type[Calls] = Calls) -> None:
    """Run an actor's process: answer each call until it is ended."""
    os.chdir(root)
    os.umask(0)
    # Children die of SIGBUS, as they should: nobody wants to hear of it.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    calls = kind()
    with contextlib.suppress(EOFError):
        while (step := pipe.recv()) is not None:
            pipe.send(answer(calls, step))


def answer(calls: Calls, step: Step) -> Outcome:
    """Return the result of a call as a plain value."""
    call, *arguments = step
    try:
        return getattr(calls, call)(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    except Exception as error:
        return error


class Stage:
    """The actors on one mount, by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._actors: dict[str, Actor] = {}

    def __getitem__(self, name: str) -> Actor:
        if name not in self._actors:
            self._actors[name] = Actor(self.root)
        return self._actors[name]

    def end(self, name: str) -> None:
        """End one actor; its name is free for another."""
        if name in self._actors:
            self._actors.pop(name).end()

    def step(self, step: Step) -> Outcome:
        """Make one call ``(who, call, *arguments)``; ``(who, "end")`` ends the process."""
        who, call, *arguments = step
        return self.end(who) if call == "end" else self[who].do(call, *arguments)

    def close(self) -> None:
        """End all actors."""
        for name in list(self._actors):
            self.end(name)


@contextlib.contextmanager
def stages(*roots: Path) -> Iterator[tuple[Stage, ...]]:
    """Yield one stage for each root."""
    found = tuple(map(Stage, roots))
    try:
        yield found
    finally:
        for stage in found:
            stage.close()


def play(stages: tuple[Stage, ...], script: Iterable[Step]) -> None:
    """Play the steps on every stage and compare the answers."""
    for number, step in enumerate(script):
        answers = tuple(stage.step(step) for stage in stages)
        assert all(found == answers[0] for found in answers), f"step {number} {shortened(step)}: {shortened(answers)}"


def shortened(value: Any) -> Any:
    """Return a value with long bytes as runs, for messages."""
    if isinstance(value, tuple):
        return tuple(map(shortened, value))
    if not isinstance(value, bytes) or len(value) < 100:
        return value
    runs: list[tuple[str, int]] = []
    for byte in value:
        letter = chr(byte) if 32 < byte < 127 else f"{byte:02x}"
        if runs and runs[-1][0] == letter:
            runs[-1] = letter, runs[-1][1] + 1
        else:
            runs.append((letter, 1))
    return " ".join(f"{letter}*{count}" for letter, count in runs[:60])
