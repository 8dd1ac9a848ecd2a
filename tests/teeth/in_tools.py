"""Faults of the tools: copies of whole pools, and the check of pools that can only be mapped."""

from __future__ import annotations

from teeth.mutant import Mutant

COPYING = ("tests/tools/test_copying.py",)
CHECKING = ("tests/tools/test_mappedcheck.py",)
MISSING = ("tests/tools/test_missing_pages.py",)
PIECES = "daxfs/tools/pieces.py"

MUTANTS = [
    Mutant(
        "import: the old superblock stays",
        PIECES,
        "    pool.zero(0, HEAD)\n    pool.fence()\n",
        "",
        "An import that is cut short leaves an old superblock over a half-new pool.",
        COPYING,
    ),
    Mutant(
        "import: the superblock is stored before the rest is durable",
        PIECES,
        "    pool.fence()\n    pool.write(0, head)\n",
        "    pool.write(0, head)\n",
        "After a power cut the new superblock describes blocks that were lost.",
        COPYING,
    ),
    Mutant(
        "import: zeros are not stored",
        PIECES,
        "                pool.zero(first, end - first)\n",
        "                pass\n",
        "Old content of the device shows where the image has a hole, such as an inode table.",
        COPYING,
    ),
    Mutant(
        "import: holes are filled",
        PIECES,
        "overlap(filled, offset + skipped, offset + length)",
        "[(offset + skipped, offset + length)]",
        "An import into a sparse file takes room for all of it.",
        COPYING,
    ),
    Mutant(
        "export: missing memory is copied as zeros",
        PIECES,
        "    found = list(split(pool.memory[first:end], first))\n    pool.faults.check()\n",
        "    found = list(split(pool.memory[first:end], first))\n",
        "The copy has zeros in the place of content, and the export says that all is well.",
        COPYING,
    ),
    Mutant(
        "export: a file that came meanwhile is replaced",
        "daxfs/tools/exporting.py",
        "        if replace:\n",
        "        if True:\n",
        "A file of somebody else is lost.",
        COPYING,
    ),
    Mutant(
        "check: missing memory is not said",
        "daxfs/tools/mappedcheck.py",
        "        code |= OPERATIONAL_ERROR\n",
        "        pass\n",
        "A script takes a pool with unreadable blocks for clean.",
        CHECKING,
    ),
    Mutant(
        "check: an interrupt ends the server",
        "daxfs/fuse/alone.py",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "signal.getsignal(signal.SIGINT)",
        "e2fsck is cut off in the middle of a repair.",
        CHECKING,
    ),
    Mutant(
        "dump: zeros that the pool does not hold are printed",
        "daxfs/tools/dump.py",
        "            found.pool.faults.check()  # a line made of zeros that the pool does not hold is not printed\n",
        "",
        "A reader takes zeros of a missing page for the content of a structure.",
        MISSING,
    ),
]
