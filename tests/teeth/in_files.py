"""Faults of mounting, names, data, allocation and the structures of the format."""

from __future__ import annotations

from teeth.mutant import Mutant

ATTRIBUTES = "daxfs/structures/xattrs.py"
BLOCKS = "daxfs/structures/blocks.py"
CHANGE = "daxfs/fs/change.py"
COPYING = "daxfs/fs/copying.py"
DATA = "daxfs/fs/data.py"
DIRECTORY = "daxfs/structures/dirblocks.py"
FLAG = "daxfs/fs/recovery_flag.py"
GRANTS = "daxfs/fs/grants/"
INDEX = "daxfs/structures/htree.py"
LIFETIMES = "daxfs/fs/lifetimes.py"
MOUNTING = "daxfs/fs/mounting.py"
NAMES = "daxfs/fs/names.py"
RANGES = "daxfs/fs/ranges.py"
REMOVAL = "daxfs/fs/removal.py"
SCHEDULING = "daxfs/fuse/kernel/scheduling.py"
TREE = "daxfs/structures/extent_edit.py"
VOLUME = "daxfs/fs/volume.py"

ATOMIC = "daxfs/fs/atomic.py"
BATCHES = "daxfs/fs/batches.py"

BAD = "tests/fs/test_badmemory.py"
GROWTH = "tests/crash/test_growth_after_recovery.py"
HANDLES = "tests/crash/test_handles.py"
LEASED = "tests/fs/grants/test_power_loss.py"
MOUNTS = "tests/fs/test_power_loss.py::test_mount_and_unmount"
NAMELESS = "tests/fs/test_power_loss.py::test_files_without_a_name"
OPERATIONS = "tests/fs/test_power_loss.py::test_one_operation"
OLD = "tests/crash/test_old_bytes.py"
ORDER = "tests/crash/test_order.py"
REUSE = "tests/crash/test_reuse.py"
SEQUENCES = "tests/fs/test_power_loss.py::test_sequences"
STEPS = "tests/fs/test_stepwise.py"
SLOW_ENDS = "tests/fs/test_power_loss.py::test_files_that_end_slowly"
STORIES = "tests/fs/test_power_loss.py::test_stories"
SYNC = "tests/crash/test_sync_mount.py"

