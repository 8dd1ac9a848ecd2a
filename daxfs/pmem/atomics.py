"""Layer 1: one bit of a word that other processes change at the same time, by an atomic instruction.

Python has none. The kernel does one on behalf of its caller: futex(2) with FUTEX_WAKE_OP changes a word of the caller's
memory, and then wakes whoever sleeps on it, here nobody. Callers use `daxfs.pmem.pool.Pool.store_bit`.
"""

from __future__ import annotations

import ctypes
import platform

from daxfs.pmem.libc import last_error

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}.get(platform.machine())
_WAKE_OP, _PRIVATE = 5, 128
_OR, _ANDN, _BIT_NUMBER = 2, 3, 8  # the operand is the number of a bit

AVAILABLE = _FUTEX is not None
"""Whether there is such an instruction here."""


def store_bit(address: int, bit: int, value: bool) -> None:
    """Set or clear a bit of the aligned 32-bit word at ``address``; its other bits stay what they are.

    Args:
        address: of the word, which is mapped for writing.
        bit: its number, 0 for the bit of value 1.
        value: what the bit becomes.

    Raises:
        OSError: the kernel refused.
    """
    assert _FUTEX is not None
    operation = (_OR if value else _ANDN) | _BIT_NUMBER
    idle = ctypes.c_uint32()
    done = _syscall(
        ctypes.c_long(_FUTEX),
        ctypes.byref(idle),
        ctypes.c_int(_WAKE_OP | _PRIVATE),
        ctypes.c_int(0),
        ctypes.c_void_p(0),
        ctypes.c_void_p(address),
        ctypes.c_int((operation << 28 | bit << 12) - (1 << 32 if operation & 8 else 0)),
    )
    if done < 0:
        raise last_error()
