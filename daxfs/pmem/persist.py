"""How stores become durable: libpmem's cache-line write-back, msync, or nothing at all for volatile memory.

Each maker below returns `Operations`: six closures over one mapping, bound once, because a closure call with local
variables is the cheapest call CPython has, and these run for every block that is written. This module chooses and makes
them; it opens and maps nothing. Only the modules of this layer call it.

Rules that hold for all of them:

1. A range outside the mapping raises ``ValueError`` before anything is stored.
2. A store is durable after the first ``fence`` that follows it; nothing is promised before.
3. A failed msync stays failed: the kernel marks the pages clean after an error, so that a second msync would
   report success for data that was lost. Every later fence raises the same EIO.
4. After ``retire`` each store raises ``ValueError``; no closure keeps a way to write through a raw address.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from daxfs.errors import FsError, PoolError
from daxfs.pmem import kinds
from daxfs.pmem.address import address_of

if TYPE_CHECKING:
    from daxfs.errors import MissingMemory
    from daxfs.pmem.faults import Faults
    from daxfs.pmem.storehook import StoreHook

Buffer: TypeAlias = bytes | bytearray | memoryview  # of bytes: contiguous, format "B"

LIBPMEM, MSYNC, VOLATILE = "libpmem", "msync", "volatile"

_NODRAIN = 1  # PMEM_F_MEM_NODRAIN, libpmem.h
_STREAM = 4096  # from this size on libpmem's non-temporal copy costs less than store + flush (1 MiB: a third)
_ZEROS = memoryview(bytes(256 << 10))
_PAGE_MASK = ~(mmap.PAGESIZE - 1)


class Operations(NamedTuple):
    """The operations of one mapping; ``daxfs info`` shows ``name``.

    ``retire`` and ``follow_size`` are the pool's: after ``follow_size(memory)`` all of them, also those that callers
    keep, work on a longer or shorter view of the same bytes.
    """

    name: str
    write: Callable[[int, Buffer], None]
    zero: Callable[[int, int], None]
    store_word: Callable[..., None]
    flush: Callable[[int, int], None]
    fence: Callable[[], None]
    retire: Callable[[], None]
    follow_size: Callable[[memoryview], None]


class Library(NamedTuple):
    """The functions of libpmem that this module uses (libpmem(7)); addresses are plain integers."""

    flush: Callable[[int, int], None]
    drain: Callable[[], None]
    copy: Callable[[int, object, int, int], None]
    fill: Callable[[int, int, int, int], None]


@functools.cache
def load_libpmem(name: str = "libpmem.so.1") -> Library | None:
    """Load libpmem; None if it is not installed.

    ``PyDLL`` keeps the interpreter lock during a call: the calls last about as long as releasing the lock and taking it
    again.
    """
    try:
        library = ctypes.PyDLL(name)
        flush, drain = library.pmem_flush, library.pmem_drain
        copy, fill = library.pmem_memcpy, library.pmem_memset
    except (OSError, AttributeError):
        return None
    flush.argtypes, flush.restype = [ctypes.c_void_p, ctypes.c_size_t], None
    drain.argtypes, drain.restype = [], None
    copy.argtypes, copy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint], None
    fill.argtypes, fill.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint], None
    return Library(flush, drain, copy, fill)


def choose(path: str, kind: str, forced: str | None, *, read_only: bool = False) -> str:
    """Choose the persistence for a pool of ``kind``: ``libpmem``, ``msync`` or ``volatile``.

    Cache-line write-back makes a store durable only where the mapping is the medium itself (devdax, and fsdax
    mapped with MAP_SYNC). Elsewhere a page cache lies between mapping and medium, and only msync reaches the medium.
    That includes block devices, /dev/pmem among them: the kernel maps them through the page cache (block/fops.c).
    A tmpfs file has no medium.

    Args:
        path: for messages.
        kind: one of ``kinds``' names; ``fsdax`` means that MAP_SYNC was granted.
        forced: the user's choice, taken if it can work at all; None: choose by ``kind``.
        read_only: nothing will be stored, so no library is needed.

    Raises:
        PoolError: the name is unknown; libpmem is requested or needed, and is not installed; or msync on devdax.
    """
    if forced not in (None, LIBPMEM, MSYNC, VOLATILE):
        raise PoolError(f"persistence={forced} is unknown; use libpmem, msync or volatile", 1)
    if forced == MSYNC and kind == kinds.DEVDAX:
        raise PoolError(f"{path} is a devdax device, which can't msync; use persistence=libpmem", kinds.MOUNT_FAILED)
    if forced in (MSYNC, VOLATILE):
        return forced
    if forced == LIBPMEM or kind == kinds.DEVDAX:
        if load_libpmem() is not None:
            return LIBPMEM
        if read_only:
            return VOLATILE
        text = f"{path} needs libpmem to flush its stores, and it is not installed; apt install libpmem1"
        raise PoolError(text, kinds.MOUNT_FAILED)
    if kind == kinds.FSDAX:
        return MSYNC if load_libpmem() is None else LIBPMEM
    return VOLATILE if kind in (kinds.TMPFS, kinds.MEMORY) else MSYNC


def refusing(name: str) -> Operations:
    """Make the operations of a read-only mapping: each store raises EROFS, flush and fence do nothing."""

    def refuse(*_: object) -> None:
        raise FsError(errno.EROFS, "the pool is open read-only")

    return Operations(name, refuse, refuse, refuse, _nothing, _nothing, _nothing, _nothing)


def volatile(memory: memoryview) -> Operations:
    """Make the operations of memory without a medium: a store is a plain copy."""
    size = len(memory)
    store_word, release, use_words = _word_store(memory)

    def write(offset: int, data: Buffer) -> None:
        # Python cuts the slice at the end of the memory; assigning data of another length then raises ValueError.
        if offset < 0:
            raise _outside(offset, len(data), size)
        memory[offset : offset + len(data)] = data

    def zero(offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > size:
            raise _outside(offset, length, size)
        _clear(memory, offset, length)

    def follow_size(view: memoryview) -> None:
        nonlocal memory, size
        memory, size = view, len(view)
        use_words(view)

    return Operations(VOLATILE, write, zero, store_word, _nothing, _nothing, release, follow_size)


def msync(memory: memoryview, synchronise: Callable[[int, int], None]) -> Operations:
    """Make the operations of memory that a page cache backs; ``synchronise(offset, length)`` is msync(2) of a range.

    The fence is one msync over the hull of all ranges since the last fence. msync writes dirty pages only, and each
    call costs a commit or a cache flush of the device below (16 scattered pages: 0.25 ms instead of 1.0 ms).
    """
    size = len(memory)
    low, high = size, 0
    failed: OSError | None = None
    set_word, release, use_words = _word_store(memory)

    def write(offset: int, data: Buffer) -> None:
        nonlocal low, high
        end = offset + len(data)
        if offset < 0:
            raise _outside(offset, len(data), size)
        memory[offset:end] = data
        low, high = min(low, offset), max(high, end)

    def flush(offset: int, length: int) -> None:
        nonlocal low, high
        if offset < 0 or length < 0 or offset + length > size:
            raise _outside(offset, length, size)
        low, high = min(low, offset), max(high, offset + length)

    def zero(offset: int, length: int) -> None:
        flush(offset, length)
        _clear(memory, offset, length)

    def store_word(offset: int, value: int, size: int = 4) -> None:
        set_word(offset, value, size)
        flush(offset, size)

    def fence() -> None:
        nonlocal low, high, failed
        if failed is not None:
            raise FsError(errno.EIO, f"write-back of the pool failed before ({failed})")
        if low < high:
            start = low & _PAGE_MASK
            try:
                synchronise(start, high - start)
            except OSError as error:
                failed = error
                raise FsError(errno.EIO, f"write-back of the pool failed ({error})") from error
            low, high = size, 0

    def follow_size(view: memoryview) -> None:
        nonlocal memory, size, low
        low = low if low < high else len(view)
        memory, size = view, len(view)
        use_words(view)

    return Operations(MSYNC, write, zero, store_word, flush, fence, release, follow_size)


def libpmem(memory: memoryview, library: Library) -> Operations:
    """Make the operations of memory that is the medium: stores write cache lines back, the fence waits for them."""
    base = address_of(memory)
    limit = len(memory)
    write_back, drain, copy, fill = library
    set_word, release, use_words = _word_store(memory)
    first_byte = ctypes.c_char.from_buffer

    def write(offset: int, data: Buffer) -> None:
        length = len(data)
        end = offset + length
        if offset < 0 or end > limit:
            raise _outside(offset, length, limit)
        if length >= _STREAM:
            if type(data) is bytes:
                copy(base + offset, data, length, _NODRAIN)
                return
            try:
                copy(base + offset, ctypes.byref(first_byte(data)), length, _NODRAIN)
                return
            except TypeError:  # a read-only view: ctypes gives no address of one
                pass
        memory[offset:end] = data
        write_back(base + offset, length)

    def flush(offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > limit:
            raise _outside(offset, length, limit)
        write_back(base + offset, length)

    def zero(offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > limit:
            raise _outside(offset, length, limit)
        fill(base + offset, 0, length, _NODRAIN)

    def store_word(offset: int, value: int, size: int = 4) -> None:
        set_word(offset, value, size)
        write_back(base + offset, size)

    def retire() -> None:
        nonlocal limit
        limit = -1
        release()

    def follow_size(view: memoryview) -> None:
        nonlocal memory, base, limit
        memory, base, limit = view, address_of(view), len(view)
        use_words(view)

    return Operations(LIBPMEM, write, zero, store_word, flush, drain, retire, follow_size)


def guarded(operations: Operations, faults: Faults) -> Operations:
    """The same operations on memory that may be missing (`daxfs.pmem.faults`).

    None of them stores anything while a fault is pending, and each raises the error of a fault that it met. What
    `write` and `zero` themselves meet holds data of files, since only commits store metadata (docs/DESIGN.md, D1). Each
    is written out: CPython specialises a call for the function that is called there, and one wrapper that all of them
    share makes a 4 KiB write a tenth slower.
    """
    pending, settle = faults.pending, faults.settle
    store, clear, set_word = operations.write, operations.zero, operations.store_word
    write_back, drain = operations.flush, operations.fence

    def settle_data() -> MissingMemory:
        error = settle()
        error.of_data = True
        return error

    def write(offset: int, data: Buffer) -> None:
        if pending[0]:
            raise settle()
        store(offset, data)
        if pending[0]:
            raise settle_data()

    def zero(offset: int, length: int) -> None:
        if pending[0]:
            raise settle()
        clear(offset, length)
        if pending[0]:
            raise settle_data()

    def store_word(offset: int, value: int, size: int = 4) -> None:
        if pending[0]:
            raise settle()
        set_word(offset, value, size)
        if pending[0]:
            raise settle()

    def flush(offset: int, length: int) -> None:
        if pending[0]:
            raise settle()
        write_back(offset, length)

    def fence() -> None:
        if pending[0]:
            raise settle()
        drain()

    return operations._replace(write=write, zero=zero, store_word=store_word, flush=flush, fence=fence)


def hooked(operations: Operations, hook: StoreHook) -> Operations:
    """The same operations, with a call of ``hook.before(offset, length)`` ahead of each store that may need it.

    A store looks at the chunks' bits itself, which costs less than the call: at the bytes that hold them if it goes to
    more than one chunk. Outside of the pool there may be no bit; then the store itself refuses.
    """
    store, clear, set_word = operations.write, operations.zero, operations.store_word
    before, needed, bits = hook.before, hook.needed, hook.bits
    count = needed.count

    def write(offset: int, data: Buffer) -> None:
        size = len(data)
        chunk, last = offset >> bits, offset + size - 1 >> bits
        try:
            if last == chunk:
                if needed[chunk >> 3] >> (chunk & 7) & 1:
                    before(offset, size)
            else:
                low, high = chunk >> 3, (last >> 3) + 1
                if count(0, low, high) != high - low:
                    before(offset, size)
        except IndexError:
            pass
        store(offset, data)

    def zero(offset: int, length: int) -> None:
        before(offset, length)
        clear(offset, length)

    def store_word(offset: int, value: int, size: int = 4) -> None:
        chunk = offset >> bits
        try:
            if needed[chunk >> 3] >> (chunk & 7) & 1:
                before(offset, size)
        except IndexError:
            pass
        set_word(offset, value, size)

    return operations._replace(write=write, zero=zero, store_word=store_word)


def _word_store(
    memory: memoryview,
) -> tuple[Callable[[int, int, int], None], Callable[[], None], Callable[[memoryview], None]]:
    """Return a function that stores one aligned word with a single machine store, one that releases its views, and one
    that has it store to another view.
    """
    words = {4: memory.cast("I"), 8: memory.cast("Q")}
    total = len(memory)

    def store_word(offset: int, value: int, size: int = 4) -> None:
        if offset < 0 or offset % size or offset + size > total:
            raise ValueError(f"no aligned word of {size} bytes at offset {offset} of {total}")
        words[size][offset // size] = value

    def release() -> None:
        for each in words.values():
            each.release()

    def follow_size(view: memoryview) -> None:
        nonlocal words, total
        release()
        words = {4: view.cast("I"), 8: view.cast("Q")}
        total = len(view)

    return store_word, release, follow_size


def _clear(memory: memoryview, offset: int, length: int) -> None:
    chunk = len(_ZEROS)
    end = offset + length
    while offset < end:
        step = min(chunk, end - offset)
        memory[offset : offset + step] = _ZEROS[:step]
        offset += step


def _outside(offset: int, length: int, size: int) -> ValueError:
    return ValueError(f"{length} bytes at offset {offset} are outside the pool's {size} bytes, or the pool is closed")


def _nothing(*_: object) -> None:
    return None