MUTANTS = [
    # Bad memory
    Mutant(
        "bad blocks are given out",
        BLOCKS,
        "    return _without_bad(view, group, content) if view.pool.bad else content",
        "    return content",
        "A file gets blocks that the kernel lists as bad: its writer gets EIO, again and again.",
        (f"{BAD}::test_bad_memory_is_never_given_out",),
    ),
    Mutant(
        "a bad block is replaced before its new content is there",
        "daxfs/fs/badmemory.py",
        "            volume.pool.write(made.pblk << bits, memoryview(content)[at : at + (made.length << bits)])\n",
        "",
        "The file shows what an earlier owner of the new block has left there.",
        (f"{BAD}::test_blocks_that_replace_bad_ones_are_filled_before_a_commit_can_come",),
    ),
    Mutant(
        "clients are granted bad memory",
        f"{GRANTS}answers.py",
        "    if volume.pool.bad:\n        answer = withhold_bad(volume, answer)\n",
        "",
        "A client that stores there is killed by SIGBUS.",
        (f"{BAD}::test_clients_are_not_granted_bad_memory",),
    ),
    Mutant(
        "memory that has become bad stays granted",
        VOLUME,
        "            self.notifier.bump_all_epochs()\n\n    def abort",
        "            pass\n\n    def abort",
        "A client goes on to touch memory that the daemon knows to be bad.",
        (f"{BAD}::test_clients_are_not_granted_bad_memory",),
    ),
    Mutant(
        "the page cache takes bad memory for the end of the file",
        DATA,
        "            if stop == offset or not node.dax:",
        "            if stop == offset:",
        "The kernel sets the size of the file to where the bad memory begins.",
        (f"{BAD}::test_the_page_cache_of_the_kernel_gets_all_or_nothing",),
    ),
    # Atomic writes
    Mutant(
        "an atomic write goes in place",
        "daxfs/fs/filesystem.py",
        "        written = atomic_writes.write(self.volume,",
        "        written = data.write(self.volume,",
        "A power cut leaves a part of it.",
        (OPERATIONS,),
    ),
    Mutant(
        "an atomic write gives up the old blocks first",
        ATOMIC,
        "    try:\n        volume.retrying(_replace,",
        "    with volume.handle(CREDITS) as tx, Change(volume, tx, node.ino) as change:\n"
        "        change.unmap(begin >> volume.block_bits, end - 1 >> volume.block_bits)\n"
        "    volume.commit()\n"
        "    try:\n        volume.retrying(_replace,",
        "A power cut leaves a hole.",
        (OPERATIONS,),
    ),
    Mutant(
        "an atomic write is not flushed",
        ATOMIC,
        "volume.block_bits, volume.pool.write\n",
        "volume.block_bits, lambda at, piece: volume.pool.memory.__setitem__(slice(at, at + len(piece)), piece)\n",
        "A power cut after fsync leaves what an earlier owner of the new blocks stored there.",
        (OPERATIONS,),
    ),
    Mutant(
        "an atomic write forgets what it leaves of its blocks",
        ATOMIC,
        "    parts.append(kept(volume, file, position, last + 1 << bits))\n",
        "    parts.append(bytes((last + 1 << bits) - position))\n",
        "The rest of its last block becomes zeros.",
        ("tests/fs/test_atomic.py",),
    ),
    Mutant(
        "several pieces become the file's in a handle each",
        ATOMIC,
        "        volume.retrying(_replace, file, pieces)\n",
        "        for piece in pieces:\n"
        "            volume.retrying(_replace, file, [piece])\n"
        "            volume.commit()\n",
        "A power cut leaves some of them.",
        (OPERATIONS,),
    ),
    Mutant(
        "the commit of a batch is not durable",
        BATCHES,
        "        data.fsync(self.volume, file.ino)\n",
        "",
        "SQLite reports a transaction as done, and a power cut undoes it.",
        (OPERATIONS, "tests/fs/test_batches.py"),
    ),
    Mutant(
        "a batch that failed can be committed again",
        BATCHES,
        "        finally:\n            self.abort()\n",
        "        except NotImplementedError:\n            self.abort()\n",
        "Its pages stay in DRAM, and no other batch of the file can begin.",
        ("tests/fs/test_batches.py",),
    ),
    Mutant(
        "a batch outlives its open file",
        "daxfs/fs/stepwise.py",
        "        batches.end(volume, file)\n",
        "",
        "What a killed program has staged stays in DRAM, and its file can have no other batch.",
        ("tests/fs/test_batches.py",),
    ),
    Mutant(
        "clients store to a file with a batch",
        f"{GRANTS}requests.py",
        "    if staged is not None and (flags & WRITE or staged.opened is file):\n",
        "    if staged is not None and staged.opened is file:\n",
        "A program below daxfs exec stores what it should stage.",
        ("tests/fs/test_batches.py",),
    ),
    Mutant(
        "single bytes are staged for nothing",
        "daxfs/fs/staging.py",
        "        if len(pages) + len(new) > MOST_PAGES:\n",
        "        if sum(page.staged.bit_count() for page in pages.values()) + len(content) > MOST_PAGES * PAGE:\n",
        "A user fills the daemon's memory with bytes far apart.",
        ("tests/fs/test_staging.py",),
    ),
    Mutant(
        "several pieces forget what lies between them in a block",
        ATOMIC,
        "        parts += kept(volume, file, position, offset), content\n",
        "        parts += bytes(offset - position), content\n",
        "What they leave of a block becomes zeros.",
        ("tests/fs/test_atomic.py",),
    ),
    # Mounting
    Mutant(
        "a torn superblock is final",
        "daxfs/ext4/superblock.py",
        "        except Corrupt:\n            return True\n        return False\n",
        "        except Corrupt:\n            return False\n        return False\n",
        "A superblock that was torn on its way home is not mended from the log.",
        (MOUNTS,),
    ),
    Mutant(
        "the pool is not marked as mounted",
        MOUNTING,
        "        recovery_flag.store(volume.pool, raised=True)\n",
        "        pass\n",
        "A cut finds a superblock that says there is nothing in the log.",
        (ORDER,),
    ),
    Mutant(
        "the recovery flag is not fenced",
        FLAG,
        "    pool.store_word(SUPERBLOCK_OFFSET + _CHECKSUM, sb.s_checksum)\n    pool.fence()\n",
        "    pool.store_word(SUPERBLOCK_OFFSET + _CHECKSUM, sb.s_checksum)\n",
        "The flag may be lost when the first transactions of the log are not.",
        (ORDER,),
    ),
    Mutant(
        "the recovery flag keeps its old checksum",
        FLAG,
        "    pool.store_word(SUPERBLOCK_OFFSET + _CHECKSUM, sb.s_checksum)\n",
        "",
        "Every mounted pool has a torn superblock.",
        (ORDER,),
    ),
    Mutant(
        "a torn recovery flag is not mended",
        MOUNTING,
        "    elif recovery_flag.mend(pool):\n",
        "    elif False:\n",
        "A pool whose flag was torn by a cut can't be mounted.",
        ("tests/fs/test_preening.py", MOUNTS),
    ),
    Mutant(
        "the recovery flag is lowered before the log is empty",
        MOUNTING,
        "    journal.close()\n    recovery_flag.store(volume.pool, raised=False)\n",
        "    recovery_flag.store(volume.pool, raised=False)\n    journal.close()\n",
        "A cut leaves a log that holds something beside a superblock that says it does not.",
        (ORDER,),
    ),
    Mutant(
        "an unmount leaves the log full",
        MOUNTING,
        "    journal.close()\n    recovery_flag.store(volume.pool, raised=False)\n",
        "    journal.commit()\n    recovery_flag.store(volume.pool, raised=False)\n",
        "The log of a clean pool is not empty.",
        (ORDER,),
    ),
    Mutant(
        "orphans are not freed by a mount",
        MOUNTING,
        "    removal.recover(volume)\n",
        "",
        "The blocks of files that were open without a name leak.",
        (NAMELESS,),
    ),
    # Durability
    Mutant(
        "a sync mount is async after its first operation",
        VOLUME,
        "            self.sync_due = self.options.sync\n",
        "            self.sync_due = False\n",
        "Only the first operation is durable when it returns.",
        (SYNC,),
    ),
    Mutant(
        "a sync mount forgets writes",
        "daxfs/fs/filesystem.py",
        "        if self.volume.sync_due:\n            self.volume.finish()\n        elif file.durable:",
        "        if file.durable:",
        "Data is not durable when write(2) returns.",
        (SYNC,),
    ),
    Mutant(
        "O_SYNC means nothing",
        "daxfs/fs/filesystem.py",
        "        elif file.durable:\n            data.make_durable(self.volume, file)\n        return written\n",
        "        return written\n",
        "A write through O_SYNC is not durable when it returns.",
        (SYNC,),
    ),
    Mutant(
        "chattr +S means nothing",
        VOLUME,
        "        if inode.flags & (EXT4_SYNC_FL | EXT4_DIRSYNC_FL):\n            self.sync_due = True\n",
        "",
        "Changes of such inodes are not durable when they return.",
        (SYNC,),
    ),
    Mutant(
        "fsync does not commit",
        DATA,
        "        journal.commit()\n    else:\n        journal.fence()\n",
        "        journal.fence()\n    else:\n        journal.fence()\n",
        "What fsync promised is lost with the running transaction.",
        (SYNC, OPERATIONS),
    ),
    Mutant(
        "fsync does not wait for data in place",
        DATA,
        "        journal.commit()\n    else:\n        journal.fence()\n",
        "        journal.commit()\n",
        "An overwrite is not durable after fdatasync.",
        (SYNC, OPERATIONS),
    ),
    Mutant(
        "fdatasync skips the size",
        DATA,
        "    if journal.dirty or (not data_only and (",
        "    if not data_only and (journal.dirty or (",
        "What was appended is lost after fdatasync.",
        (SYNC, OPERATIONS),
    ),
    Mutant(
        "fsync forgets times",
        DATA,
        "    if journal.dirty or (not data_only and (ino in waiting or (ino == ROOT_INO and waiting))):\n",
        "    if journal.dirty:\n",
        "The time of an overwrite is not durable after fsync.",
        (SYNC, OPERATIONS),
    ),
    # Orphans
    Mutant(
        "an open file without a name is not listed",
        LIFETIMES,
        "        for ino in sorted(self.nameless - self.listed):\n            self._list(tx, ino)\n",
        "        pass\n",
        "After a cut nobody frees it.",
        (NAMELESS,),
    ),
    Mutant(
        "an orphan is taken off the list too early",
        REMOVAL,
        "        metadata = not stat.S_ISREG(inode.mode)\n",
        "        volume.lives.freed(tx, ino)\n        metadata = not stat.S_ISREG(inode.mode)\n",
        "A cut between two steps of the end of a large file leaves the rest of it to nobody.",
        (SLOW_ENDS,),
    ),
    Mutant(
        "an orphan stays listed when it is freed",
        REMOVAL,
        "        volume.lives.freed(tx, ino)\n        inode.i_dtime",
        "        inode.i_dtime",
        "The list names a free inode.",
        (NAMELESS,),
    ),
    Mutant(
        "a file that got a name stays listed",
        LIFETIMES,
        "            self._unlist(tx, ino)\n        _take(tx, self.nameless, ino)\n        _take(tx, self.linkable",
        "            _take(tx, self.listed, ino)\n"
        "        _take(tx, self.nameless, ino)\n        _take(tx, self.linkable",
        "The list names a file that has a name.",
        ("tests/fs/test_nameless.py", NAMELESS),
    ),
    Mutant(
        "the orphan list has one entry",
        "daxfs/structures/orphans.py",
        "        inodes.edit(tx, ino).i_dtime = first\n",
        "        inodes.edit(tx, ino).i_dtime = 0\n",
        "The second orphan makes the list forget the first.",
        ("tests/structures/test_orphans.py", NAMELESS),
    ),
    Mutant(
        "a truncate in several transactions is not listed",
        DATA,
        "                volume.lives.being_cut(tx, ino)\n",
        "                pass\n",
        "A cut between two steps leaves blocks behind the end.",
        (SLOW_ENDS,),
    ),
    # Steps
    Mutant(
        "what is being freed does not count as free",
        "daxfs/fs/attributes.py",
        "    for ino in volume.lives.ending.keys() & volume.lives.nameless:\n",
        "    for ino in ():\n",
        "The space of a removed file is missing until its last step.",
        (STEPS,),
    ),
    Mutant(
        "a full pool does not wait for what is being freed",
        "daxfs/fs/filesystem.py",
        "        self.add_reclaimer(self._free_rest)\n",
        "",
        "A write fails with ENOSPC although a removed file's blocks are about to be free.",
        (STEPS,),
    ),
    Mutant(
        "an abandoned truncate is forgotten",
        DATA,
        "        volume.lives.ending[ino] = None\n        raise\n",
        "        raise\n",
        "The blocks past EOF belong to the file until somebody truncates it again.",
        (STEPS,),
    ),
    Mutant(
        "steps commit for others",
        "daxfs/fs/operations.py",
        "                due, volume.sync_due = volume.sync_due, volume.options.sync\n",
        "                due = volume.sync_due\n",
        "Another operation between two steps commits, and the synchronous one no longer knows that it must.",
        (STEPS,),
    ),
    Mutant(
        "a trim trusts what it saw at its last step",
        "daxfs/fs/trim.py",
        "                for begin, count in blocks.free_runs(volume.view, group, least, position)\n",
        "                for begin, count in vars(volume).setdefault(\n"
        "                    f'trim{group}', list(blocks.free_runs(volume.view, group, least))\n"
        "                )\n"
        "                if begin + count > position\n",
        "Blocks that a file got meanwhile are punched out.",
        (STEPS,),
    ),
    Mutant(
        "requests overtake the operation on their file",
        SCHEDULING,
        "            self._blocked.append((user, nodes, message))\n            return True\n",
        "            pass\n",
        "A write lands between two steps of a truncate of the same file.",
        ("tests/fuse/test_kernel_scheduling.py",),
    ),
    Mutant(
        "a signal ends a truncate",
        "daxfs/fuse/kernel/work.py",
        "        self._shortened = self.shortens\n",
        "        self._shortened = True\n",
        "ftruncate fails with EINTR and leaves half of the blocks.",
        ("tests/fuse/test_kernel_scheduling.py",),
    ),
    Mutant(
        "works starve other users",
        "daxfs/fuse/kernel/turns.py",
        "        return user.had, bool(user.works)\n",
        "        return -user.had, bool(user.works)\n",
        "Who has had the most has more.",
        ("tests/fuse/test_kernel_turns.py",),
    ),
    # Names
    Mutant(
        "rename is two handles",
        NAMES,
        "    if whiteout_of is None:\n",
        "    tx.__exit__(None, None, None)\n"
        "    tx = volume.handle(2 * CREDITS_NAME).__enter__()\n"
        "    source, destination, inode = (inodes.edit(tx, one.number) for one in (source, destination, inode))\n"
        "    if whiteout_of is None:\n",
        "A cut in the middle leaves a file with both names.",
        (HANDLES,),
    ),
    Mutant(
        "unlink changes the link count in another handle",
        NAMES,
        "        drop_name(volume, tx, victim, now)\n    removal.collect(volume, entry.ino)\n\n\ndef present",
        "    with volume.handle(CREDITS_NAME) as tx:\n"
        "        drop_name(volume, tx, inodes.edit(tx, entry.ino), now)\n"
        "    removal.collect(volume, entry.ino)\n\n\ndef present",
        "A cut in the middle leaves a file with one link more than names.",
        (HANDLES,),
    ),
    Mutant(
        "rename does not drop what it replaces",
        NAMES,
        "        drop_name(volume, tx, victim, now)\n    else:\n        directories.insert",
        "    else:\n        directories.insert",
        "The replaced file keeps its link and its blocks.",
        (HANDLES,),
    ),
    Mutant(
        "link does not count",
        NAMES,
        "        inode.links_count = inode.links_count + 1\n        inode.ctime_ns = directory.mtime_ns",
        "        inode.ctime_ns = directory.mtime_ns",
        "A file is freed while it has a name.",
        (HANDLES,),
    ),
    Mutant(
        "mkdir does not count",
        NAMES,
        "            add_link_for_subdirectory(volume, directory)\n        elif target",
        "        elif target",
        "A directory has one link less than directories below it.",
        (HANDLES,),
    ),
    Mutant(
        "a moved directory keeps its parent",
        NAMES,
        "        directories.set_parent(tx, inode, destination.number)\n",
        "",
        "The entry .. leads elsewhere.",
        (HANDLES,),
    ),
    Mutant(
        "exchanged directories keep their parents",
        NAMES,
        "                directories.set_parent(tx, moved, joined.number)\n",
        "",
        "The entry .. leads elsewhere.",
        (HANDLES, "tests/fs/test_names.py"),
    ),
    # Directories
    Mutant(
        "a split leaf's old half goes home before the commit",
        INDEX,
        "    dirblocks.fill(tx, number, old, [_piece(data, offsets[i], len(names[i])) for i in stay])\n",
        "    dirblocks.fill(tx, number, old, [_piece(data, offsets[i], len(names[i])) for i in stay])\n"
        "    tx.pool.write(number * geometry.block_size, bytes(old))\n",
        "A cut before the commit loses the names that moved.",
        (STORIES,),
    ),
    Mutant(
        "a split leaf's new half is not in the index",
        INDEX,
        "    format_.insert(w, step.base, step.at + 1, hashes[split] + continued, lblk)\n",
        "",
        "Half of the names of a full leaf can't be found.",
        ("tests/structures/test_htree.py", STORIES),
    ),
    Mutant(
        "an index entry is one off",
        INDEX,
        "step.at + 1, hashes[split] + continued, lblk)",
        "step.at + 1, hashes[split] + continued + 2, lblk)",
        "The first name of a new leaf can't be found.",
        ("tests/structures/test_htree.py", STORIES),
    ),
    Mutant(
        "hashes that go on in the next leaf are not marked",
        INDEX,
        "    continued = hashes[split] == hashes[split - 1]\n",
        "    continued = False\n",
        "Names whose hash fills more than a leaf can't be found.",
        ("tests/structures/test_htree.py",),
    ),
    Mutant(
        "a directory block keeps its old checksum",
        DIRECTORY,
        "        return tx.edit(number, partial(_seal, geometry, directory.number, directory.words[25]))\n",
        "        return tx.edit(number)\n",
        "The next mount refuses the directory.",
        (HANDLES,),
    ),
    Mutant(
        "a new directory block has no checksum",
        DIRECTORY,
        "        block = tx.create(number, partial(_seal, geometry, directory.number, directory.words[25]))\n",
        "        block = tx.create(number)\n",
        "The next mount refuses the directory.",
        (HANDLES,),
    ),
    Mutant(
        "a new directory block has no tail",
        DIRECTORY,
        "    if limit < len(block):\n        dirent.put_tail(block)\n",
        "",
        "The checksum of a new directory block is nowhere.",
        (HANDLES,),
    ),
    Mutant(
        "an undone handle leaves the hints of directories",
        "daxfs/structures/dirhints.py",
        "        tx.on_rollback(self.drop)\n",
        "",
        "The next name is put where a block's last entry never was.",
        ("tests/structures/test_caches.py", "tests/structures/test_htree.py"),
    ),
    Mutant(
        "the place of a name is believed after entries have moved",
        "daxfs/structures/directories.py",
        "    if place.offset >= 0 and place.moves == tx.caches[Hints].moves:\n",
        "    if place.offset >= 0:\n",
        "A rename that splits a leaf takes another name away.",
        ("tests/structures/test_directories.py",),
    ),
    Mutant(
        "the leaf of a new name is believed after it was split",
        "daxfs/structures/directories.py",
        "    leaf = place.block if place.moves == tx.caches[Hints].moves else 0\n",
        "    leaf = place.block\n",
        "The name is put where no search comes by.",
        ("tests/structures/test_directories.py",),
    ),
    Mutant(
        "an inode whose making was undone is believed",
        "daxfs/structures/inodes.py",
        "    tx.on_rollback(partial(known.remove, ino))\n",
        "",
        "What lies in a slot that was never used is taken for an inode.",
        ("tests/structures/test_inodes.py",),
    ),
    # Allocation
    Mutant(
        "freed blocks are given out at once",
        BLOCKS,
        "    tx.frees.append(BlockRun(start, count))\n\n\ndef free_all",
        "    tx.frees.append(BlockRun(start, count))\n    apply_frees(tx)\n    del tx.frees[:]\n\n\ndef free_all",
        "A new file stores into blocks that are another's after a cut.",
        (STORIES,),
    ),
    Mutant(
        "freed blocks stay in use",
        BLOCKS,
        "    tx.frees.append(BlockRun(start, count))\n\n\ndef free_all",
        "\n\ndef free_all",
        "What is freed is lost.",
        (HANDLES,),
    ),
    Mutant(
        "a group's free blocks are not counted",
        BLOCKS,
        "        desc.free_blocks_count += count\n",
        "",
        "The descriptor and the bitmap contradict each other.",
        (HANDLES,),
    ),
    Mutant(
        "the superblock's free blocks are not counted",
        BLOCKS,
        "    sb.free_blocks_count = min(sb.free_blocks_count + total, geometry.blocks_count)\n",
        "",
        "statfs(2) shows too little; recovery and e2fsck count anew, so no power cut shows it.",
        ("tests/structures/test_blocks.py", "tests/fs/test_data.py"),
    ),
    Mutant(
        "a bitmap keeps its old checksum",
        BLOCKS,
        "bitmaps.clear_runs(tx.edit(desc.block_bitmap, partial(_seal_bitmap, geometry, desc)), pieces, bits)",
        "bitmaps.clear_runs(tx.edit(desc.block_bitmap), pieces, bits)",
        "The next mount refuses the group.",
        (HANDLES,),
    ),
    Mutant(
        "a descriptor keeps its old checksum",
        "daxfs/structures/groups.py",
        "        tx.seal_record(number, group, partial(_seal, geometry, group, offset), late=True)\n",
        "        pass\n",
        "The next mount refuses the group.",
        (HANDLES,),
    ),
    Mutant(
        "an inode keeps its old checksum",
        "daxfs/structures/inodes.py",
        "    if geometry.metadata_csum:\n"
        "        tx.seal_record(number, ino, partial(seal_slot, geometry, ino, offset))\n"
        "    return inode\n\n\ndef nameable",
        "    return inode\n\n\ndef nameable",
        "The next mount refuses the inode.",
        (HANDLES,),
    ),
    Mutant(
        "a freed inode stays in use",
        "daxfs/structures/inodes.py",
        "    bitmaps.clear_run(tx.edit(desc.inode_bitmap, partial(_seal_bitmap, geometry, desc)), bit, 1)\n",
        "",
        "The bitmap and the counter contradict each other.",
        (HANDLES,),
    ),
    # Blocks that are freed without a revoke
    Mutant(
        "an attribute block is freed without a revoke",
        ATTRIBUTES,
        "        blocks.free(tx, number, 1, metadata=True)\n",
        "        blocks.free(tx, number, 1)\n",
        "Its old copy in the log is replayed over the data that lies there next.",
        (REUSE,),
    ),
    Mutant(
        "an extent tree block is freed without a revoke",
        TREE,
        "    blocks.free(tx, number, 1, metadata=True)\n",
        "    blocks.free(tx, number, 1)\n",
        "Its old copy in the log is replayed over the data that lies there next.",
        (REUSE,),
    ),
    Mutant(
        "an index block is freed without a revoke",
        "daxfs/structures/indirect.py",
        "                self._free(w[at], 1, metadata=True)\n",
        "                self._free(w[at], 1, metadata=False)\n",
        "Its old copy in the log is replayed over the data that lies there next.",
        (REUSE,),
    ),
    Mutant(
        "a directory is freed without a revoke",
        REMOVAL,
        "        metadata = not stat.S_ISREG(inode.mode)\n",
        "        metadata = False\n",
        "Old copies of its blocks in the log are replayed over the data that lies there next.",
        (REUSE,),
    ),
    # Attributes
    Mutant(
        "a shared attribute block keeps its count",
        ATTRIBUTES,
        "header.h_refcount - 1)",
        "header.h_refcount)",
        "The block is never freed.",
        ("tests/structures/test_xattrs.py",),
    ),
    Mutant(
        "a shared attribute block is changed in place",
        ATTRIBUTES,
        ".h_refcount > 1):",
        ".h_refcount > 1 << 20):",
        "Another file's attributes change too.",
        ("tests/structures/test_xattrs.py",),
    ),
    Mutant(
        "a shared attribute block is freed",
        ATTRIBUTES,
        "    if header.h_refcount > 1:\n",
        "    if False:\n",
        "Another file's attributes are lost.",
        ("tests/structures/test_xattrs.py",),
    ),
    Mutant(
        "an attribute block has no checksum",
        ATTRIBUTES,
        "    return partial(_seal, geometry.csum_seed, number) if geometry.metadata_csum else None\n",
        "    return None\n",
        "The next mount refuses the attributes.",
        (HANDLES,),
    ),
    # Data
    Mutant(
        "the edges of new blocks are not zeroed",
        DATA,
        "            zero_edges(volume, delta, lblk << bits, (lblk + length) << bits, offset, stop)\n",
        "            pass\n",
        "A write into a hole shows what the block held before.",
        (OLD,),
    ),
    Mutant(
        "unwritten blocks become written without zeros",
        DATA,
        "        if fresh or run.unwritten:\n            zero_edges",
        "        if fresh:\n            zero_edges",
        "A write into reserved blocks shows what they held before.",
        (OLD,),
    ),
    Mutant(
        "one block too many becomes written",
        DATA,
        "            mapping.mark_written(tx, inode, lblk, length)\n",
        "            mapping.mark_written(tx, inode, lblk, length + 1)\n",
        "A block that nobody has filled is shown.",
        (OLD, OPERATIONS),
    ),
    Mutant(
        "the size is durable before the data",
        DATA,
        "        volume.pool.write(offset + delta, data[: stop - offset])\n"
        "        inode.size = max(inode.size, stop)\n",
        "        inode.size = max(inode.size, stop)\n"
        "    volume.journal.commit()\n"
        "    volume.pool.write(offset + delta, data[: stop - offset])\n",
        "A cut leaves a longer file that shows what its blocks held before.",
        (OPERATIONS,),
    ),
    Mutant(
        "an old tail appears after a write",
        DATA,
        "        if offset > node.size:\n            zero_tail(volume, tx, inode, node.size)\n",
        "",
        "What a cut left behind the end becomes part of the file.",
        (GROWTH,),
    ),
    Mutant(
        "an old tail appears after a truncate",
        DATA,
        "        if size > inode.size:\n            zero_tail(volume, tx, inode, inode.size)\n",
        "",
        "What a cut left behind the end becomes part of the file.",
        (GROWTH,),
    ),
    Mutant(
        "an old tail appears after a copy",
        COPYING,
        "        data.zero_tail(volume, tx, change.inode, change.inode.size)\n",
        "",
        "What a cut left behind the end becomes part of the file.",
        (GROWTH,),
    ),
    Mutant(
        "an old tail appears after an allocation",
        RANGES,
        "            data.zero_tail(volume, tx, inode, inode.size)\n",
        "",
        "What a cut left behind the end becomes part of the file.",
        (GROWTH,),
    ),
    Mutant(
        "an old tail is granted to a client",
        GRANTS + "requests.py",
        "        for low, high in () if unwritten else tuple(grants.preallocated.gaps(begin, stop)):\n"
        "            volume.pool.zero(low + delta, high - low)\n",
        "        for low, high in () if unwritten else tuple(grants.preallocated.gaps(begin, stop)):\n",
        "What a cut left behind the end becomes part of the file that a client makes longer.",
        (GROWTH,),
    ),
    Mutant(
        "a truncate zeroes before it commits",
        DATA,
        "        volume.journal.commit()\n"
        "        inode = inodes.read(volume.view, ino)\n        if inode.size == size:",
        "        inode = inodes.read(volume.view, ino)\n        if inode.size == size:",
        "A cut leaves the old size with zeros at the end.",
        (OPERATIONS, HANDLES),
    ),
    Mutant(
        "a truncate keeps the blocks",
        DATA,
        "            whole = change.unmap(first, None, limit=BLOCKS_PER_CUT)\n",
        "",
        "Blocks behind the end belong to the file for ever.",
        (OPERATIONS,),
    ),
    Mutant(
        "a punch leaves its edges",
        RANGES,
        "    zero_edges(volume, file, offset, end)\n",
        "",
        "The unaligned ends of a hole keep their bytes.",
        ("tests/fs/test_ranges.py",),
    ),
    Mutant(
        "a zeroed range leaves its edges",
        RANGES,
        "    zero_edges(volume, file, begin, end)\n",
        "",
        "The unaligned ends of a zeroed range keep their bytes.",
        ("tests/fs/test_ranges.py",),
    ),
    Mutant(
        "collapse and insert do not commit",
        RANGES,
        "    if not volume.read_only:\n        volume.commit()\n",
        "    pass\n",
        "After a cut a later overwrite is found at another offset.",
        (STORIES,),
    ),
    Mutant(
        "a copy makes the file longer first",
        COPYING,
        "    done = yield from copy(volume, source, source_offset, target, target_offset, length)\n",
        "    if target_offset + length > target.node.size:\n"
        "        extend(volume, target.node, target_offset + length)\n"
        "        volume.commit()\n"
        "    done = yield from copy(volume, source, source_offset, target, target_offset, length)\n",
        "A cut leaves a file of the new size without the bytes.",
        (OPERATIONS,),
    ),
    Mutant(
        "an extent tree block has no checksum",
        TREE,
        "    return lambda buf: format_.seal_block(buf, geometry.inode_seed(number, generation))\n",
        "    return None\n",
        "The next mount refuses the file.",
        ("tests/structures/test_extents.py", REUSE),
    ),
    Mutant(
        "a split node keeps what moved",
        TREE,
        "    format_.set_entries(writable(tx, inode, number), first)\n    parent",
        "    parent",
        "Two nodes map the same blocks.",
        ("tests/structures/test_extents.py",),
    ),
    # Grants
    Mutant(
        "granted blocks become free at once",
        GRANTS + "epochs.py",
        "        if grants is None and not self.stale:\n",
        "        if True:\n",
        "A client stores into what is another file's by now.",
        ("tests/fs/grants/test_epochs.py",),
    ),
    Mutant(
        "a quarantine inode is no orphan",
        LIFETIMES,
        "        self.unnamed(tx, ino)\n        _put(tx, self.quarantine, ino)\n",
        "        _put(tx, self.quarantine, ino)\n",
        "After a cut nobody frees it.",
        ("tests/fs/grants/test_epochs.py", LEASED),
    ),
    Mutant(
        "a client's word makes anything part of the file",
        GRANTS + "write_notifications.py",
        "        if size > node.size and not grants.preallocated.covers(node.size, size):\n",
        "        if False:\n",
        "Blocks behind the end that hold what was deleted become readable.",
        ("tests/fs/grants/test_dishonest_client.py",),
    ),
    Mutant(
        "a deferred free does not wait for its epoch",
        GRANTS + "epochs.py",
        "        while grants.deferred and grants.deferred[0].epoch < since:\n",
        "        while grants.deferred and grants.deferred[0].epoch <= since:\n",
        "A holder that has not renewed stores into what is another file's by now.",
        ("tests/fs/grants/test_epochs.py",),
    ),
    Mutant(
        "an undone cut stays deferred",
        GRANTS + "epochs.py",
        "            grants.deferred, grants.granted = before, granted\n            self.deferred -= size\n",
        "            self.deferred -= size\n",
        "The blocks are the file's and wait to be freed.",
        ("tests/fs/grants/test_epochs.py",),
    ),
    Mutant(
        "a quarantine inode outlives the handle that made it",
        LIFETIMES,
        "        members.add(ino)\n        tx.on_rollback(partial(members.discard, ino))\n",
        "        members.add(ino)\n",
        "The books name an inode that does not exist.",
        ("tests/fs/grants/test_epochs.py", "tests/fs/test_lifetimes.py"),
    ),
    Mutant(
        "moved blocks do not end the epoch",
        GRANTS + "inode_grants.py",
        "        self.preallocated.cut(begin, end)\n        self.bump_epoch()\n",
        "        self.preallocated.cut(begin, end)\n",
        "Clients go on where the file's bytes no longer lie.",
        ("tests/fs/grants/test_inode_grants.py",),
    ),
    Mutant(
        "filled holes do not end the epoch",
        CHANGE,
        "            node.holes_filled()\n",
        "            pass\n",
        "Clients go on reading zeros where bytes were written.",
        ("tests/fs/grants/test_inode_grants.py",),
    ),
    Mutant(
        "growth goes on beside a write",
        GRANTS + "table.py",
        "            self._free_preallocated(grants)\n",
        "            pass\n",
        "What a client stores behind the end and what is written there become one file.",
        ("tests/fs/grants/test_table.py", "tests/fs/grants/test_dishonest_client.py"),
    ),
    # The owner of an open inode
    Mutant(
        "a map keeps what was cut",
        CHANGE,
        "            node.unmapped(begin, end)\n",
        "            pass\n",
        "Reads and writes go to blocks that are another file's by now.",
        ("tests/fs/test_ranges.py", "tests/fs/test_nodes.py"),
    ),
    Mutant(
        "a map does not hear of a collapse",
        CHANGE,
        "        if self._remapped:\n            node.remapped()\n        for",
        "        for",
        "Reads go to where the bytes lay before.",
        ("tests/fs/test_ranges.py", "tests/fs/test_nodes.py"),
    ),
    Mutant(
        "a node hears of a change that fails",
        CHANGE,
        "        if kind is not None:\n            return\n",
        "",
        "The file seems longer than it is.",
        ("tests/fs/test_change.py", "tests/fs/test_nodes.py"),
    ),
    Mutant(
        "an undone change loses the times that waited",
        "daxfs/fs/nodes.py",
        "            node.atime, node.mtime, node.ctime = before\n\n        tx.on_rollback(undo)\n        if atime:",
        "            pass\n\n        tx.on_rollback(undo)\n        if atime:",
        "A refused operation takes back the time of a write before it.",
        ("tests/fs/test_nodes.py",),
    ),
]
