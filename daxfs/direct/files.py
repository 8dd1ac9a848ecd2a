"""Files whose reads and writes are copies from and to the pool, made by this process itself.

``open`` is what programs call. A read or write that lies in the part of the file that was used last costs a copy and
half a microsecond (``pread``, ``pwrite``, ``readinto``, ``write``: the first lines of each); one that does not asks
``holding``; whatever that can't answer is an ordinary system call, which sees the same bytes. No lease and no other
process is ever waited for.

Threads: ``pread``, ``pwrite``, ``readinto_at``, ``size``, ``flush`` and ``fileno`` may be called by several at once.
``read``, ``readinto``, ``write``, ``seek``, ``tell`` and ``truncate`` share the position, which has no lock, and
``close`` must be the last call. The copies keep the interpreter lock.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs.direct import holding
from daxfs.direct.holding import HOLE, Holding, Plan
from daxfs.direct.pool import Pool, attach
from daxfs.direct.trust import Refused
from daxfs.protocol import DURABLE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_BASES = {"r": os.O_RDONLY, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}
_ZEROS = bytes(64 << 10)
_TRIES = 4
_CLOSED = "I/O operation on closed file"


def parse_mode(mode: str) -> int:
    """The flags of open(2) for a mode of the built-in ``open``.

    Raises:
        ValueError: not a binary mode.
    """
    letters = set(mode)
    base = letters & set(_BASES)
    if len(letters) != len(mode) or len(base) != 1 or letters - base - {"b", "+"} or "b" not in letters:
        raise ValueError(f"mode {mode!r}; use one of rb, wb, xb, ab, each with + for both directions")
    one_way = os.O_RDONLY if "r" in letters else os.O_WRONLY
    access = os.O_RDWR if "+" in letters else one_way
    return _BASES[base.pop()] | access | os.O_CLOEXEC


class DirectFile(io.RawIOBase):
    """An open file; made by ``open``. It is an ``io.RawIOBase``: ``io.BufferedReader`` and others take it.

    Attributes:
        name: as it was opened.
        mode: as it was opened.
        direct: whether reads, and writes where the pool can be written, go to memory.
        why: if not, the reason; also why only writes do not.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], mode: str = "rb", permissions: int = 0o666) -> None:
        self._descriptor = -1  # for __del__, should open(2) fail
        self.name = path
        self.mode = mode
        flags = parse_mode(mode)
        self._readable = flags & os.O_ACCMODE != os.O_WRONLY
        self._writable = flags & os.O_ACCMODE != os.O_RDONLY
        self._append = bool(flags & os.O_APPEND)
        self._position = 0
        self._held: Holding | None = None
        self._why = ""
        self._descriptor = os.open(path, flags, permissions)
        try:
            status = os.fstat(self._descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if self._append:
                self._position = status.st_size
            self._lean_on_memory(status.st_mode)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise

    def _lean_on_memory(self, mode: int) -> None:
        self._memory = holding.NOWHERE[4].cast("B")  # never used: no window leads there
        self._idle = _Idle()
        self._view: Holding | _Idle = self._idle
        self._store = None
        if not stat.S_ISREG(mode):
            self._why = "it is no regular file"
            return
        try:
            pool = attach(self._descriptor)
            may_store = self._writable and not self._append
            if not self._readable and not (may_store and pool.writable):
                raise Refused("appending is the kernel's" if self._append else "the pool is open for reading only")
            held = Holding(pool, self._descriptor, readable=self._readable, may_store=may_store)
            held.first()
        except Refused as refusal:
            self._why = str(refusal)
            return
        self._held = self._view = held
        self._memory = pool.memory
        self._store = pool.store
        _direct.add(self)
        if may_store and not pool.writable:
            self._why = "the pool can be read only: writes go through the kernel"

    @property
    def direct(self) -> bool:
        """Whether memory is read and, where it can be, written without the kernel."""
        return self._held is not None and not self._held.why

    @property
    def why(self) -> str:
        """Why not."""
        return (self._held.why if self._held is not None else "") or self._why

    # The data path: the window first, then the plan, then the kernel.

    def pread(self, offset: int, size: int) -> bytes:
        """Read up to ``size`` bytes at ``offset``; less only at the end of the file.

        Raises:
            ValueError: a negative number, or the file is closed.
            io.UnsupportedOperation: it is not open for reading.
            OSError: the system's.
        """
        low, high, delta, epoch, words = self._view.reads
        end = offset + size
        if low <= offset <= end <= high and end <= words[1]:
            data = self._memory[offset + delta : end + delta].tobytes()
            if words[0] == epoch:
                return data
        return self._slow_pread(offset, size)

    def pwrite(self, offset: int, data: ReadableBuffer) -> int:
        """Write at ``offset``; returns how much was written, all of it unless the system fails midway.

        In append mode the offset is ignored, as pwrite(2) does.

        Raises:
            ValueError: a negative offset, or the file is closed.
            io.UnsupportedOperation: it is not open for writing.
            OSError: the system's.
        """
        if type(data) is not bytes:
            data = _as_bytes(data)
        end = offset + len(data)
        held = self._view
        held.active += 1
        try:
            low, high, delta, epoch, words = held.stores
            if low <= offset <= end <= high and words[0] == epoch and offset <= (held.end or words[1]):
                if self._store is None:
                    self._memory[offset + delta : end + delta] = data
                else:
                    self._store(offset + delta, data)
                held.stored = True
                if end > words[1] and end > held.end:
                    held.end = end
                return end - offset
        finally:
            held.active -= 1
        return self._slow_pwrite(offset, data)

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        """Read into ``buffer`` at ``offset``; returns the number of bytes, less than it has only at the file's end.

        Raises:
            As ``pread``.
        """
        target = buffer if type(buffer) is memoryview and buffer.format == "B" else memoryview(buffer).cast("B")
        low, high, delta, epoch, words = self._view.reads
        end = offset + target.nbytes
        if low <= offset and end <= high and end <= words[1]:
            target[:] = self._memory[offset + delta : end + delta]
            if words[0] == epoch:
                return target.nbytes
        return self._slow_readinto(offset, target)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into ``buffer`` at the position; returns the number of bytes, 0 at the end of the file."""
        done = self.readinto_at(self._position, buffer)
        self._position += done
        return done

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes at the position, to the end of the file if it is negative or None."""
        if size is None or size < 0:
            size = max(self.size - self._position, 0)
        data = self.pread(self._position, size)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read to the end of the file."""
        return self.read(-1)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write at the position; in append mode at the end, in one piece (write(2) with O_APPEND)."""
        if self._append:
            self._check(writing=True)
            done = os.write(self._descriptor, data)
            self._position = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            return done
        done = self.pwrite(self._position, data)
        self._position += done
        return done

    def _slow_pread(self, offset: int, size: int) -> bytes:
        self._check(reading=True)
        if offset < 0 or size < 0:
            raise ValueError(f"{size} bytes at offset {offset}")
        if size == 0:
            return b""
        for pieces, plan in self._views(offset, size):
            data = b"".join(pieces)
            if plan is None or plan.words[0] == plan.epoch:
                return data
        return os.pread(self._descriptor, size, offset)

    def _slow_readinto(self, offset: int, target: memoryview) -> int:
        self._check(reading=True)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        for pieces, plan in self._views(offset, target.nbytes):
            place = 0
            for piece in pieces:
                target[place : place + len(piece)] = piece
                place += len(piece)
            if plan is None or plan.words[0] == plan.epoch:
                return place
        return os.preadv(self._descriptor, [target], offset)

    def _views(self, offset: int, size: int) -> Iterator[tuple[list[memoryview | bytes], Plan | None]]:
        """The memory of a range, cut at the end of the file, as often as it is worth trying; none: ask the kernel."""
        held = self._held
        if held is None:
            return
        for _ in range(_TRIES):
            limit = held.size()
            if limit is None:
                break
            end = min(offset + size, limit)
            if end <= offset:
                yield [], None
                continue
            plan = held.plan(offset, end, store=False)
            if plan is None:
                break
            pieces: list[memoryview | bytes] = []
            for start, length in plan.ranges:
                if start == HOLE:
                    pieces += _zeros(length)
                else:
                    pieces.append(held.pool.memory[start : start + length])
            yield pieces, plan
        if held.end:
            held.settle()

    def _slow_pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        self._check(writing=True)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        held = self._held
        if held is not None and held.may_store and len(data):
            for _ in range(_TRIES):
                plan = held.plan(offset, offset + len(data), store=True)
                if plan is None:
                    break
                if self._store_planned(held, plan, offset, data):
                    return len(data)
        if held is not None and held.end:
            held.settle()
        view = memoryview(data)
        done = 0
        while True:
            try:
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            except OSError:
                if not done:
                    raise
                return done
            if done >= len(view):
                return done

    def _store_planned(self, held: Holding, plan: Plan, offset: int, data: bytes | bytearray | memoryview) -> bool:
        view = memoryview(data)
        end = offset + len(view)
        held.active += 1
        try:
            if held.words is not plan.words or plan.words[0] != plan.epoch or offset > (held.end or plan.words[1]):
                return False
            place = 0
            for start, length in plan.ranges:
                if held.pool.store is None:
                    held.pool.memory[start : start + length] = view[place : place + length]
                else:
                    held.pool.store(start, view[place : place + length])
                place += length
            held.stored = True
            if end > plan.words[1] and end > held.end:
                held.end = end
            return True
        finally:
            held.active -= 1

    # The rest of a file.

    @property
    def size(self) -> int:
        """Bytes in the file, what was written past EOF included; everybody sees that size from here on."""
        self._check()
        held = self._held
        if held is not None:
            if held.end:
                held.settle()
            size = held.size()
            if size is not None:
                return size
        return os.fstat(self._descriptor).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; ``os.SEEK_DATA`` and ``os.SEEK_HOLE`` too."""
        self._check()
        if whence == os.SEEK_SET:
            place = offset
        elif whence == os.SEEK_CUR:
            place = self._position + offset
        elif whence == os.SEEK_END:
            place = self.size + offset
        else:
            place = os.lseek(self.fileno(), offset, whence)
        if place < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = place
        return place

    def tell(self) -> int:
        """The position."""
        self._check()
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or lengthen the file to ``size`` bytes (the position if None)."""
        self._check(writing=True)
        size = self._position if size is None else size
        os.ftruncate(self.fileno(), size)
        return size

    def flush(self, offset: int = 0, length: int | None = None) -> None:
        """Return when what was written is durable.

        With ``length`` only the bytes of that range, if all of them were written in memory and none past EOF:
        nothing is asked of the daemon, and times and other writes are left to a later flush.

        Raises:
            OSError: the system's; EIO if the medium failed.
        """
        self._check()
        held = self._held
        if held is None or not self._writable:
            if self._writable:
                os.fsync(self._descriptor)
            return
        known = None if length is None or held.end else held.committed(offset, offset + length)
        if known is not None:
            for start, count in known:
                held.pool.flush(held.pool.address + start, count)
            return
        held.pool.sync()
        if held.stored or held.end:
            held.settle(DURABLE)
        else:
            os.fsync(self._descriptor)

    def fileno(self) -> int:
        """The descriptor; the kernel knows everything that was written so far."""
        self._check()
        if self._held is not None and self._held.end:
            self._held.settle()
        return self._descriptor

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._check()
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._check()
        return self._writable

    def seekable(self) -> bool:
        """Yes."""
        self._check()
        return True

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._descriptor < 0

    def close(self) -> None:
        """Tell the size and that there were stores, give back what was taken past EOF, close. May be repeated.

        Nothing is made durable (``flush`` does that), as close(2) doesn't.
        """
        descriptor = self._descriptor
        if descriptor < 0:
            return
        try:
            self._leave_memory("closed")
        finally:
            self._descriptor = -1
            os.close(descriptor)

    def _leave_memory(self, why: str) -> None:
        """Tell and give back; what follows goes through the kernel. Threads in a copy keep what they copy from."""
        held = self._held
        try:
            if held is not None:
                held.settle()
        finally:
            if held is not None:
                held.end_lease(why)
            self._held, self._view = None, self._idle
            # The pool is unmapped with the last file that needs it, whoever keeps this object.
            self._memory, self._store = holding.NOWHERE[4].cast("B"), None
            self._why = why

    def _check(self, *, reading: bool = False, writing: bool = False) -> None:
        if self._descriptor < 0:
            raise ValueError(_CLOSED)
        if reading and not self._readable:
            raise io.UnsupportedOperation("not open for reading")
        if writing and not self._writable:
            raise io.UnsupportedOperation("not open for writing")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "direct" if self.direct else f"through the kernel: {self.why}"
        return f"<{type(self).__name__} {self.name!r} {self.mode} {state}>"


class _Idle:
    """What the data path looks at when there is no memory: no window."""

    __slots__ = ("active", "end", "reads", "stored", "stores")

    def __init__(self) -> None:
        self.active = self.end = 0
        self.stored = False
        self.reads = self.stores = holding.NOWHERE


def _as_bytes(data: ReadableBuffer) -> bytes | bytearray | memoryview:
    if isinstance(data, bytes | bytearray):
        return data
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def _zeros(length: int) -> Iterator[bytes]:
    for place in range(0, length, len(_ZEROS)):
        yield _ZEROS[: length - place]


def open(path: str | bytes | os.PathLike[str], mode: str = "rb", permissions: int = 0o666) -> DirectFile:
    """Open a file of a mounted daxfs for reads and writes in memory; any other file works through the kernel.

    Args:
        path: of the file.
        mode: as for the built-in ``open``, binary: ``rb``, ``r+b``, ``wb``, ``w+b``, ``xb``, ``x+b``, ``ab``, ``a+b``.
        permissions: of a new file, before the umask.

    Raises:
        ValueError: another mode.
        OSError: open(2)'s.
    """
    return DirectFile(path, mode, permissions)


_direct: weakref.WeakSet[DirectFile] = weakref.WeakSet()


def leave_memory(pool: Pool | None, why: str) -> None:
    """Let all open files of a pool (None: of every pool) go through the kernel; what they stored is written back.

    Raises:
        OSError: of one of them; all have left nevertheless.
    """
    failed: OSError | None = None
    for file in list(_direct):
        held = file._held
        if held is None or (pool is not None and held.pool is not pool):
            continue
        try:
            try:
                held.pool.sync()
            finally:
                file._leave_memory(why)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def detach() -> None:
    """Unmap every pool that no live `Mapping` uses: for a program that is about to give up rights.

    Files that are open go through the kernel from now on. Those that are opened later attach with the rights of then.

    Raises:
        OSError: what was stored in a file could not be told or written back (the system's; EIO if the medium failed).
    """
    leave_memory(None, "detached")
