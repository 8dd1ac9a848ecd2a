"""Asynchronous I/O by the kernel's own calls (io_submit(2)), which the standard library and most test tools lack."""

from __future__ import annotations

import ctypes
import mmap
import os
from types import TracebackType

IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209
"""System call numbers of x86-64."""
IOCB_CMD_PWRITE = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Iocb(ctypes.Structure):
    """struct iocb of include/uapi/linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fildes", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    ]


class Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("obj", ctypes.c_uint64),
        ("res", ctypes.c_int64),
        ("res2", ctypes.c_int64),
    ]


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Writer:
    """Writes one aligned buffer to a file in pieces that are all under way at once."""

    def __init__(self, descriptor: int, size: int, piece: int) -> None:
        self.memory = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        count = size // piece
        self._context = ctypes.c_ulong(0)
        _call(IO_SETUP, ctypes.c_uint(count), ctypes.byref(self._context))
        self._blocks = (Iocb * count)()
        for number, block in enumerate(self._blocks):
            block.data, block.opcode, block.fildes = number, IOCB_CMD_PWRITE, descriptor
            block.buf, block.nbytes, block.offset = address + number * piece, piece, number * piece
        pointers = [ctypes.addressof(block) for block in self._blocks]
        self._list = (ctypes.c_uint64 * count)(*pointers)
        self._events = (Event * count)()
        self._piece = piece

    def write(self) -> None:
        """Write all of `memory`; returns when the kernel has reported each piece as written."""
        left = len(self._blocks)
        begin = 0
        while begin < left:
            begin += _call(
                IO_SUBMIT,
                self._context,
                ctypes.c_long(left - begin),
                ctypes.c_void_p(ctypes.addressof(self._list) + 8 * begin),
            )
        while left:
            found = _call(IO_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(left), self._events, None)
            for event in self._events[:found]:
                assert event.res == self._piece, f"piece {event.data}: {event.res}"
            left -= found

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _call(IO_DESTROY, self._context)
