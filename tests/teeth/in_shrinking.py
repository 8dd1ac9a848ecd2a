"""Faults of shrinking: what must not be taken any longer, what must move before, and what follows the smaller size."""

from __future__ import annotations

from teeth.mutant import Mutant

SHRINKAGE = "daxfs/structures/shrinkage.py"
SHRINKING = "daxfs/fs/shrinking.py"
LOG_MOVE = "daxfs/fs/logmoving.py"
SHRINKS = ("tests/fs/test_shrinking.py",)
RENUMBERS = ("tests/fs/test_renumbering.py",)
PAGES = ("tests/fs/grants/test_status_page.py",)
CUTS = ("tests/crash/test_shrinking.py",)

MUTANTS = [
    Mutant(
        "shrinking: blocks past the new end are taken meanwhile",
        "daxfs/structures/groupmaps.py",
        "    past = min(geometry.first_block(group) + bits - end, bits)\n",
        "    past = 0\n",
        "What was emptied is filled again.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: whole groups past the new end give blocks",
        "daxfs/structures/groups.py",
        "    return not end or view.geometry.first_block(group) < end\n",
        "    return True\n",
        "What was emptied is filled again.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: nothing is taken past the end for good",
        SHRINKING,
        "        blocks.confine(volume.view, 0)\n",
        "        pass\n",
        "A shrink that was interrupted leaves a pool that is full too early.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: blocks in use are cut off",
        SHRINKING,
        "    _refuse_left(volume, grants, target, stayed, kept)\n",
        "    pass\n",
        "The handle refuses, without a word of what is in the way.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: the tables of removed groups stay in use",
        SHRINKAGE,
        "    freed += _left_by_removed(view, end, blocks_count)\n",
        "",
        "Blocks of groups that are gone are in use and nobody's.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: the last group's bitmap has no padding",
        SHRINKAGE,
        "    bitmaps.set_run(found[last], kept, 8 * geometry.block_size - kept)\n",
        "",
        "Bits past the end show blocks as free.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: the resize inode keeps the backups of removed groups",
        SHRINKAGE,
        "        growth.renew_resize_inode(tx, before)\n",
        "        pass\n",
        "It names blocks past the end.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: inode tables are remembered where they were",
        SHRINKAGE,
        "    inodes.forget(tx)\n",
        "",
        "Groups that come later have theirs elsewhere.",
        SHRINKS,
    ),
    Mutant(
        "shrinking: the file is cut while the log needs its end",
        SHRINKING,
        "        volume.journal.checkpoint()  # no block past the end is in the log, and tools see the superblock\n",
        "",
        "Tools see the old superblock in a file that is too short.",
        CUTS,
    ),
    Mutant(
        "the journal moves: its new place has no log yet",
        LOG_MOVE,
        "        journal.make_empty_log(new)\n",
        "",
        "The inode leads to blocks that are no log.",
        CUTS,
    ),
    Mutant(
        "the journal moves: a torn inode is not mended",
        LOG_MOVE,
        "            if error.kind is not CorruptKind.INODE_CHECKSUM or journalmap.copied(sb) is None:\n",
        "            if error:\n",
        "A power cut leaves a pool that can't be mounted.",
        CUTS,
    ),
    Mutant(
        "the journal moves: blocks that are nobody's, and no mark",
        LOG_MOVE,
        "        tx.edit_superblock().s_state |= EXT4_ERROR_FS\n",
        "        pass\n",
        "After a power cut e2fsck -p does not look for them.",
        CUTS,
    ),
    Mutant(
        "shrinking: a client's entry moves, and the old one says nothing",
        "daxfs/fs/grants/inode_grants.py",
        "            self.bump_epoch()\n            self.entry = entry\n",
        "            self.epoch = next(self._epochs)\n            self.entry = entry\n",
        "It goes on with what it was granted, wherever the file lies.",
        PAGES,
    ),
    Mutant(
        "shrinking: an old status page is free before clients have looked",
        "daxfs/fs/grants/table.py",
        "            if all(grants.held_since() > epoch for grants in self.by_ino.values()):\n",
        "            if epoch:\n",
        "They read another file's content as their entry.",
        PAGES,
    ),
    Mutant(
        "renumbering: the generation stays",
        "daxfs/fs/renumbering.py",
        "    return generation ^ _state(geometry, old) ^ _state(geometry, new)\n",
        "    return generation\n",
        "The checksums of all blocks of the inode are wrong.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: subdirectories keep their parent",
        "daxfs/fs/renumbering.py",
        "            directories.set_parent(tx, inodes.edit(tx, child), made.number)\n",
        "            pass\n",
        "Their .. names an inode that is gone.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: what the kernel knows is known by its new number",
        "daxfs/fs/pins.py",
        "        self.aliases.put(known, new)\n",
        "",
        "The kernel's number for it is another file's, or none's.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: open files keep the old number",
        "daxfs/fs/nodes.py",
        "            node.ino = new\n",
        "            pass\n",
        "They read and write an inode that is free.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: an orphan is listed by its old number",
        "daxfs/fs/renumbering.py",
        "        orphans.add(tx, made.number)\n",
        "        pass\n",
        "After a power cut nobody frees it.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: other operations hold the old number",
        "daxfs/fs/renumbering.py",
        '    return BUSY if volume.under_way > 1 else ""\n',
        '    return ""\n',
        "Their next step finds a free inode, or another one.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: a forgotten inode keeps its alias",
        "daxfs/fs/pins.py",
        "        if self.aliases:\n            self.aliases.drop(ino)\n",
        "",
        "It is shown by a number that others may have.",
        RENUMBERS,
    ),
    Mutant(
        "renumbering: a new inode gets a number that programs know",
        "daxfs/structures/inode_allocation.py",
        "    if first + lowest not in kept:\n",
        "    if True:\n",
        "Programs take it for a link to another file.",
        RENUMBERS,
    ),
]
