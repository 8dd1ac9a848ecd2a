"""Checksums against published check values and against bit-by-bit definitions."""

from __future__ import annotations

import random

import pytest

from daxfs.ext4.checksum import crc16, crc32c


def bitwise(seed: int, data: bytes, polynomial: int) -> int:
    for byte in data:
        seed ^= byte
        for _ in range(8):
            seed = seed >> 1 ^ (polynomial if seed & 1 else 0)
    return seed


def test_crc32c_check_value() -> None:
    # The catalogue's value has a final inversion, which ext4 leaves out.
    assert crc32c(0xFFFFFFFF, b"123456789") == 0xE3069283 ^ 0xFFFFFFFF


def test_crc16_check_value() -> None:
    assert crc16(0, b"123456789") == 0xBB3D


@pytest.mark.parametrize("length", [0, 1, 7, 64, 1000])
def test_against_the_definition(length: int) -> None:
    data = random.Random(length).randbytes(length)
    for seed in (0, 1, 0xFFFF, 0x12345678, 0xFFFFFFFF):
        assert crc32c(seed, data) == bitwise(seed, data, 0x82F63B78)
        assert crc16(seed & 0xFFFF, data) == bitwise(seed & 0xFFFF, data, 0xA001)


def test_continuing_equals_one_call_and_any_buffer_is_taken() -> None:
    data = bytes(range(256))
    for buffer in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert crc32c(crc32c(5, buffer[:100]), buffer[100:]) == crc32c(5, data)
        assert crc16(crc16(5, buffer[:100]), buffer[100:]) == crc16(5, data)
