"""Bitmaps: find, set and clear runs of bits.

A bitmap is a whole block. Bit ``n`` is bit ``n % 8`` of byte ``n // 8``, and 1 means in use, so that ext4's order of
bits is that of a little-endian integer. Long searches convert the bitmap to one Python integer, on which a shift or an
``and`` of 32,768 bits costs less than a microsecond. The functions depend on nothing but their arguments. Callers: the
allocators of this layer.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import numpy.typing as npt

FEW_RUNS = 16
"""Fewer runs are a list; an array costs more than it saves."""
WINDOW = 128
"""Bytes of a bitmap that a search for one bit looks at together: as a rule they have one."""
Runs = list[tuple[int, int]] | npt.NDArray[np.int64]
"""Runs of bits (bit, length): a list of a few, or an array with a row for each."""


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


def first_free(bitmap: memoryview, bits: int, start: int = 0) -> int:
    """Return the lowest clear bit of the first ``bits``, or -1; below ``start`` all are known to be set."""
    for at in range(start >> 3, (bits + 7) >> 3, WINDOW):
        word = int.from_bytes(bitmap[at : at + WINDOW], "little")
        bit = 8 * at + (~word & (word + 1)).bit_length() - 1
        if bit < min(8 * (at + WINDOW), bits):
            return bit
    return -1


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


def gathered(runs: list[tuple[int, int]]) -> Runs:
    """Return runs as an array if they are many."""
    if len(runs) < FEW_RUNS:
        return runs
    return np.fromiter(chain.from_iterable(runs), np.int64, 2 * len(runs)).reshape(-1, 2)


def mask_of(runs: Runs) -> int:
    """Return a mask of the bits of all ``runs``, which don't overlap."""
    if isinstance(runs, list):
        mask = 0
        for bit, length in runs:
            mask |= ((1 << length) - 1) << bit
        return mask
    firsts, ends = runs[:, 0], runs[:, 0] + runs[:, 1]
    low = int(firsts.min())  # as a rule the runs lie in a small part of the bitmap
    edges = np.zeros(int(ends.max()) - low + 1, np.int8)
    edges[firsts - low] += 1
    edges[ends - low] -= 1
    covered = np.packbits(np.cumsum(edges[:-1], dtype=np.int8), bitorder="little")
    return int.from_bytes(covered.tobytes(), "little") << low


def invert(bitmap: memoryview, mask: int) -> None:
    """Invert the bits of a bitmap that are set in ``mask``."""
    bitmap[:] = (int.from_bytes(bitmap, "little") ^ mask).to_bytes(len(bitmap), "little")


def holds(bitmap: memoryview, runs: Runs) -> bool:
    """Return whether all bits of the runs are set; a few runs are looked at one by one."""
    if isinstance(runs, list):
        return all(used_run(bitmap, bit, length) == length for bit, length in runs)
    mask = mask_of(runs)
    return int.from_bytes(bitmap, "little") & mask == mask


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
