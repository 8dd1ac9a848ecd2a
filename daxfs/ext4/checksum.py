"""Layer 3: the checksums of ext4, crc32c (metadata_csum) and crc16 (group descriptors under uninit_bg).

The functions read buffers and change nothing. The modules of the structures say which bytes a checksum covers and where
it is stored.
"""

from __future__ import annotations

from crc32c import crc32c as _crc32c

Buffer = bytes | bytearray | memoryview
_ONES = 0xFFFFFFFF


def crc32c(seed: int, data: Buffer) -> int:
    """Continue the crc32c ``seed`` over ``data``, without the usual inversions at both ends.

    This is the kernel's ``crc32c_le`` as ext4 and jbd2 use it: start with ``0xFFFFFFFF`` or with the result
    of another call. ``data`` is any contiguous buffer; it is not copied.
    """
    return _crc32c(data, seed ^ _ONES) ^ _ONES


def _crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)


_CRC16 = _crc16_table()


def crc16(seed: int, data: Buffer) -> int:
    """Continue the CRC-16 ``seed`` over ``data``: polynomial 0x8005, reflected, no inversion (lib/crc16.c)."""
    table = _CRC16
    for byte in bytes(data):
        seed = seed >> 8 ^ table[(seed ^ byte) & 0xFF]
    return seed
