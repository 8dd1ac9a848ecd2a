"""A NumPy program that keeps an array in a mapped file.

``with_numpy.py make FILE``, mode w+, writes an array; ``change`` it, mode r+; ``read`` it, mode r, and say its sums.
"""

from __future__ import annotations

import sys

import numpy as np

SHAPE = (700, 1000)
"""5.6 MB: many pages, and the last one in part."""


def main() -> None:
    """Run the command of the command line."""
    role, path = sys.argv[1:]
    mode = {"make": "w+", "change": "r+", "read": "r"}[role]
    array = np.memmap(path, dtype=np.int64, mode=mode, shape=SHAPE)
    if role == "make":
        assert not array.any(), "a new file is not empty"
        array[:] = np.arange(array.size).reshape(SHAPE)
    elif role == "change":
        array[::7] *= 3
        array[:, 3] = -1
    else:
        try:
            array[0, 0] = 1
        except ValueError:
            print(int(array.sum()), int(array[7, 4]), int(array[-1, 3]), int(array[-1, -1]))
    array.flush()


if __name__ == "__main__":
    main()
