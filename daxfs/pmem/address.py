"""Where the memory of a buffer lies, by CPython's buffer protocol: read-only buffers too, and without numpy.

numpy would do it as well, but takes longer to import than a client of direct access takes to start.
"""

from __future__ import annotations

import ctypes


class _Buffer(ctypes.Structure):
    """``Py_buffer`` (Include/cpython/object.h)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def address_of(memory: memoryview) -> int:
    """Return the address of the first byte of contiguous memory. It holds no reference: the mapping can be closed."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(buffer), 0)
    try:
        return int(buffer.buf)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
