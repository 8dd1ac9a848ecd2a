"""Faults of the log, of transactions and of recovery."""

from __future__ import annotations

from teeth.mutant import Mutant

LOG = "daxfs/journal/log.py"
JOURNAL = "daxfs/journal/journal.py"
NO_LOG = "daxfs/journal/nolog.py"
TRANSACTION = "daxfs/journal/transaction.py"
HANDLE = "daxfs/journal/handle.py"
RECOVERY = "daxfs/journal/recovery.py"
FAST_SCAN = "daxfs/journal/fast_scan.py"
CONTINUED = "daxfs/journal/continued.py"
FAST_REPLAY = "daxfs/fs/fast_replay.py"

CUTS = "tests/journal/test_crash.py"
LOGS = "tests/journal/test_log.py"
NUMBERS = "tests/journal/test_numbers.py"
REPLAYS = "tests/journal/test_recovery.py"
SCANS = "tests/journal/test_fast_scan.py"
FAST = "tests/fs/test_fast_replay.py"
HANDLES = "tests/journal/test_transaction.py"
ORDER = "tests/crash/test_order.py"
REUSE = "tests/crash/test_reuse.py"
OPERATIONS = "tests/fs/test_power_loss.py::test_one_operation"
LAP = "tests/fs/test_power_loss.py::test_a_log_that_begins_anew"
OUTSIDE = "tests/fs/test_outside.py"
OTHERS = "tests/fs/test_power_loss.py::test_others_recover_to_the_same_tree"

