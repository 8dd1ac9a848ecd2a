"""Faults of snapshots: exception stores, copies before writes, and what the fs layer makes of them."""

from __future__ import annotations

from teeth.mutant import Mutant

STORE = "daxfs/snapshots/store.py"
COPIER = "daxfs/snapshots/copier.py"
JOURNAL = "daxfs/journal/journal.py"
PERSIST = "daxfs/pmem/persist.py"

COPIES = ("tests/snapshots/test_copier.py",)
STORES = ("tests/snapshots/test_store.py",)
HANDLES = ("tests/journal/test_before_handles.py",)

MUTANTS = [
    Mutant(
        "snapshot: no fence before the second words",
        STORE,
        "        raw.fence()\n        for area, at, first, end in self._segments(len(old)):\n",
        "        for area, at, first, end in self._segments(len(old)):\n",
        "An entry may be durable before the old content that it names.",
        COPIES,
    ),
    Mutant(
        "snapshot: no fence after the second words",
        STORE,
        "        raw.fence()\n        self.count += len(old)\n",
        "        self.count += len(old)\n",
        "A block may be overwritten before the entry of its copy is durable: the old content is lost.",
        COPIES,
    ),
    Mutant(
        "snapshot: the next area is not cleared",
        STORE,
        "            if at + end - first == self._entries:\n",
        "            if at + end - first > self._entries:\n",
        "The table goes on into old bytes of a free block.",
        (*STORES, *COPIES),
    ),
    Mutant(
        "snapshot: stale entries stay",
        STORE,
        "            raw.store_word(start + index * ENTRY_SIZE + NEW_AT, 0, 8)\n            cleared = True\n",
        "            cleared = True\n",
        "After a power cut, an entry of an earlier batch names content of a later one.",
        COPIES,
    ),
    Mutant(
        "snapshot: a write is not copied first",
        PERSIST,
        "        before(offset, len(data))\n        store(offset, data)\n",
        "        store(offset, data)\n        before(offset, len(data))\n",
        "The snapshot holds the new content.",
        COPIES,
    ),
    Mutant(
        "snapshot: zeroing is not copied first",
        PERSIST,
        "        before(offset, length)\n        clear(offset, length)\n",
        "        clear(offset, length)\n",
        "The snapshot holds zeros.",
        COPIES,
    ),
    Mutant(
        "snapshot: a word is not copied first",
        PERSIST,
        "        before(offset, size)\n        set_word(offset, value, size)\n",
        "        set_word(offset, value, size)\n",
        "The snapshot holds the new word.",
        COPIES,
    ),
    Mutant(
        "snapshot: a full store goes on",
        COPIER,
        "        if len(chunks) > self.store.room:\n            self._lost(True)\n            return\n",
        "        if len(chunks) > self.store.room:\n            return\n",
        "A snapshot that has lost content counts as valid.",
        COPIES,
    ),
    Mutant(
        "snapshot: blocks are copied after the commit record",
        JOURNAL,
        "        hook = self.pool.hook\n",
        "        hook = None\n",
        "Recovery by another program overwrites blocks of which the snapshot has no copy.",
        HANDLES,
    ),
]
