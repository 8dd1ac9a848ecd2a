"""The pool: one range of mapped memory, and the only operations that change it.

`Pool` is what all layers above use, and what a pool in plain memory already does; `mapped.MappedPool` lies in a file or
device, and `opening.open_pool` opens one.

Readers slice ``pool.memory``. Writers use the pool's operations, so that each store is flushed and a recording pool
sees it. The pool knows nothing of its content: no block numbers, no format.

``write``, ``zero``, ``store_word``, ``flush`` and ``fence`` are attributes of the instance, not methods: closures that
are bound to the mapping when the pool is opened (see `persist`). A 4 KiB ``write`` to volatile memory costs 0.2 us.
Keep ``write = pool.write`` in a local variable where a loop calls it.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType

from daxfs.errors import FsError, PoolError
from daxfs.pmem import atomics, kinds, persist, storagequeue
from daxfs.pmem.address import address_of
from daxfs.pmem.badblocks import BadRanges
from daxfs.pmem.faults import NEVER, Faults
from daxfs.pmem.persist import Buffer, Operations
from daxfs.pmem.storage import Storage
from daxfs.pmem.storehook import StoreHook
from daxfs.runs import ByteRange


class Pool:
    """A pool in memory.

    Attributes:
        path: the path that was opened; messages name it.
        kind: ``file``, ``tmpfs``, ``fsdax``, ``block``, ``devdax`` or ``memory``.
        size: bytes in ``memory``: a multiple of 1 KiB, so that the incomplete last block of a file is left out.
        memory_size: bytes of ``memory`` that are memory, all of them unless `attach` has put storage after it.
        storages: the members that have what is not memory, in order; none as a rule.
        reader: how `stored` gets bytes; None: it reads them and waits.
        file_size: bytes of the file or device as the system reports it.
        align: alignment of the medium's own mapping in bytes (2 MiB on most devdax devices, else a page).
        read_only: whether stores raise EROFS.
        private: stores stay in this process's memory.
        persistence: ``libpmem``, ``msync`` or ``volatile``.
        status: fstat(2) of the mapped descriptor at its opening; None for a pool without a descriptor.
        memory: the whole mapping, format "B"; read-only if the pool is.
        write: ``write(offset, data)`` stores bytes and starts to flush them; durable after the next
            ``fence()``.
        zero: ``zero(offset, length)`` stores zeros and starts to flush them, as ``write`` does.
        store_word: ``store_word(offset, value, size=4)`` stores and starts to flush one aligned little-endian word of
            4 or 8 bytes, in a single machine store: a reader and a power cut see the old or the new word.
        flush: ``flush(offset, length)`` starts the write-back of stores that other code made into ``memory``.
        fence: ``fence()`` returns when everything flushed so far is durable; FsError EIO if the medium
            failed.
        reserve: `Reservation.reserve`, which makes sure that a range has memory; None where all of the pool has.
        faults: the loads and stores that met no memory. An operation that ends with one pending fails with
            ``faults.settle()``.
        bad: the ranges that are known to be bad; empty, and so false, as a rule.
        hook: what runs before each store (`hook_stores`); None as a rule.
        unhooked: the operations without the hook, for the hook's own stores.

    A range outside the pool raises ``ValueError``. Where memory is missing, all operations raise MissingMemory: EIO, or
    ENOSPC if the pool's file has holes that its file system can't fill.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        memory: memoryview,
        operations: Operations,
        *,
        read_only: bool = False,
        file_size: int | None = None,
        align: int = mmap.PAGESIZE,
        faults: Faults = NEVER,
        bad: BadRanges | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.memory = memory
        self.size = self.memory_size = len(memory)
        self.storages: tuple[Storage, ...] = ()
        self.reader: Callable[[int, int], memoryview] | None = None
        self.file_size = self.size if file_size is None else file_size
        self.align = align
        self.read_only = read_only
        self.persistence = operations.name
        self.private = False
        self.faults = faults
        self.bad = BadRanges(self.size) if bad is None else bad
        self.reserve: Callable[..., None] | None = None
        self.status: os.stat_result | None = None
        self.write: Callable[[int, Buffer], None] = operations.write
        self.zero: Callable[[int, int], None] = operations.zero
        self.store_word: Callable[..., None] = operations.store_word
        self.flush: Callable[[int, int], None] = operations.flush
        self.fence: Callable[[], None] = operations.fence
        self.hook: StoreHook | None = None
        self.unhooked = operations
        self._open = True

    def hook_stores(self, hook: StoreHook | None) -> None:
        """Have ``hook`` called before each store from now on; None: call nothing, and cost nothing.

        Bound operations that a caller keeps from before do not call the hook.
        """
        operations = self.unhooked if hook is None else persist.hooked(self.unhooked, hook)
        self.hook = hook
        self.write = operations.write
        self.zero = operations.zero
        self.store_word = operations.store_word

    def discard(self, offset: int, length: int) -> None:
        """Give the memory of a range, whose content is no longer needed, back to the system.

        The range reads as zeros afterwards; on a block device the device determines what it reads as.

        Raises:
            FsError: EOPNOTSUPP: this kind of pool can't give memory back. Another errno: the system call failed.
        """
        self._check_range(offset, length)
        raise FsError(errno.EOPNOTSUPP, f"{self.path}: a pool of kind {self.kind} can't give memory back")

    def make_room(self, offset: int, length: int) -> None:
        """Make sure that a range has memory, where the pool's file may have holes; as `Reservation.reserve`."""
        if self.reserve is not None:
            self.reserve(offset, length)

    def prefault(self, offset: int, length: int) -> None:
        """Have the pages of a range mapped that is about to be stored to for the first time: one call costs a quarter
        of what their page faults cost. Where that is not possible, it does nothing.
        """

    def has_no_room_for_holes(self) -> bool:
        """Return whether the pool's file has holes, and its file system has (almost) no room to fill them."""
        return False

    def sync_file(self) -> None:
        """Make durable where the blocks of the pool's file lie, so that a write-back of cache lines is all that a store
        needs. Other code need not call it: an msync(2) does that, and so does the first touch of a hole with MAP_SYNC.

        Raises:
            FsError: the system call failed.
        """

    def data_ranges(self) -> Iterator[ByteRange]:
        """Yield the ranges [first, end) that are not holes of the pool's file, in order; a hole reads as zeros.

        What was cut off the file while it was in use is no hole: its memory is missing.
        """
        yield ByteRange(0, self.size)

    def rewrite(self, offset: int, data: Buffer) -> bool:  # noqa: ARG002
        """Store whole pages over bad memory through the device or the file, durably.

        Returns:
            True: they hold the data and are good again. False: the platform can't mend them.
        """
        return False

    def available(self) -> int:
        """Return how many bytes the pool could have: those of the file or device as it is now."""
        return self.size

    @property
    def extensible(self) -> bool:
        """Whether `extend` can make the pool's file longer; what lies under other pools has the length that it has."""
        return False

    def refuse_cut_file(self) -> None:
        """Refuse to change the size (EIO) of a pool whose file was cut while it was in use.

        What is missing would become a hole, and read as zeros.
        """

    def extend(self, length: int) -> None:
        """Make the pool larger: to at least ``length`` bytes, and to all that the file or device has.

        ``memory`` is then another view of the same bytes and more; older views stay valid. Bound operations work on the
        larger pool.

        Raises:
            FsError: EOPNOTSUPP, this kind of pool stays as large as it is; ENOSPC, the device is smaller; or the
                system's. Nothing has changed.
        """
        raise FsError(errno.EOPNOTSUPP, f"{self.path}: a pool of kind {self.kind} can't have {length} bytes")

    def attach(self, memory: int, length: int, storages: Sequence[Storage] = ()) -> None:  # noqa: ARG002
        """Let ``length`` bytes of storage follow the first ``memory`` bytes of the pool, which are then all of it.

        Storage has addresses and no memory: each load and store there is a fault, as where memory is missing. So code
        that does not know about storage gets EIO. The pool closes ``storages``; none: nobody reads what lies there. A
        later call with the same memory makes the storage longer or shorter; of members that go the caller disposes.

        Raises:
            PoolError: this kind of pool can't have storage, or there are not so many addresses. Nothing has changed.
        """
        raise PoolError(f"{self.path}: a pool of kind {self.kind} can't have storage", kinds.MOUNT_FAILED)

    def stored(self, offset: int, length: int) -> memoryview:
        """Return a copy of bytes on storage, all on one member.

        Raises:
            FsError: EIO, or the member's own error.
            OnStorage: `reader` has to get them first.
        """
        if self.reader is not None:
            return self.reader(offset, length)
        storage = self._member(offset)
        begin = offset - storage.place.begin
        return memoryview(storagequeue.at_once(storage, lambda: storage.read(begin, length)))

    def store_there(self, blocks: Mapping[int, bytes]) -> None:
        """Store blocks on storage, by their offsets, durably when the call returns. Without members they are lost.

        Raises:
            FsError: EIO, or the member's own error.
        """
        for storage in self.storages:
            begin, end = storage.place
            mine = {offset - begin: content for offset, content in blocks.items() if begin <= offset < end}
            if mine:
                storagequeue.at_once(storage, partial(storage.write_all, mine))

    def _member(self, offset: int) -> Storage:
        for storage in self.storages:
            if offset < storage.place.end:
                return storage
        raise FsError(errno.EIO, f"{self.path}: the storage with byte {offset} is not in use here")

    def shorten(self, length: int) -> None:
        """Make the pool and its file ``length`` bytes long, whose end is not used any more; a device stays as it is.

        ``memory`` is then a shorter view. Older views stay valid up to that length; nobody may look past it.

        Raises:
            FsError: EROFS; or the system's, the file can't be cut: it stays longer.
        """

    def mapped_elsewhere(self, but: int | None = None) -> bool:  # noqa: ARG002
        """Return whether clients still map this pool, those of the mount with lock number ``but`` excepted."""
        return False

    def mapped_by_readers(self) -> bool:
        """Return whether clients of read-only mounts still map this pool."""
        return self.mapped_elsewhere()

    def other_owner(self) -> str:
        """Return the loop device through which another program uses the pool, or "" (see `loopguard`)."""
        return ""

    def refuse_clients(self) -> None:
        """Raise PoolError if clients still map this pool."""

    @property
    def block_store(self) -> Callable[[int, Buffer], None]:
        """How to store whole blocks: `replace` if memory of the pool is bad or may be missing, else `write`."""
        return self.replace if self.bad or self.reserve is not None else self.write

    def replace(self, offset: int, data: Buffer) -> None:
        """Store whole blocks whose old content is no longer needed as `write` does, over bad memory by `rewrite`."""
        if not (self.bad and self.bad.first(offset, offset + len(data)) and self.rewrite(offset, data)):
            self.write(offset, data)

    def store_bit(self, offset: int, bit: int, value: bool) -> int:
        """Set or clear one bit of the aligned 32-bit word at ``offset``, which other processes may change meanwhile.

        Returns:
            The word as it is afterwards. It is durable with the next fence.
        """
        self._check_range(offset, 4)
        atomics.store_bit(address_of(self.memory) + offset, bit, value)
        self.flush(offset, 4)
        return int.from_bytes(self.memory[offset : offset + 4], sys.byteorder)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at offset {offset} are outside the pool's {self.size} bytes")

    def close(self) -> None:
        """Release the mapping and the claim on the pool. A second call does nothing.

        Stores that were not fenced may or may not become durable. A view of ``memory`` that is still referenced stays
        readable: the mapping then ends with the last view.
        """
        if self._open:
            self._open = False
            self.reader = None
            for storage in self.storages:
                storage.close()
            self.unhooked.retire()
            _release(self.memory)
            self._unmap()

    def _unmap(self) -> None:
        """Release what a subclass owns, after the views were released."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path} {self.kind} {self.size} bytes, {self.persistence}>"


def _release(memory: memoryview) -> None:
    """Release a view; if buffers made of it keep it, collect those that only a reference cycle keeps alive."""
    try:
        memory.release()
    except BufferError:
        gc.collect()
        with suppress(BufferError):  # a buffer is still in use: the mapping ends with it
            memory.release()
