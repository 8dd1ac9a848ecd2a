"""Bitmaps: find, set and clear runs of bits.

A bitmap is a whole block. Bit ``n`` is bit ``n % 8`` of byte ``n // 8``, and 1 means in use, so that ext4's order of
bits is that of a little-endian integer. Long searches convert the bitmap to one Python integer, on which a shift or an
``and`` of 32,768 bits costs less than a microsecond. The functions depend on nothing but their arguments. Callers: the
allocators of this layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

FEW_RUNS = 16
"""Up to so many runs, a mask is made with one shift of an integer for each."""


def test(bitmap: memoryview, bit: int) -> bool:
    """Whether ``bit`` is set."""
    return bool(bitmap[bit >> 3] >> (bit & 7) & 1)


def free_run(bitmap: memoryview, bit: int, limit: int) -> int:
    """Return the number of clear bits from ``bit`` on, at most ``limit`` (positive, within the bitmap)."""
    word = int.from_bytes(bitmap[bit >> 3 : (bit + limit + 7) >> 3], "little") >> (bit & 7)
    if not word:
        return limit
    return min((word & -word).bit_length() - 1, limit)


def used_run(bitmap: memoryview, bit: int, limit: int) -> int:
    """Return the number of set bits from ``bit`` on, at most ``limit``."""
    word = int.from_bytes(bitmap[bit >> 3 : (bit + limit + 7) >> 3], "little") >> (bit & 7)
    return min((~word & (word + 1)).bit_length() - 1, limit)


def first_free(bitmap: memoryview, bits: int) -> int:
    """Return the lowest clear bit of the first ``bits``, or -1."""
    word = int.from_bytes(bitmap[: (bits + 7) >> 3], "little")
    bit = (~word & (word + 1)).bit_length() - 1
    return bit if bit < bits else -1


def count_free(bitmap: memoryview, bits: int) -> int:
    """Return how many of the first ``bits`` are clear."""
    return free_mask(bitmap, bits).bit_count()


def set_run(bitmap: memoryview, bit: int, count: int) -> None:
    """Set ``count`` bits from ``bit`` on."""
    first, last = bit >> 3, (bit + count - 1) >> 3
    if count <= 0:
        return
    if first == last:
        bitmap[first] |= ((1 << count) - 1) << (bit & 7)
        return
    bitmap[first] |= 0xFF << (bit & 7) & 0xFF
    if last > first + 1:
        bitmap[first + 1 : last] = b"\xff" * (last - first - 1)
    bitmap[last] |= 0xFF >> (7 - (bit + count - 1 & 7))


def clear_run(bitmap: memoryview, bit: int, count: int) -> None:
    """Clear ``count`` bits from ``bit`` on."""
    first, last = bit >> 3, (bit + count - 1) >> 3
    if count <= 0:
        return
    if first == last:
        bitmap[first] &= ~(((1 << count) - 1) << (bit & 7)) & 0xFF
        return
    bitmap[first] &= ~(0xFF << (bit & 7)) & 0xFF
    if last > first + 1:
        bitmap[first + 1 : last] = bytes(last - first - 1)
    bitmap[last] &= ~(0xFF >> (7 - (bit + count - 1 & 7))) & 0xFF


# On integers: bit n of the result belongs to bit n of the bitmap


def free_mask(bitmap: memoryview, bits: int) -> int:
    """Return the first ``bits`` of the bitmap as an integer, inverted: 1 means free."""
    word = int.from_bytes(bitmap[: (bits + 7) >> 3], "little")
    ones = (1 << bits) - 1
    return (word & ones) ^ ones


def mask_of(runs: Sequence[tuple[int, int]], bits: int) -> int:
    """Return a mask of the bits of all ``runs`` (bit, length), which lie within ``bits`` and don't overlap."""
    if len(runs) < FEW_RUNS:
        mask = 0
        for bit, length in runs:
            mask |= ((1 << length) - 1) << bit
        return mask
    edges = np.zeros(bits + 1, np.int8)
    pairs = np.fromiter(chain.from_iterable(runs), np.int64, 2 * len(runs))
    firsts, lengths = pairs[::2], pairs[1::2]
    edges[firsts] += 1
    edges[firsts + lengths] -= 1
    return int.from_bytes(np.packbits(np.cumsum(edges[:-1], dtype=np.int8), bitorder="little").tobytes(), "little")


def invert(bitmap: memoryview, mask: int) -> None:
    """Invert the bits of a bitmap that are set in ``mask``."""
    bitmap[:] = (int.from_bytes(bitmap, "little") ^ mask).to_bytes(len(bitmap), "little")


def holds(bitmap: memoryview, runs: Sequence[tuple[int, int]], bits: int) -> bool:
    """Return whether all bits of the runs (bit, length) are set; a few are looked at one by one."""
    if len(runs) < FEW_RUNS:
        return all(used_run(bitmap, bit, length) == length for bit, length in runs)
    mask = mask_of(runs, bits)
    return int.from_bytes(bitmap, "little") & mask == mask


def clear_runs(bitmap: memoryview, runs: Sequence[tuple[int, int]], bits: int) -> None:
    """Clear the bits of the runs (bit, length), which are all set."""
    if len(runs) < FEW_RUNS:
        for bit, length in runs:
            clear_run(bitmap, bit, length)
    else:
        invert(bitmap, mask_of(runs, bits))


def run_starts(free: int, length: int) -> int:
    """Return a mask of the starts of runs of ``length`` free bits: bit n is set when n to n + length - 1 are free."""
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        free &= free >> step
        covered += step
    return free


def multiples(bits: int, align: int, phase: int) -> int:
    """Return a mask of the bits ``phase``, ``phase + align``, ... below ``bits``."""
    count = (bits - phase + align - 1) // align
    if count <= 0:
        return 0
    # The geometric series 1 + 2^align + 2^(2 align) + ..., in one division.
    return ((1 << align * count) - 1) // ((1 << align) - 1) << phase


def lowest(mask: int, start: int = 0) -> int:
    """Return the lowest set bit from ``start`` on, else the lowest set bit of all, or -1 if no bit is set."""
    if not mask:
        return -1
    above = mask >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (mask & -mask).bit_length() - 1


def free_runs(bitmap: memoryview, bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the starts and the lengths of all runs of clear bits among the first ``bits``, in order."""
    used = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=bits, bitorder="little")
    edges = np.flatnonzero(np.diff(used, prepend=1, append=1))
    return edges[::2], edges[1::2] - edges[::2]


def longest_run(bitmap: memoryview, bits: int) -> tuple[int, int]:
    """Return start and length of the first of the longest runs of clear bits among the first ``bits``, or (0, 0)."""
    starts, lengths = free_runs(bitmap, bits)
    if not len(starts):
        return 0, 0
    at = int(lengths.argmax())
    return int(starts[at]), int(lengths[at])
