"""Faults of armed transactions, and of the appends that clients fire."""

from __future__ import annotations

from teeth.mutant import Mutant

LOG = "daxfs/journal/log.py"
JOURNAL = "daxfs/journal/journal.py"
ARMING = "daxfs/fs/grants/arming.py"
OPERATIONS = "daxfs/fs/operations.py"

TRANSACTIONS = "tests/journal/test_armed.py"
CUTS = f"{TRANSACTIONS}::test_every_cut_recovers_to_a_commit"
APPENDS = "tests/fs/grants/test_arming.py"
PROGRAMS = "tests/direct/test_append.py"

MUTANTS = [
    Mutant(
        "armed before the log is durable",
        LOG,
        "            words.append(word)\n        pool.fence()\n        self._armed = words",
        "            words.append(word)\n        self._armed = words",
        "A client fires a transaction whose blocks a power cut tears.",
        (CUTS, APPENDS),
    ),
    Mutant(
        "a word that was not written back",
        LOG,
        "            pool.flush(word.place, 4)\n            fired += 1",
        "            fired += 1",
        "The daemon's next commit is not found behind a transaction whose client ended too early.",
        (CUTS,),
    ),
    Mutant(
        "nothing is disarmed",
        LOG,
        "                now = pool.store_bit(word.place, armed.DISARMING_BIT, word.disarming_value)",
        "                pass",
        "A client fires what the daemon has written over, and takes it for durable.",
        (TRANSACTIONS,),
    ),
    Mutant(
        "what was fired does not go home",
        JOURNAL,
        "                self._take_home(armed.number, armed.images[fired - 1])\n",
        "",
        "The file has its old size again when the inode is read.",
        (TRANSACTIONS, APPENDS),
    ),
    Mutant(
        "the kept copy stays as it was",
        JOURNAL,
        "            kept[0][:] = content",
        "            pass",
        "The next change of the block takes the appends back.",
        (TRANSACTIONS, APPENDS),
    ),
    Mutant(
        "a handle begins beside armed transactions",
        JOURNAL,
        "            self.call_before_next_handle(self.settle)",
        "            pass",
        "An operation changes the block, and a client commits its old content over it.",
        (TRANSACTIONS, APPENDS),
    ),
    Mutant(
        "a replay does not disarm",
        "daxfs/journal/recovery.py",
        "    while _fired_late(pool, reader, end, found.behind):",
        "    while False:",
        "A client that outlives its daemon fires after the replay, and takes it for durable.",
        (TRANSACTIONS,),
    ),
    Mutant(
        "reads do not settle",
        OPERATIONS,
        "                self.volume.settle()\n            result = method",
        "                pass\n            result = method",
        "stat(2) shows the size before the appends.",
        ("tests/fs/test_operations.py", APPENDS),
    ),
    Mutant(
        "armed beside another holder",
        ARMING,
        "    if grants.all_holders != 1 or",
        "    if",
        "The other client does not see the appends.",
        (APPENDS,),
    ),
    Mutant(
        "armed past what was granted",
        ARMING,
        "    while len(images) < count and grants.preallocated.covers(size, size + step):",
        "    while len(images) < count:",
        "Blocks that were never zeroed become part of the file.",
        (APPENDS,),
    ),
    Mutant(
        "an append through the kernel goes by an old size",
        "daxfs/fuse/kernel/files.py",
        "    size = connection.core.size_of(file)\n",
        "    size = file.size\n",
        "It overwrites what a client has appended.",
        (f"{PROGRAMS}::test_appends_through_the_kernel_follow_armed_ones",),
    ),
    Mutant(
        "a client does not see its own appends",
        "daxfs/direct/preload/armed.c",
        "    atomic_store(&file->fired, armed->size);\n",
        "",
        "It reads less than it has appended, and appends over it.",
        (f"{PROGRAMS}::test_armed_appends_ask_nobody",),
    ),
]