MUTANTS = [
    # The commit
    Mutant(
        "commit record valid at once",
        LOG,
        'image[at : at + 4] = (sequence ^ _M).to_bytes(4, "big")',
        'image[at : at + 4] = sequence.to_bytes(4, "big")',
        "The commit record may be durable before the blocks that it commits.",
        (CUTS,),
    ),
    Mutant(
        "no fence before the commit word",
        LOG,
        "        pool.fence()\n        pool.store_word(number, word)\n",
        "        pool.store_word(number, word)\n",
        "The commit record's number may be durable before the blocks and the file data that it commits.",
        (CUTS,),
    ),
    Mutant(
        "no fence behind the commit word",
        LOG,
        "        pool.store_word(number, word)\n        pool.fence()\n",
        "        pool.store_word(number, word)\n",
        "The blocks go home before the transaction is durable in the log, and a sync returns too early.",
        (CUTS,),
    ),
    Mutant(
        "home before the log",
        JOURNAL,
        "        self._blocks_logged += writer.commit(copies, tx.revokes)\n",
        "        for number, content in copies.items():\n"
        "            write(number * size, content)\n"
        "        self._blocks_logged += writer.commit(copies, tx.revokes)\n",
        "A cut before the commit leaves a part of the transaction at home.",
        (CUTS,),
    ),
    Mutant(
        "commit word that was right before",
        LOG,
        "        if self._words[number >> 2] == word:\n",
        "        if False:\n",
        "An old block whose third word is the new number makes the record valid before it is complete.",
        (NUMBERS,),
    ),
    Mutant(
        "nothing is invalidated",
        LOG,
        "                if first == _MAGIC_WORD:\n",
        "                if first == 0:\n",
        "A torn block mixes the first word of an old record with its own number.",
        (CUTS,),
    ),
    Mutant(
        "invalidated without a fence",
        LOG,
        "        if needed > self._invalidated and self._invalidate(needed):\n            self._pool.fence()\n",
        "        if needed > self._invalidated:\n            self._invalidate(needed)\n",
        "The magic is taken from old blocks in the same epoch as new ones are stored over them.",
        (CUTS, NUMBERS),
    ),
    Mutant(
        "a block with the magic is not escaped",
        LOG,
        "content, flags = image[at : at + size], jbd2.FLAG_ESCAPE",
        "content = image[at : at + size]",
        "A block that begins with jbd2's magic comes back without it.",
        (CUTS, LOGS),
    ),
    Mutant(
        "revokes are not logged",
        LOG,
        "numbers, image = sorted(revokes), ",
        "numbers, image = list[int](), ",
        "Old copies of freed metadata blocks are replayed over what lies there now.",
        (CUTS, REUSE),
    ),
    Mutant(
        "checksums are not made",
        TRANSACTION,
        "                    seal(*context, content)\n",
        "                    pass\n",
        "Metadata is stored with the checksums of its old content.",
        (HANDLES, OPERATIONS),
    ),
    Mutant(
        "memory that runs out before a commit stops the journal",
        JOURNAL,
        "            if (isinstance(error, MemoryError) or crowded) and not complete:\n",
        "            if False:\n",
        "A daemon that lacks memory for a moment loses what was not committed.",
        (HANDLES,),
    ),
    Mutant(
        "what hooks have done stays when a seal fails",
        JOURNAL,
        "            self._transaction.run_seals()  # in the handle, which undoes what the hooks did if a seal fails\n",
        "        self._transaction.run_seals()\n",
        "The next commit's hooks free blocks a second time.",
        (HANDLES,),
    ),
    Mutant(
        "descriptors are sealed before bitmaps",
        TRANSACTION,
        "for table in (self.seals, self.late):",
        "for table in (self.late, self.seals):",
        "Group descriptors hold the checksums of the bitmaps before the transaction.",
        (HANDLES, OPERATIONS),
    ),
    Mutant(
        "without a journal, metadata before data",
        NO_LOG,
        "        self._pool.fence()\n        return 0\n",
        "        return 0\n",
        "A pool without a journal may name blocks that are not filled.",
        (CUTS,),
    ),
    Mutant(
        "without a journal, a commit is not durable",
        NO_LOG,
        '        """Make the home copies durable: without a log they are the commit."""\n        self._pool.fence()\n',
        '        """Make the home copies durable: without a log they are the commit."""\n',
        "A sync of a pool without a journal returns before its metadata is durable.",
        (CUTS,),
    ),
    Mutant(
        "the superblock of a shrink waits as others do",
        JOURNAL,
        "            if tx.superblock_first:\n                self._store_superblock(superblock)\n",
        "",
        "Without checksums, e2fsck mends a shrink that a cut has interrupted to the old size, at the cost of files.",
        ("tests/crash/test_shrinking.py",),
    ),
    # The tail
    Mutant(
        "the tail moves before the home copies are durable",
        LOG,
        "        self.store_waiting()\n        pool.fence()\n        if self._tail",
        "        self.store_waiting()\n        if self._tail",
        "The log gives up transactions whose home copies may be lost.",
        (CUTS, LAP),
    ),
    Mutant(
        "the log is written over before the tail has moved",
        LOG,
        "        pool.fence()  # before the first of the old transactions is invalidated or written over\n",
        "",
        "A cut finds the old tail and a log that begins with new transactions.",
        (CUTS, LAP),
    ),
    Mutant(
        "the superblock is forgotten when the tail moves",
        LOG,
        "        self.store_waiting()\n        pool.fence()\n        if self._tail",
        "        pool.fence()\n        if self._tail",
        "What the superblock says (an orphan, free counts) is in given up transactions alone.",
        (ORDER,),
    ),
    Mutant(
        "sequence numbers do not wrap",
        LOG,
        "        self._sequence = sequence + 1 & _M\n        return needed\n",
        "        self._sequence = sequence + 1\n        return needed\n",
        "After 2^32 numbers the log can't be written.",
        (NUMBERS,),
    ),
    Mutant(
        "no block is stale",
        LOG,
        "        return header[:4] == jbd2.MAGIC_BYTES and header[jbd2.SEQUENCE_OFFSET : _SEQUENCE_END] ==",
        "        return False and header[jbd2.SEQUENCE_OFFSET : _SEQUENCE_END] ==",
        "The log begins anew at an old block that passes for the next transaction.",
        (NUMBERS,),
    ),
    Mutant(
        "the checksum of the tail's word is not balanced",
        "daxfs/journal/tail.py",
        "        if self.superblock.has_checksum:\n            sequence, start =",
        "        if False:\n            sequence, start =",
        "Whenever the log begins anew its superblock has a wrong checksum.",
        (LOGS, NUMBERS),
    ),
    Mutant(
        "the tail moves in two words",
        "daxfs/journal/tail.py",
        "        self._pool.store_word(self._offset + _S_SEQUENCE, word, 8)\n",
        "        self._pool.store_word(self._offset + _S_SEQUENCE, word & 0xFFFFFFFF)\n"
        "        self._pool.fence()\n"
        "        self._pool.store_word(self._offset + _S_START, word >> 32)\n",
        "A cut between the two leaves a tail that never was.",
        (CUTS, LOGS),
    ),
    # The ends of a mount
    Mutant(
        "the log is marked empty before the superblock is home",
        LOG,
        "            self.store_waiting()\n"
        "            self._pool.fence()\n"
        "            self._tail.empty(self._sequence)\n",
        "            self._tail.empty(self._sequence)\n"
        "            self._pool.fence()\n"
        "            self.store_waiting()\n",
        "A torn superblock can't be mended from the log any more.",
        (ORDER,),
    ),
    Mutant(
        "the log is marked empty in the epoch of the last home copies",
        LOG,
        "            self.store_waiting()\n            self._pool.fence()\n            self._tail.empty(",
        "            self.store_waiting()\n            self._tail.empty(",
        "An empty log may be durable before what it held is durable at home.",
        (ORDER,),
    ),
    Mutant(
        "the superblock goes home without a last look",
        LOG,
        "            self.before_home(content)\n            self._pool.replace(",
        "            self._pool.replace(",
        "What tune2fs has stored into the superblock of a mounted pool is lost when the log begins anew.",
        (OUTSIDE,),
    ),
    Mutant(
        "what was logged outlives an unmount",
        LOG,
        "            self._invalidate(used)",
        "            self._invalidate(0)",
        "The kernel's log comes to old blocks that bear the numbers of its own.",
        (LOGS,),
    ),
    Mutant(
        "numbers begin anew with each mount",
        LOG,
        "self._tail.empty(self._sequence)",
        "self._tail.empty(1)",
        "Old blocks in a log without checksums bear numbers that are used again.",
        (LOGS,),
    ),
    # Transactions
    Mutant(
        "a forgotten block keeps its copy",
        HANDLE,
        "        if number in self._copies:\n            self._drop(number)\n        elif number in self._recent:\n",
        "        if number in self._recent:\n",
        "The copy of a freed block goes home over the data that lies there next.",
        (HANDLES,),
    ),
    Mutant(
        "a block that is used again stays revoked",
        HANDLE,
        "            revokes.discard(number)\n            self._undo.append((_UNREVOKED, number))\n",
        "            pass\n",
        "The revoke keeps the block's own new copy from being replayed.",
        (CUTS, HANDLES),
    ),
    Mutant(
        "an undone handle leaves its changes",
        HANDLE,
        "            tx.copies[what][:] = rest[0]\n",
        "            pass\n",
        "An operation that failed is committed in part.",
        (HANDLES,),
    ),
    Mutant(
        "an undone handle leaves its frees",
        HANDLE,
        "        del tx.frees[self._frees_mark :]\n",
        "",
        "Blocks of a file become free though the operation that freed them was undone.",
        (HANDLES, "tests/structures/test_blocks.py"),
    ),
    Mutant(
        "a freed block keeps its copy",
        HANDLE,
        "        elif number in self._recent:\n            self._drop_recent(number)\n        self._verified",
        "        self._verified",
        "What a block was before it was freed goes home over what lies there now.",
        (HANDLES,),
    ),
    Mutant(
        "an undone change stays in a kept copy",
        HANDLE,
        "                del self._recent[number]\n            else:",
        "            else:",
        "An operation that failed is committed with the next change of the block.",
        (HANDLES,),
    ),
    Mutant(
        "copies of logged data are kept",
        JOURNAL,
        "tx.renew(keep=not self.logged)",
        "tx.renew(keep=True)",
        "A logged write brings back what the block held before stores in place.",
        (HANDLES,),
    ),
    Mutant(
        "a kept record is sealed once",
        HANDLE,
        "                self._add_seal(table, number, key, seal, context)\n        found",
        "                pass\n        found",
        "An inode that one transaction after the other changes has the checksum of the first.",
        (HANDLES,),
    ),
    # Recovery
    Mutant(
        "revokes are ignored by the replay",
        RECOVERY,
        "        if until is not None and not is_newer(copy.sequence, until):\n",
        "        if False:\n",
        "Old copies of freed metadata blocks are replayed over what lies there now.",
        (REPLAYS, CUTS, REUSE),
    ),
    Mutant(
        "a revoke covers later copies too",
        RECOVERY,
        "        if until is not None and not is_newer(copy.sequence, until):\n",
        "        if until is not None:\n",
        "A block that became metadata again is not replayed.",
        (REPLAYS, CUTS),
    ),
    Mutant(
        "the oldest copy wins",
        RECOVERY,
        "        final[copy.home] = copy\n",
        "        final.setdefault(copy.home, copy)\n",
        "The replay brings back the first version of a block.",
        (CUTS, REPLAYS),
    ),
    Mutant(
        "the replay does not put the magic back",
        RECOVERY,
        "_MAGIC_WORD + content[4:] if copy.flags & jbd2.FLAG_ESCAPE else content",
        "content",
        "A block that begins with jbd2's magic comes back without it.",
        (REPLAYS, CUTS),
    ),
    Mutant(
        "the log is emptied in the epoch of the replay",
        RECOVERY,
        "    pool.fence()\n    if fast is None:\n        _empty",
        "    if fast is None:\n        _empty",
        "A cut in the replay leaves an empty log and a part of the home copies.",
        (CUTS,),
    ),
    Mutant(
        "the log is emptied before the replay",
        RECOVERY,
        "    size = geometry.block_size\n    for home, copy in final.items():\n",
        "    size = geometry.block_size\n"
        "    _empty(pool, geometry, area, superblock, end + 1 & _M)\n"
        "    for home, copy in final.items():\n",
        "A replay that is cut can't be done again.",
        (CUTS,),
    ),
    Mutant(
        "the log is not emptied by the replay",
        RECOVERY,
        "    _empty(pool, geometry, area, superblock, end + 1 & _M)\n    return _report(superblock, end, len(final)",
        "    return _report(superblock, end, len(final)",
        "A replayed pool can't be mounted.",
        (REPLAYS,),
    ),
    Mutant(
        "the scan's numbers do not wrap",
        RECOVERY,
        "                end = header.h_sequence + 1 & _M\n",
        "                end = header.h_sequence + 1\n",
        "What follows the last number of 32 bits is lost.",
        (NUMBERS, REPLAYS),
    ),
    Mutant(
        "numbers are compared as they are",
        RECOVERY,
        "    return 0 < (sequence - other & _M) < _HALF\n",
        "    return sequence > other\n",
        "About the wrap a revoke covers the wrong copies.",
        (REPLAYS,),
    ),
    Mutant(
        "a damaged descriptor is believed",
        RECOVERY,
        "        if self._torn:\n",
        "        if False:\n",
        "Blocks go to wherever damaged tags say.",
        (REPLAYS,),
    ),
    Mutant(
        "a damaged copy is replayed",
        RECOVERY,
        "        reader.check_copy(copy)\n",
        "",
        "A damaged block of the log goes home.",
        (REPLAYS,),
    ),
    Mutant(
        "a descriptor around the end of the log",
        RECOVERY,
        "position if position < superblock.log_end else position - (superblock.log_end - superblock.s_first)",
        "position if position <= superblock.log_end else position - (superblock.log_end - superblock.s_first)",
        "A transaction that goes around the log's end is read one block too far.",
        (LOGS, CUTS),
    ),
    # Fast commits
    Mutant(
        "the log is emptied with its fast commits",
        RECOVERY,
        "    if fast is None:\n        _empty",
        "    if True:\n        _empty",
        "A cut in the recovery loses the fast commits.",
        (REPLAYS, FAST),
    ),
    Mutant(
        "fast commits of any transaction",
        FAST_SCAN,
        "            if number != sequence:\n                break\n",
        "",
        "What was done before the last commit is done once more.",
        (SCANS, REPLAYS),
    ),
    Mutant(
        "a torn fast commit counts",
        FAST_SCAN,
        "found[:complete]",
        "found",
        "Records are believed that no checksum covers.",
        (SCANS, FAST),
    ),
    Mutant(
        "fast commits become a transaction of another number",
        CONTINUED,
        "fast.sequence, fast.position\n",
        "fast.sequence + 1, fast.position\n",
        "The transaction does not follow the last one, and is never found.",
        (FAST,),
    ),
    Mutant(
        "fast commits become a transaction elsewhere",
        RECOVERY,
        "self.behind = self._reader.after(position)",
        "self.behind = position",
        "The last commit record is overwritten.",
        (REPLAYS, FAST),
    ),
    Mutant(
        "a transaction over the tail",
        CONTINUED,
        "        if self.blocks_needed(len(copies), len(revokes)) >= self._free:\n",
        "        if False:\n",
        "A transaction that does not fit begins the log anew, and the fast commits are lost before it is durable.",
        (FAST,),
    ),
    Mutant(
        "blocks that changed hands are freed",
        FAST_REPLAY,
        "subtract(freed, list(used))",
        "subtract(freed, [])",
        "Blocks that one file has given to another are free.",
        (FAST,),
    ),
    Mutant(
        "blocks of others are mapped",
        FAST_REPLAY,
        "in subtract(joined(self._mapped), freed):\n",
        "in ():\n",
        "Two files have the same block.",
        (FAST,),
    ),
    Mutant(
        "a nameless file of a fast commit stays",
        FAST_REPLAY,
        "0 if ino in self._fresh else links",
        "links",
        "An inode without a name is never freed.",
        (FAST,),
    ),
    Mutant(
        "a number that is used again keeps the old file's blocks",
        FAST_REPLAY,
        "        if used and self._is_another(image):\n",
        "        if False:\n",
        "A new file shows what a removed one held.",
        (FAST,),
    ),
    Mutant(
        "slots between are left as they were",
        "daxfs/structures/inode_allocation.py",
        "    _clear_unused_slots(tx, desc, bit)\n",
        "",
        "Slots of the inode table that were never used count as used.",
        ("tests/structures/test_inodes.py",),
    ),
    Mutant(
        "fast commits stay behind their transaction",
        CONTINUED,
        "        erase_fast_commits(self._pool, self._area, self._tail.superblock)\n",
        "",
        "e2fsck does not replay the log.",
        (FAST,),
    ),
    Mutant(
        "a log is opened beside old fast commits",
        LOG,
        "        erase_fast_commits(pool, area, superblock)\n",
        "",
        "e2fsck does not replay the log.",
        (LOGS,),
    ),
]
