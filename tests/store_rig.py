"""A pool with one store and no file system: chunks of noise that are overwritten while a copier watches."""

from __future__ import annotations

import random

import numpy as np

from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.pool import Pool
from daxfs.snapshots.copier import Copier
from daxfs.snapshots.format import Header
from daxfs.snapshots.store import ChunkRun, Store

BITS = 12
SIZE = 1 << BITS
CHUNKS = 768
ORIGIN = 400
"""Chunks from the beginning of the pool on whose content the snapshot needs."""
RUNS = (ChunkRun(740, 28), ChunkRun(400, 300))
HEADER = Header(True, 0, BITS, 1, 0, CHUNKS, bytes(16))


def noise(chunks: int = CHUNKS, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(chunks * SIZE)


def new_store(pool: Pool, runs: tuple[ChunkRun, ...] = RUNS) -> Store:
    """An empty store, durable."""
    store = Store(pool, BITS, runs)
    store.create(HEADER)
    pool.fence()
    return store


def opened(pool: Pool, runs: tuple[ChunkRun, ...] = RUNS) -> Store:
    """The store that a power cut left, ready for more."""
    store = Store(pool, BITS, runs)
    store.open()
    store.clear_stale()
    return store


def needed_by(store: Store) -> bytearray:
    """One bit for each chunk of the origin that is not in the table."""
    flags = np.zeros(-(-CHUNKS // 8) * 8, np.uint8)
    flags[:ORIGIN] = 1
    flags[store.table()[0].astype(np.int64)] = 0
    return bytearray(np.packbits(flags, bitorder="little").tobytes())


class Watched:
    """A copier on a pool; ``calls`` notes what it asked for."""

    def __init__(self, pool: Pool, store: Store, reserve: int = 0) -> None:
        self.calls: list[str] = []
        self.copier = Copier(
            pool,
            store,
            needed_by(store),
            reserve,
            make_room=lambda count, _certain: self.calls.append(f"room for {count}"),
            running_low=lambda: self.calls.append("low"),
            lost=self._lost,
        )
        self._pool = pool
        pool.hook_stores(self.copier)

    def _lost(self, full: bool) -> None:
        self.calls.append("full" if full else "missing")
        self._pool.hook_stores(None)


def content(pool: Pool, store: Store) -> bytes:
    """What the snapshot holds of the origin: copies, and what was not overwritten."""
    made = bytearray(pool.memory[: ORIGIN * SIZE])
    for old, new in zip(*(column.tolist() for column in store.table()), strict=True):
        made[old * SIZE : (old + 1) * SIZE] = store.content(new)
    return bytes(made)


def after_cut(image: bytes | bytearray, runs: tuple[ChunkRun, ...] = RUNS) -> bytes:
    """What the snapshot holds in an image that a power cut left, before anything mends it."""
    pool = MemoryPool(bytearray(image))
    store = Store(pool, BITS, runs)
    store.open()
    return content(pool, store)
