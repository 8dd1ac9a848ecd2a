"""Faults of growth: groups, descriptors and their reserve, backups, and what must follow a size that has changed."""

from __future__ import annotations

from teeth.mutant import Mutant

GROWTH = "daxfs/structures/growth.py"
RESIZING = "daxfs/fs/moving/resizing.py"
GROWS = ("tests/fs/moving/test_resizing.py",)
CUTS = ("tests/crash/test_resizing.py",)
MOUNTS = ("tests/mounted/test_resizing.py",)

MUTANTS = [
    Mutant(
        "growth: groups of meta_bg get backups of the old descriptors",
        GROWTH,
        "geometry.backups(min(end, geometry.memory_groups))",
        "geometry.backups(geometry.memory_groups)",
        "Backups are stored over the new groups' own descriptors.",
        GROWS,
    ),
    Mutant(
        "growth: the geometry stays when the handle is undone",
        GROWTH,
        "    tx.on_rollback(partial(_forget, tx, tx.geometry.follow(sb)))\n",
        "    tx.geometry.follow(sb)\n",
        "The volume uses groups that are not there.",
        GROWS,
    ),
    Mutant(
        "growth: the resize inode keeps a block that descriptors use",
        GROWTH,
        '    tx.edit(double).cast("I")[geometry.desc_blocks % (geometry.block_size // 4)] = 0\n',
        "",
        "Two owners claim the block.",
        GROWS,
    ),
    Mutant(
        "growth: new groups reserve nothing for more descriptors",
        GROWTH,
        "        if geometry.has_super(group) and sb.s_reserved_gdt_blocks:\n",
        "        if False:\n",
        "The resize inode lacks the backups that the bitmaps show in use.",
        GROWS,
    ),
    Mutant(
        "growth: an unwritten bitmap over the neighbours' tables",
        GROWTH,
        " and own == sum(length for _, length in used):",
        ":",
        "The kernel computes a bitmap that shows the tables of other groups as free.",
        GROWS,
    ),
    Mutant(
        "growth: old bytes in the inode tables",
        RESIZING,
        "    if not growth.keeps_unused_tables(geometry):\n",
        "    if False:\n",
        "Without checksums of descriptors each slot counts, and e2fsck finds inodes.",
        CUTS,
    ),
    Mutant(
        "growth: backups before the commit",
        RESIZING,
        "        volume.commit()\n    except",
        "        pass\n    except",
        "The descriptors in backups have no checksums yet.",
        GROWS,
    ),
    Mutant(
        "growth: the superblock at home stays old",
        RESIZING,
        "            volume.journal.checkpoint()  # tools read the superblock where it is at home\n",
        "",
        "resize2fs sees the size from before.",
        MOUNTS,
    ),
    Mutant(
        "growth: a log may not have blocks of new groups",
        "daxfs/journal/recovery.py",
        "        self._limit = pool.size // geometry.block_size\n",
        "        self._limit = min(geometry.blocks_count, pool.size // geometry.block_size)\n",
        "A power cut after growth leaves a log that can't be replayed.",
        CUTS,
    ),
    Mutant(
        "growth: a superblock between two sizes is believed",
        "daxfs/fs/mounting.py",
        "    geometry = Geometry.of_torn(sb, pool.size)\n    view = TornView(pool, geometry)\n"
        "    metadata_zone.disregard(view)\n",
        "    geometry = Geometry.of(sb)\n    view = TornView(pool, geometry)\n",
        "The mount looks for the log where the groups' metadata would be in neither size.",
        CUTS,
    ),
    Mutant(
        "growth: clients that come later are told the old size",
        "daxfs/fs/grants/table.py",
        "        self.identity = None\n",
        "        pass\n",
        "They read what lies in the new part through the kernel.",
        MOUNTS,
    ),
    Mutant(
        "growth: bound operations keep the old end",
        "daxfs/pmem/mapped.py",
        "        self.unhooked.follow_size(self.memory)\n        self.faults",
        "        self.faults",
        "Stores to the new part are refused.",
        GROWS,
    ),
]
