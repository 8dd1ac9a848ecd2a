"""Files that this process reads and writes by copies from and to the pool.

Programs call ``open``. A read or write takes the first of three paths that serves it:

1. The fast path: the range lies in the cached extent that was used last. It costs a copy and half a microsecond, and is
   the first lines of ``pread``, ``pwrite`` and ``readinto_at``.
2. ``LeaseCache.lookup``, which may send requests to the daemon.
3. A system call, which sees the same bytes.

No path waits for a lease or for another process.

Threads: several threads may call ``pread``, ``pwrite``, ``readinto_at``, ``size``, ``flush`` and ``fileno`` at once.
``read``, ``readinto``, ``write``, ``seek``, ``tell`` and ``truncate`` share the position, which has no lock, and
``close`` must be the last call. A copy keeps the interpreter lock.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daxfs import f2fs
from daxfs.direct.lease_cache import HOLE, NO_EXTENT, LeaseCache, RangeList
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
    """Return the flags of open(2) for a mode of the built-in ``open``.

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
        name: the path that was opened.
        mode: the mode that it was opened with.
        direct: whether reads, and writes if the pool is writable, go to memory.
        why: the reason if ``direct`` is False, or if only writes go through the kernel; else "".
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
        self._cache: LeaseCache | None = None
        self._why = ""
        self._descriptor = os.open(path, flags, permissions)
        try:
            status = os.fstat(self._descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if self._append:
                self._position = status.st_size
            self._start_direct_access(status.st_mode)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise

    def _start_direct_access(self, mode: int) -> None:
        self._memory = NO_EXTENT[4].cast("B")  # never used: NO_EXTENT holds no range
        self._faults = NO_EXTENT[4]
        self._no_cache = _NoCache()
        self._fast_path: LeaseCache | _NoCache = self._no_cache
        self._store = None
        if not stat.S_ISREG(mode):
            self._why = "it is no regular file"
            return
        try:
            pool = attach(self._descriptor)
            may_store = self._writable and not self._append
            if not self._readable and not (may_store and pool.writable):
                raise Refused("appending is the kernel's" if self._append else "the pool is open for reading only")
            cache = LeaseCache(pool, self._descriptor, readable=self._readable, may_store=may_store)
            cache.probe()
        except Refused as refusal:
            self._why = str(refusal)
            return
        self._cache = self._fast_path = cache
        self._memory, self._faults = pool.memory, pool.faults
        self._store = pool.store
        _direct.add(self)
        if may_store and not pool.writable:
            self._why = "the pool can be read only: writes go through the kernel"

    @property
    def direct(self) -> bool:
        """Whether reads, and writes if the pool is writable, go to memory without the kernel."""
        return self._cache is not None and not self._cache.why

    @property
    def why(self) -> str:
        """The reason why the file, or only its writes, go through the kernel; "" if there is none."""
        return (self._cache.why if self._cache is not None else "") or self._why

    # The data path: the fast path first, then a lookup, then the kernel.

    def pread(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes at ``offset``; fewer only at EOF.

        Raises:
            ValueError: a negative number, or the file is closed.
            io.UnsupportedOperation: it is not open for reading.
            OSError: the system's.
        """
        low, high, delta, epoch, status = self._fast_path.read_extent
        end = offset + size
        if low <= offset <= end <= high and end <= status[1]:
            data = self._memory[offset + delta : end + delta].tobytes()
            if status[0] == epoch:
                return data
        return self._slow_pread(offset, size)

    def pwrite(self, offset: int, data: ReadableBuffer) -> int:
        """Write at ``offset``; return the number of bytes written, less than all only if the system fails midway.

        In append mode the offset is ignored, as by pwrite(2).

        Raises:
            ValueError: a negative offset, or the file is closed.
            io.UnsupportedOperation: it is not open for writing.
            OSError: the system's.
        """
        if type(data) is not bytes:
            data = _as_bytes(data)
        end = offset + len(data)
        cache = self._fast_path
        cache.active_stores += 1
        try:
            low, high, delta, epoch, status = cache.write_extent
            if low <= offset <= end <= high and status[0] == epoch and offset <= (cache.appended_end or status[1]):
                if self._store is None:
                    self._memory[offset + delta : end + delta] = data
                else:
                    self._store(offset + delta, data)
                cache.unreported = True
                if end <= status[1]:
                    return end - offset
                # Past EOF; or the store met no memory, and the status words are zeros.
                if not self._faults[0]:
                    cache.appended_end = max(end, cache.appended_end)
                    return end - offset
        finally:
            cache.active_stores -= 1
        return self._slow_pwrite(offset, data)

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        """Read into ``buffer`` at ``offset``; return the number of bytes, less than its length only at EOF.

        Raises:
            As ``pread``.
        """
        target = buffer if type(buffer) is memoryview and buffer.format == "B" else memoryview(buffer).cast("B")
        low, high, delta, epoch, status = self._fast_path.read_extent
        end = offset + target.nbytes
        if low <= offset and end <= high and end <= status[1]:
            target[:] = self._memory[offset + delta : end + delta]
            if status[0] == epoch:
                return target.nbytes
        return self._slow_readinto(offset, target)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into ``buffer`` at the position; return the number of bytes, 0 at EOF."""
        done = self.readinto_at(self._position, buffer)
        self._position += done
        return done

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes at the position, or up to EOF if ``size`` is negative or None."""
        if size is None or size < 0:
            size = max(self.size - self._position, 0)
        data = self.pread(self._position, size)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Read up to EOF."""
        return self.read(-1)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write at the position; in append mode at EOF, in one piece (write(2) with O_APPEND)."""
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
        for pieces, found in self._find_pieces(offset, size):
            data = b"".join(pieces)
            if found is None or found.status[0] == found.epoch:
                return data
        return os.pread(self._descriptor, size, offset)

    def _slow_readinto(self, offset: int, target: memoryview) -> int:
        self._check(reading=True)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        for pieces, found in self._find_pieces(offset, target.nbytes):
            place = 0
            for piece in pieces:
                target[place : place + len(piece)] = piece
                place += len(piece)
            if found is None or found.status[0] == found.epoch:
                return place
        return os.preadv(self._descriptor, [target], offset)

    def _find_pieces(self, offset: int, size: int) -> Iterator[tuple[list[memoryview | bytes], RangeList | None]]:
        """Yield the memory of a range, cut at EOF, once for each try; no more is yielded when the kernel must read.

        The caller copies the pieces and ends the loop if the epoch of the range list still holds after the copy.
        """
        cache = self._cache
        if cache is None:
            return
        for _ in range(_TRIES):
            limit = cache.size()
            if limit is None:
                break
            end = min(offset + size, limit)
            if end <= offset:
                yield [], None
                continue
            found = cache.lookup(offset, end, store=False)
            if found is None:
                break
            pieces: list[memoryview | bytes] = []
            for start, length in found.ranges:
                if start == HOLE:
                    pieces += _zeros(length)
                else:
                    pieces.append(cache.pool.memory[start : start + length])
            yield pieces, found
        if cache.appended_end:
            cache.report_stores()

    def _slow_pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        self._check(writing=True)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        cache = self._cache
        if cache is not None and cache.may_store and len(data):
            for _ in range(_TRIES):
                found = cache.lookup(offset, offset + len(data), store=True)
                if found is None:
                    break
                if self._store_ranges(cache, found, offset, data):
                    return len(data)
        if cache is not None and cache.appended_end:
            cache.report_stores()
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

    def _store_ranges(
        self, cache: LeaseCache, found: RangeList, offset: int, data: bytes | bytearray | memoryview
    ) -> bool:
        """Store to the ranges; False if the range list no longer holds: then nothing was stored."""
        view = memoryview(data)
        end = offset + len(view)
        cache.active_stores += 1
        try:
            status = found.status
            if cache.status is not status or status[0] != found.epoch or offset > (cache.appended_end or status[1]):
                return False
            place = 0
            for start, length in found.ranges:
                if cache.pool.store is None:
                    cache.pool.memory[start : start + length] = view[place : place + length]
                else:
                    cache.pool.store(start, view[place : place + length])
                place += length
            if cache.pool.faults[0]:
                return False
            cache.unreported = True
            if end > status[1] and end > cache.appended_end:
                cache.appended_end = end
            return True
        finally:
            cache.active_stores -= 1

    # The rest of a file.

    @property
    def size(self) -> int:
        """The file size in bytes. Writes past EOF are reported first, so that every process sees this size."""
        self._check()
        cache = self._cache
        if cache is not None:
            if cache.appended_end:
                cache.report_stores()
            size = cache.size()
            if size is not None:
                return size
        return os.fstat(self._descriptor).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set the position and return it; ``whence`` may also be ``os.SEEK_DATA`` or ``os.SEEK_HOLE``."""
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
        """Return the position."""
        self._check()
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to ``size`` bytes (to the position if None)."""
        self._check(writing=True)
        size = self._position if size is None else size
        os.ftruncate(self.fileno(), size)
        return size

    def write_atomic(self, offset: int, data: ReadableBuffer) -> int:
        """Write all of ``data``, up to 16 MiB, durably, or nothing, as other programs and a power cut see it.

        The write is a batch of its own open file (docs/ATOMIC.md), so it takes system calls. It does not wait for other
        batches of the file, and an ordinary write to the same bytes meanwhile is lost.

        Returns:
            The length of ``data``.

        Raises:
            ValueError: a negative offset, or the file is closed.
            io.UnsupportedOperation: it is not open for writing.
            OSError: EBUSY, another program writes a batch to the file; EFBIG, longer than 16 MiB; ENOTTY, EOPNOTSUPP,
                the file system or this mount has no batches. Others as the system's. Nothing has changed.
        """
        self._check(writing=True)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        view = memoryview(_as_bytes(data))
        descriptor = os.open(f"/proc/self/fd/{self.fileno()}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, f2fs.F2FS_IOC_START_ATOMIC_WRITE)
            done = 0
            while done < len(view):
                done += os.pwrite(descriptor, view[done:], offset + done)
            fcntl.ioctl(descriptor, f2fs.F2FS_IOC_COMMIT_ATOMIC_WRITE)
        finally:
            os.close(descriptor)
        return len(view)

    def flush(self, offset: int = 0, length: int | None = None) -> None:
        """Make writes durable; return when they are.

        With ``length`` only that range becomes durable, if all of it was granted for storing and no write past EOF is
        unreported: there is no request to the daemon, and times and other writes are left to a later flush.

        Raises:
            OSError: the system's; EIO if the medium failed.
        """
        self._check()
        cache = self._cache
        if cache is None or not self._writable:
            if self._writable:
                os.fsync(self._descriptor)
            return
        known = None if length is None or cache.appended_end else cache.committed_ranges(offset, offset + length)
        if known is not None:
            for start, count in known:
                cache.pool.flush(cache.pool.address + start, count)
            return
        cache.pool.sync()
        if cache.unreported or cache.appended_end:
            cache.report_stores(DURABLE)
        else:
            os.fsync(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor. Writes past EOF are reported first, so that the kernel knows the file size."""
        self._check()
        if self._cache is not None and self._cache.appended_end:
            self._cache.report_stores()
        return self._descriptor

    def readable(self) -> bool:
        """Return whether the file was opened for reading."""
        self._check()
        return self._readable

    def writable(self) -> bool:
        """Return whether the file was opened for writing."""
        self._check()
        return self._writable

    def seekable(self) -> bool:
        """Return True: every file has a position."""
        self._check()
        return True

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._descriptor < 0

    def close(self) -> None:
        """Report stores, give back what was granted past EOF, and close the descriptor. May be repeated.

        ``close`` makes nothing durable, as close(2) doesn't; ``flush`` does.
        """
        descriptor = self._descriptor
        if descriptor < 0:
            return
        try:
            self._end_direct_access("closed")
        finally:
            self._descriptor = -1
            os.close(descriptor)

    def _end_direct_access(self, why: str) -> None:
        """Report stores and give the lease back; later operations go through the kernel.

        The pool stays mapped while other threads copy from it.
        """
        cache = self._cache
        try:
            if cache is not None:
                cache.report_stores()
        finally:
            if cache is not None:
                cache.end_lease(why)
            self._cache, self._fast_path = None, self._no_cache
            # The pool is unmapped with the last file that needs it, also if this object lives on.
            self._memory, self._store = NO_EXTENT[4].cast("B"), None
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


class _NoCache:
    """The fast path of a file without direct access: no range lies in its extents."""

    __slots__ = ("active_stores", "appended_end", "read_extent", "unreported", "write_extent")

    def __init__(self) -> None:
        self.active_stores = self.appended_end = 0
        self.unreported = False
        self.read_extent = self.write_extent = NO_EXTENT


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
        path: the file's.
        mode: binary, as for the built-in ``open``: ``rb``, ``r+b``, ``wb``, ``w+b``, ``xb``, ``x+b``, ``ab``, ``a+b``.
        permissions: those of a new file, before the umask.

    Raises:
        ValueError: ``mode`` is another one.
        OSError: open(2)'s.
    """
    return DirectFile(path, mode, permissions)


_direct: weakref.WeakSet[DirectFile] = weakref.WeakSet()


def end_direct_access(pool: Pool | None, why: str) -> None:
    """Write back the stores of all open files of a pool (None: of every pool); the files then use the kernel.

    Raises:
        OSError: one file's stores could not be reported or written back. All files use the kernel nevertheless.
    """
    failed: OSError | None = None
    for file in list(_direct):
        cache = file._cache
        if cache is None or (pool is not None and cache.pool is not pool):
            continue
        try:
            try:
                cache.pool.sync()
            finally:
                file._end_direct_access(why)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def detach() -> None:
    """Unmap every pool that no live `Mapping` uses: for a program that is about to give up rights.

    Open files go through the kernel from now on. A file that is opened later attaches with the rights of that moment.

    Raises:
        OSError: a file's stores could not be reported or written back (the system's; EIO if the medium failed).
    """
    end_direct_access(None, "detached")
