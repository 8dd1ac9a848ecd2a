"""Faults of storage: its order with the commit, who may change what, and what readers keep of it."""

from __future__ import annotations

from teeth.mutant import Mutant

CACHE = "daxfs/fs/storagecache.py"
QUEUE = "daxfs/pmem/storagequeue.py"
TIERS = "daxfs/fs/tiers.py"

POLICY = "daxfs/fs/tierpolicy.py"
PLACEMENT = "daxfs/fs/placement.py"

TESTS = ("tests/fs/test_tiers.py",)
CUTS = ("tests/crash/test_tiers.py",)

MUTANTS = [
    Mutant(
        "tiers: a demotion is not synchronised",
        QUEUE,
        "            self.storage.write(offset, content)\n            self.storage.sync()\n",
        "            self.storage.write(offset, content)\n",
        "After a power cut a file has blocks on storage that hold something else.",
        CUTS,
    ),
    Mutant(
        "tiers: a file that was written to meanwhile goes down as it was",
        TIERS,
        " or volume.pool.memory[source] != content:\n",
        ":\n",
        "A store in place between the copy and the handle is lost.",
        TESTS,
    ),
    Mutant(
        "tiers: what readers keep outlives the blocks",
        CACHE,
        "            self._units.pop(unit, None)\n",
        "",
        "A reader gets what another file had in these blocks.",
        TESTS,
    ),
    Mutant(
        "tiers: a write does not ask where the blocks lie",
        "daxfs/fs/data.py",
        "        volume.tiers.require_memory(volume.view, node.ino, begin, offset + size)\n",
        "        pass\n",
        "A write to what lies on storage fails.",
        TESTS,
    ),
    Mutant(
        "tiers: a client is granted what lies on storage",
        "daxfs/fs/grants/answers.py",
        "        answer = withhold_storage(volume.tiers, answer)\n",
        "        pass\n",
        "The client loads from where there is no memory.",
        TESTS,
    ),
    Mutant(
        "tiers: blocks of an abandoned call are taken again",
        CACHE,
        "            if ticket.done:\n                self.busy.remove(place)\n",
        "            self.busy.remove(place)\n",
        "A write that is still under way overwrites another file.",
        ("tests/fs/test_storagecache.py",),
    ),
    Mutant(
        "tiers: what belongs in memory goes to storage",
        POLICY,
        "            if place == placement.MEMORY:\n                continue\n",
        "",
        "A file that has the attribute for memory is demoted.",
        ("tests/fs/test_tierpolicy.py",),
    ),
    Mutant(
        "tiers: what belongs on storage waits its turn",
        POLICY,
        "_Candidate(place != placement.STORAGE, used,",
        "_Candidate(True, used,",
        "A file that is used later, and belongs on storage, stays in memory.",
        ("tests/fs/test_tierpolicy.py",),
    ),
    Mutant(
        "tiers: any value says where a file belongs",
        PLACEMENT,
        "    if value not in PLACES:\n",
        "    if not value:\n",
        "A value with a slip of the pen is accepted and does nothing.",
        ("tests/fs/test_placement.py",),
    ),
    Mutant(
        "tiers: new files do not belong where their directory does",
        "daxfs/fs/names.py",
        "        placement.inherit(tx, parent, inode)\n",
        "        pass\n",
        "What is made in a directory of memory goes to storage.",
        ("tests/fs/test_placement.py",),
    ),
    Mutant(
        "tiers: the high watermark is fixed",
        POLICY,
        "(100 - volume.options.tier_high)",
        "(100 - 90)",
        "The mount option does nothing.",
        ("tests/fs/test_tierpolicy.py",),
    ),
    Mutant(
        "tiers: the low watermark is fixed",
        POLICY,
        "(100 - volume.options.tier_low)",
        "(100 - 80)",
        "The mount option does nothing.",
        ("tests/fs/test_tierpolicy.py",),
    ),
    Mutant(
        "tiers: files are allocated on storage",
        "daxfs/structures/blocksearch.py",
        "[: max(count - found.first, 0)] >= least)\n",
        "[:] >= least)\n",
        "New blocks have no memory.",
        ("tests/fs/test_tierpolicy.py",),
    ),
]
