"""Layer 3: the hashes of names that order an indexed directory.

There are three algorithms (legacy, half MD4, TEA), each in a variant for platforms with signed ``char`` and one for
unsigned ``char``; the superblock and the directory select one. The module knows nothing of directories. Callers:
``structures/``.

Every lookup hashes a name, and a listing hashes all of them. So the arithmetic is that of machine words (``i64``) where
the module is compiled: a hash takes less than a tenth of a microsecond. Interpreted it takes a hundred times as long.

Names have up to 255 bytes. Sources: ``fs/ext4/hash.c``; the transforms are the public half-MD4 and TEA
(Davies-Meyer).
"""

from __future__ import annotations

from mypy_extensions import i64

from daxfs.errors import Corrupt, CorruptKind

LEGACY = 0
HALF_MD4 = 1
TEA = 2
LEGACY_UNSIGNED = 3
HALF_MD4_UNSIGNED = 4
TEA_UNSIGNED = 5


HTREE_EOF = 0x7FFFFFFF  # the value of (hash >> 1) that marks the end of a directory stream

Seed = tuple[int, int, int, int]

_DEFAULT_SEED = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_TEA_DELTA = 0x9E3779B9
_TEA_ROUNDS = 16


def effective_version(version: int, hash_unsigned: bool) -> int:
    """Return the hash version to use: the unsigned variant of a directory's version if the superblock asks for it."""
    return version + 3 if hash_unsigned and version <= TEA else version


def dirhash(name: bytes, version: int, seed: Seed) -> tuple[int, int]:
    """Return the hash of a name.

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
    a, b, c, d = seed if seed[0] or seed[1] or seed[2] or seed[3] else _DEFAULT_SEED
    if version in (HALF_MD4, HALF_MD4_UNSIGNED):
        major, minor = _half_md4(name, version == HALF_MD4, a, b, c, d)
    elif version in (TEA, TEA_UNSIGNED):
        major, minor = _tea(name, version == TEA, a, b)
    elif version in (LEGACY, LEGACY_UNSIGNED):
        major, minor = _legacy(name, version == LEGACY), 0
    else:
        raise Corrupt(CorruptKind.DIRECTORY_HASH_VERSION, str(version))
    major &= 0xFFFFFFFE
    return (major if major != HTREE_EOF << 1 else (HTREE_EOF - 1) << 1), minor


def _word(name: bytes, at: i64, fill: i64, signed: bool) -> i64:
    """Return the big-endian word of the name at ``at``; where the name ends before, ``fill`` precedes its characters.

    Where ``char`` is signed, a character of 0x80 or above counts 256 less, which borrows from what precedes it.
    """
    end: i64 = min(at + 4, len(name))
    value = fill
    while at < end:
        char: i64 = name[at]
        if signed and char > 127:
            char -= 256
        value = (value << 8) + char & 0xFFFFFFFF
        at += 1
    return value


def _fill(rest: i64) -> i64:
    """Return the word that pads a name: its remaining length in each byte."""
    fill = rest | rest << 8
    return (fill | fill << 16) & 0xFFFFFFFF


def _legacy(name: bytes, signed: bool) -> int:
    older: i64 = 0x37ABE8F9
    newer: i64 = 0x12A3FE2D
    for at in range(len(name)):
        char: i64 = name[at]
        if signed and char > 127:
            char -= 256
        value = older + (newer ^ char * 7152373) & 0xFFFFFFFF
        if value & 0x80000000:
            value -= 0x7FFFFFFF
        older = newer
        newer = value
    return newer << 1 & 0xFFFFFFFF


def _tea(name: bytes, signed: bool, a: int, b: int) -> tuple[int, int]:
    x: i64 = a
    y: i64 = b
    at: i64 = 0
    size: i64 = len(name)
    while at < size:
        fill = _fill(size - at)
        i0 = _word(name, at, fill, signed)
        i1 = _word(name, at + 4, fill, signed)
        i2 = _word(name, at + 8, fill, signed)
        i3 = _word(name, at + 12, fill, signed)
        x0 = x
        y0 = y
        total: i64 = 0
        for _ in range(_TEA_ROUNDS):
            total = total + _TEA_DELTA & 0xFFFFFFFF
            x = x + (((y << 4) + i0) ^ (y + total) ^ ((y >> 5) + i1)) & 0xFFFFFFFF
            y = y + (((x << 4) + i2) ^ (x + total) ^ ((x >> 5) + i3)) & 0xFFFFFFFF
        x = x0 + x & 0xFFFFFFFF
        y = y0 + y & 0xFFFFFFFF
        at += 16
    return x, y


def _half_md4(name: bytes, signed: bool, first: int, second: int, third: int, fourth: int) -> tuple[int, int]:
    state: tuple[i64, i64, i64, i64] = (first, second, third, fourth)
    at: i64 = 0
    size: i64 = len(name)
    while at < size:
        fill = _fill(size - at)
        state = _half_md4_block(
            state,
            _word(name, at, fill, signed),
            _word(name, at + 4, fill, signed),
            _word(name, at + 8, fill, signed),
            _word(name, at + 12, fill, signed),
            _word(name, at + 16, fill, signed),
            _word(name, at + 20, fill, signed),
            _word(name, at + 24, fill, signed),
            _word(name, at + 28, fill, signed),
        )
        at += 32
    return state[1], state[2]


def _half_md4_block(
    state: tuple[i64, i64, i64, i64], i0: i64, i1: i64, i2: i64, i3: i64, i4: i64, i5: i64, i6: i64, i7: i64
) -> tuple[i64, i64, i64, i64]:
    """Transform one block; unrolled, because a loop takes twice as long.

    Only the value that is rotated right needs to be cut to 32 bits: the left shift leaves bits above bit 31, which
    never reach the lower ones. They stay within 63 bits.
    """
    a, b, c, d = state
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
    return state[0] + a & 0xFFFFFFFF, state[1] + b & 0xFFFFFFFF, state[2] + c & 0xFFFFFFFF, state[3] + d & 0xFFFFFFFF
