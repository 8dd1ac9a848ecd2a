"""Layer 3: the hashes of names that order an indexed directory.

There are three algorithms (legacy, half MD4, TEA), each in a variant for platforms with signed ``char`` and one for
unsigned ``char``; the superblock and the directory select one. ``dirhash`` hashes one name and caches recent results.
``dirhash_many`` hashes all names of a block or directory at once with numpy. The module knows nothing of directories.
Callers: ``structures/``.

Names have up to 255 bytes. Sources: ``fs/ext4/hash.c``; the transforms are the public half-MD4 and TEA
(Davies-Meyer).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from daxfs.errors import Corrupt, CorruptKind

LEGACY = 0
HALF_MD4 = 1
TEA = 2
LEGACY_UNSIGNED = 3
HALF_MD4_UNSIGNED = 4
TEA_UNSIGNED = 5


HTREE_EOF = 0x7FFFFFFF  # the value of (hash >> 1) that marks the end of a directory stream

Seed = tuple[int, int, int, int]
Words = NDArray[np.uint32]

_M = 0xFFFFFFFF
_DEFAULT_SEED = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_TEA_SUMS = tuple(0x9E3779B9 * i & _M for i in range(1, 17))
_WORDS = {4: struct.Struct(">4I"), 8: struct.Struct(">8I")}


def effective_version(version: int, hash_unsigned: bool) -> int:
    """Return the hash version to use: the unsigned variant of a directory's version if the superblock asks for it."""
    return version + 3 if hash_unsigned and version <= TEA else version


@lru_cache(maxsize=8192)
def dirhash(name: bytes, version: int, seed: Seed) -> tuple[int, int]:
    """Return the hash of one name.

    Args:
        name: up to 255 bytes.
        version: 0 to 5 (``effective_version``).
        seed: ``s_hash_seed`` as four 32-bit words; all zeros mean the default seed.

    Returns:
        (major, minor), 32 bits each. Bit 0 of major is clear, and major is never the end-of-directory mark.
        The minor of the legacy hash is 0.

    Raises:
        Corrupt: the version is unknown (SipHash, of encrypted directories, is unknown too).
    """
    state = seed if seed[0] or seed[1] or seed[2] or seed[3] else _DEFAULT_SEED
    if version in (HALF_MD4, HALF_MD4_UNSIGNED):
        signed = version == HALF_MD4 and not name.isascii()
        a, b, c, d = state
        for start in range(0, len(name), 32):
            a, b, c, d = _half_md4(a, b, c, d, *_words(name, start, 8, signed))
        major, minor = b, c
    elif version in (TEA, TEA_UNSIGNED):
        signed = version == TEA and not name.isascii()
        major, minor = state[0], state[1]
        for start in range(0, len(name), 16):
            major, minor = _tea(major, minor, *_words(name, start, 4, signed))
    elif version in (LEGACY, LEGACY_UNSIGNED):
        major, minor = _legacy(name, version == LEGACY), 0
    else:
        raise Corrupt(CorruptKind.DIRECTORY_HASH_VERSION, str(version))
    major &= 0xFFFFFFFE
    return (major if major != HTREE_EOF << 1 else (HTREE_EOF - 1) << 1), minor


