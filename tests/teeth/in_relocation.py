"""Faults of moves: what a directory, a map or attributes are at their new place, and what may lie at the old one."""

from __future__ import annotations

from teeth.mutant import Mutant

CHANGE = "daxfs/fs/change.py"
DIRBLOCKS = "daxfs/structures/dirblocks.py"
INDIRECT = "daxfs/structures/indirect.py"
NODES = "daxfs/structures/extent_nodes.py"
RELOCATION = "daxfs/fs/moving/relocation.py"
VACATING = "daxfs/fs/moving/vacating.py"
XATTRS = "daxfs/structures/xattrs.py"

MOVES = ("tests/fs/moving/test_vacating.py",)
CUTS = ("tests/crash/test_relocation.py",)
REPLAY = ("tests/fs/moving/test_vacating.py::test_an_old_place_takes_data_and_replay_leaves_it_alone",)

MUTANTS = [
    Mutant(
        "relocation: the copy is stored after the commit",
        RELOCATION,
        "                        pool.write(target, memory[pblk << bits : (pblk << bits) + size])\n",
        "                        later = (target, bytes(memory[pblk << bits : (pblk << bits) + size]))\n"
        "                        volume.journal.home_hooks.append(lambda later=later: pool.write(*later))\n",
        "A cut right after the commit leaves the file what an earlier owner has left at its new place.",
        CUTS,
    ),
    Mutant(
        "relocation: the old place is free before the commit",
        CHANGE,
        "        mapping.replace(tx, self.inode, first, last, new)\n"
        "        volume.notifier.defer_frees(tx, self.inode.number, mark)\n",
        "        mapping.replace(tx, self.inode, first, last, new)\n"
        "        volume.notifier.defer_frees(tx, self.inode.number, mark)\n"
        "        __import__('daxfs.structures.blocks').structures.blocks.apply_frees(tx)\n"
        "        del tx.frees[mark:]\n",
        "A file that is written in the same transaction overwrites what the moved one still is after a cut.",
        ("tests/fs/moving/test_vacating.py::test_the_old_places_become_free_with_the_commit",),
    ),
    Mutant(
        "relocation: a step moves any number of runs",
        RELOCATION,
        "        few = min(len(piece.runs), MOST_RUNS)\n",
        "        few = len(piece.runs)\n",
        "Everybody waits 25 ms for a step of a file in pieces of 4 KiB.",
        ("tests/fs/moving/test_relocation.py::test_no_step_moves_many_runs",),
    ),
    Mutant(
        "relocation: a directory's block arrives empty",
        DIRBLOCKS,
        "    block[:] = content\n    hints.forget_place",
        "    hints.forget_place",
        "The names are lost.",
        MOVES,
    ),
    Mutant(
        "relocation: the place of a directory's block is remembered",
        "daxfs/structures/dirhints.py",
        "        if known is not None and known.pop(lblk, 0):\n            self.mapped -= 1\n",
        "",
        "Names are searched in, and made in, a block that belongs to somebody else.",
        MOVES,
    ),
    Mutant(
        "relocation: a directory's old block is not revoked",
        VACATING,
        "placed(piece.runs, place.start), metadata=True)",
        "placed(piece.runs, place.start))",
        "Replay stores old entries over the data of the file that has the block now.",
        REPLAY,
    ),
    Mutant(
        "relocation: a node's old block is not revoked",
        NODES,
        "    blocks.free(tx, number, 1, metadata=True)\n",
        "    blocks.free(tx, number, 1)\n",
        "Replay stores an old node over the data of the file that has the block now.",
        REPLAY,
    ),
    Mutant(
        "relocation: a node moves, and nothing leads to its new place",
        NODES,
        "    format_.put_index(above, at, above[3 * at + 3], target)\n",
        "",
        "The tree goes on through a freed block.",
        MOVES,
    ),
    Mutant(
        "relocation: an index block moves, and nothing leads to its new place",
        INDIRECT,
        "            _writable(tx, inode, parent)[slot] = target\n",
        "",
        "The map goes on through a freed block.",
        MOVES,
    ),
    Mutant(
        "relocation: a moved node has no checksum of its own",
        NODES,
        "tx.create(target, extent_edit.seal, tx.geometry, inode.number, inode.generation)",
        "tx.create(target)",
        "A node that the same transaction has changed keeps the checksum of its old content.",
        MOVES,
    ),
    Mutant(
        "relocation: who shares attributes loses them",
        XATTRS,
        "    _refer(tx, inode, target)\n    return shared\n",
        "    blocks.free(tx, number, 1, metadata=True)\n    inode.file_acl = target\n    return shared\n",
        "The block is freed while other inodes refer to it.",
        MOVES,
    ),
    Mutant(
        "relocation: the copy of shared attributes counts others' references",
        XATTRS,
        "    format_.set_refcount(block, 1)\n",
        "",
        "The block is never freed, and e2fsck counts fewer references.",
        MOVES,
    ),
]