def _words(name: bytes, start: int, count: int, signed: bool) -> tuple[int, ...]:
    """Return ``count`` big-endian words of the name from ``start``, padded with the remaining length.

    In the last, partial word the padding comes before the characters. Where ``char`` is signed, a character of 0x80 or
    above counts 256 less, which borrows from the characters and the padding before it.
    """
    rest = len(name) - start
    size = 4 * count
    if rest >= size:
        if signed:
            return tuple(w - ((w & 0x80808080) << 1) & _M for w in _WORDS[count].unpack_from(name, start))
        return _WORDS[count].unpack_from(name, start)
    fill = bytes((rest,))
    whole = rest & ~3
    text = name[start : start + whole]
    if rest & 3:
        text += fill * (4 - (rest & 3)) + name[start + whole :]
    words = _WORDS[count].unpack(text.ljust(size, fill))
    if not signed:
        return words
    used = (rest + 3) // 4
    # The bytes of each word that are characters: all of a whole word, the lower ones of a partial word.
    masks = [0x80808080] * (rest // 4)
    if rest & 3:
        masks.append(0x80808080 & (1 << 8 * (rest & 3)) - 1)
    return tuple(w - ((w & m) << 1) & _M for w, m in zip(words, masks, strict=False)) + words[used:]


def _legacy(name: bytes, signed: bool) -> int:
    older, newer = 0x37ABE8F9, 0x12A3FE2D
    for char in name:
        if signed and char > 127:
            char -= 256
        value = older + (newer ^ char * 7152373) & _M
        if value & 0x80000000:
            value = value - 0x7FFFFFFF
        older, newer = newer, value
    return newer << 1 & _M


def _tea(b0: int, b1: int, a: int, b: int, c: int, d: int) -> tuple[int, int]:
    x, y = b0, b1
    for total in _TEA_SUMS:
        x = x + (((y << 4) + a) ^ (y + total) ^ ((y >> 5) + b)) & _M
        y = y + (((x << 4) + c) ^ (x + total) ^ ((x >> 5) + d)) & _M
    return b0 + x & _M, b1 + y & _M


def _half_md4(
    a0: int, b0: int, c0: int, d0: int, i0: int, i1: int, i2: int, i3: int, i4: int, i5: int, i6: int, i7: int
) -> tuple[int, int, int, int]:
    """Transform one block; unrolled, because a loop takes twice as long.

    Only the value that is rotated right needs to be cut to 32 bits: the left shift leaves bits above bit 31, which
    never reach the lower ones.
    """
    a, b, c, d = a0, b0, c0, d0
    t = a + (d ^ (b & (c ^ d))) + i0 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + (c ^ (a & (b ^ c))) + i1 & 0xFFFFFFFF
    d = t << 7 | t >> 25
    t = c + (b ^ (d & (a ^ b))) + i2 & 0xFFFFFFFF
    c = t << 11 | t >> 21
    t = b + (a ^ (c & (d ^ a))) + i3 & 0xFFFFFFFF
    b = t << 19 | t >> 13
    t = a + (d ^ (b & (c ^ d))) + i4 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + (c ^ (a & (b ^ c))) + i5 & 0xFFFFFFFF
    d = t << 7 | t >> 25
    t = c + (b ^ (d & (a ^ b))) + i6 & 0xFFFFFFFF
    c = t << 11 | t >> 21
    t = b + (a ^ (c & (d ^ a))) + i7 & 0xFFFFFFFF
    b = t << 19 | t >> 13
    t = a + ((b & c) + ((b ^ c) & d)) + i1 + 0x5A827999 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + ((a & b) + ((a ^ b) & c)) + i3 + 0x5A827999 & 0xFFFFFFFF
    d = t << 5 | t >> 27
    t = c + ((d & a) + ((d ^ a) & b)) + i5 + 0x5A827999 & 0xFFFFFFFF
    c = t << 9 | t >> 23
    t = b + ((c & d) + ((c ^ d) & a)) + i7 + 0x5A827999 & 0xFFFFFFFF
    b = t << 13 | t >> 19
    t = a + ((b & c) + ((b ^ c) & d)) + i0 + 0x5A827999 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + ((a & b) + ((a ^ b) & c)) + i2 + 0x5A827999 & 0xFFFFFFFF
    d = t << 5 | t >> 27
    t = c + ((d & a) + ((d ^ a) & b)) + i4 + 0x5A827999 & 0xFFFFFFFF
    c = t << 9 | t >> 23
    t = b + ((c & d) + ((c ^ d) & a)) + i6 + 0x5A827999 & 0xFFFFFFFF
    b = t << 13 | t >> 19
    t = a + (b ^ c ^ d) + i3 + 0x6ED9EBA1 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + (a ^ b ^ c) + i7 + 0x6ED9EBA1 & 0xFFFFFFFF
    d = t << 9 | t >> 23
    t = c + (d ^ a ^ b) + i2 + 0x6ED9EBA1 & 0xFFFFFFFF
    c = t << 11 | t >> 21
    t = b + (c ^ d ^ a) + i6 + 0x6ED9EBA1 & 0xFFFFFFFF
    b = t << 15 | t >> 17
    t = a + (b ^ c ^ d) + i1 + 0x6ED9EBA1 & 0xFFFFFFFF
    a = t << 3 | t >> 29
    t = d + (a ^ b ^ c) + i5 + 0x6ED9EBA1 & 0xFFFFFFFF
    d = t << 9 | t >> 23
    t = c + (d ^ a ^ b) + i0 + 0x6ED9EBA1 & 0xFFFFFFFF
    c = t << 11 | t >> 21
    t = b + (c ^ d ^ a) + i4 + 0x6ED9EBA1 & 0xFFFFFFFF
    b = t << 15 | t >> 17
    return a0 + a & _M, b0 + b & _M, c0 + c & _M, d0 + d & _M


# Many names at once

FEW_NAMES = 16
"""From this number of names on, arrays pay. One array operation costs about as much as hashing a short name, and the
hash of a single name may be cached."""


def dirhash_many(names: Sequence[bytes], version: int, seed: Seed) -> tuple[Words, Words]:
    """Return the hashes of all names: two arrays (major, minor) of uint32, in the order of ``names``."""
    state = seed if any(seed) else _DEFAULT_SEED
    if len(names) < FEW_NAMES:
        return _one_by_one(names, version, seed)
    if version in (HALF_MD4, HALF_MD4_UNSIGNED):
        rows = _hash_rows(names, version == HALF_MD4, state, 8, _half_md4_rows)
        major, minor = rows[1], rows[2]
    elif version in (TEA, TEA_UNSIGNED):
        rows = _hash_rows(names, version == TEA, state[:2], 4, _tea_rows)
        major, minor = rows[0], rows[1]
    else:
        return _one_by_one(names, version, seed)
    major &= np.uint32(0xFFFFFFFE)
    major[major == HTREE_EOF << 1] = (HTREE_EOF - 1) << 1
    return major, minor


def _one_by_one(names: Sequence[bytes], version: int, seed: Seed) -> tuple[Words, Words]:
    table = np.array([dirhash(name, version, seed) for name in names], dtype=np.uint32).reshape(len(names), 2)
    return table[:, 0].copy(), table[:, 1].copy()


def _hash_rows(
    names: Sequence[bytes],
    signed: bool,
    state: Sequence[int],
    count: int,
    transform: Callable[[list[Words], list[Words]], list[Words]],
) -> list[Words]:
    """Run ``transform`` over all names, ``count`` words at a time; a name that has ended keeps its state."""
    size = 4 * count
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    blocks = (int(lengths.max(initial=0)) + size - 1) // size
    width = max(blocks, 1) * size
    text = np.frombuffer(b"".join([name.ljust(width, b"\0") for name in names]), dtype=">u4")
    table = text.reshape(len(names), width // 4).astype(np.uint64)
    rows = [np.full(len(names), word, dtype=np.uint32) for word in state]
    for block in range(blocks):
        rest = lengths - block * size
        words = _fill_rows(table[:, block * count : (block + 1) * count], rest, signed)
        live = rest > 0
        rows = [np.where(live, new, old) for new, old in zip(transform(rows, words), rows, strict=True)]
    return rows


def _fill_rows(words: NDArray[np.uint64], rest: NDArray[np.int64], signed: bool) -> list[Words]:
    """Return the words of one block of each name, padded as in ``_words``; in 64 bits, so that shifts by 32 work."""
    fill = np.maximum(rest, 0).astype(np.uint64) * np.uint64(0x01010101)
    chars = rest[:, None] - np.arange(0, 4 * words.shape[1], 4)
    np.maximum(chars, 0, out=chars)
    np.minimum(chars, 4, out=chars)
    bits = (chars << 3).astype(np.uint64)
    value = words >> (np.uint64(32) - bits)
    if signed:
        value -= (value & np.uint64(0x80808080)) << np.uint64(1)
    value += fill[:, None] << bits
    return list(np.ascontiguousarray((value & np.uint64(_M)).astype(np.uint32).T))


_SHIFTS = [np.uint32(bits) for bits in range(32)]
_ROUND1 = ((0, 3), (1, 7), (2, 11), (3, 19), (4, 3), (5, 7), (6, 11), (7, 19))
_ROUND2 = ((1, 3), (3, 5), (5, 9), (7, 13), (0, 3), (2, 5), (4, 9), (6, 13))
_ROUND3 = ((3, 3), (7, 9), (2, 11), (6, 15), (1, 3), (5, 9), (0, 11), (4, 15))


def _rotated(value: Words, bits: int) -> Words:
    """Return ``value`` rotated left. ``value`` is overwritten, because allocating arrays costs most of the time."""
    result = value << _SHIFTS[bits]
    value >>= _SHIFTS[32 - bits]
    result |= value
    return result


def _half_md4_rows(state: list[Words], words: list[Words]) -> list[Words]:
    """Transform one block of many names; (a, b, c, d) rotate by one position with each step."""
    a, b, c, d = state
    for i, bits in _ROUND1:
        t = c ^ d
        t &= b
        t ^= d
        t += a
        t += words[i]
        a, b, c, d = d, _rotated(t, bits), b, c
    added = [word + np.uint32(0x5A827999) for word in words]
    for i, bits in _ROUND2:
        t = b ^ c
        t &= d
        t += b & c
        t += a
        t += added[i]
        a, b, c, d = d, _rotated(t, bits), b, c
    added = [word + np.uint32(0x6ED9EBA1) for word in words]
    for i, bits in _ROUND3:
        t = b ^ c
        t ^= d
        t += a
        t += added[i]
        a, b, c, d = d, _rotated(t, bits), b, c
    return [old + new for old, new in zip(state, (a, b, c, d), strict=True)]


def _tea_rows(state: list[Words], words: list[Words]) -> list[Words]:
    x, y = state
    a, b, c, d = words
    four, five = np.uint32(4), np.uint32(5)
    for total in _TEA_SUMS:
        t = np.uint32(total)
        x = x + (((y << four) + a) ^ (y + t) ^ ((y >> five) + b))
        y = y + (((x << four) + c) ^ (x + t) ^ ((x >> five) + d))
    return [state[0] + x, state[1] + y]
