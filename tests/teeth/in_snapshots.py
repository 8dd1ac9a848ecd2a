"""Faults of snapshots: exception stores, copies before writes, and what the fs layer makes of them."""

from __future__ import annotations

from teeth.mutant import Mutant

KEEPER = "daxfs/fs/snapshots/keeper.py"
CATALOGUE = "daxfs/fs/snapshots/catalogue.py"
READING = "daxfs/snapshots/reading.py"
PAST = "daxfs/fs/snapshots/past.py"
FILES = "daxfs/fs/snapshots/files.py"
GRANTS = "daxfs/fs/grants/inode_grants.py"
STORE = "daxfs/snapshots/store.py"
COPIER = "daxfs/snapshots/copier.py"
JOURNAL = "daxfs/journal/journal.py"
PERSIST = "daxfs/pmem/persist.py"

COPIES = ("tests/snapshots/test_copier.py",)
STORES = ("tests/snapshots/test_store.py",)
STREAM = "daxfs/snapshots/stream.py"
SEND = "daxfs/tools/snapshotsend.py"

STREAMS = ("tests/snapshots/test_stream.py",)
SENDS = ("tests/tools/test_snapshotsend.py",)
READERS = ("tests/snapshots/test_reading.py",)
KEEPERS = ("tests/fs/snapshots/test_keeper.py",)
STORING = ("tests/fs/grants/test_storing.py",)
IMAGES = ("tests/fs/test_imaging.py",)
PROTECTION = ("tests/fs/snapshots/test_protection.py",)
HANDLES = ("tests/journal/test_before_handles.py",)

RESTORES = ("tests/fs/test_restoring.py",)
RESTORING = "daxfs/fs/restoring.py"

MUTANTS = [
    Mutant(
        "restore: the newest copy of a block wins",
        RESTORING,
        "        wanted = ~done[old]\n",
        "        wanted = np.ones(len(old), bool)\n",
        "The tree is a mixture of the snapshot and of newer ones.",
        RESTORES,
    ),
    Mutant(
        "restore: the bit is taken away before the copies are durable",
        RESTORING,
        "    pool.fence()\n    store_block(special << plan.bits, _restored_superblock(pool, plan, superblock))\n"
        "    pool.fence()\n",
        "    store_block(special << plan.bits, _restored_superblock(pool, plan, superblock))\n",
        "A power cut leaves a part of the copies, and says that all are made.",
        RESTORES,
    ),
    Mutant(
        "restore: the superblock is stored without the bit",
        RESTORING,
        "    sb.s_feature_incompat |= RESTORING\n    sb.buffer[PLAN_AT : PLAN_AT + 8] = mounting",
        "    sb.buffer[PLAN_AT : PLAN_AT + 8] = mounting",
        "A power cut before the log is cleared leaves a pool that seems to be whole.",
        RESTORES,
    ),
    Mutant(
        "restore: the bit is not durable before the place of the plan",
        RESTORING,
        "    pool.fence()\n    sb.buffer[PLAN_AT : PLAN_AT + 8] = head",
        "    sb.buffer[PLAN_AT : PLAN_AT + 8] = head",
        "A power cut leaves a superblock whose checksum is wrong, without the bit that explains it.",
        RESTORES,
    ),
    Mutant(
        "restore: old transactions stay in the log",
        RESTORING,
        "        _clear_log(pool, plan, bits, _blocks_of_plan(pool, head))\n",
        "",
        "A later recovery replays transactions from after the snapshot.",
        RESTORES,
    ),
    Mutant(
        "restore: a deleted snapshot comes back",
        RESTORING,
        "            _mark_gone(pool, plan, chunk)\n",
        "            pass\n",
        "A snapshot whose blocks were used again is listed as valid.",
        RESTORES,
    ),
    Mutant(
        "restore: newer snapshots are deleted without being asked for",
        RESTORING,
        "    if lost and not force:\n",
        "    if False:\n",
        "A restore deletes snapshots that nobody named.",
        RESTORES,
    ),
    Mutant(
        "snapshot: no fence before the second word",
        STORE,
        "        raw.fence()\n        raw.store_word(entry + NEW_AT, new, 8)\n",
        "        raw.store_word(entry + NEW_AT, new, 8)\n",
        "An entry may be durable before the old content that it names.",
        COPIES,
    ),
    Mutant(
        "snapshot: no fence after the second word",
        STORE,
        "        raw.fence()\n        self.count += count\n",
        "        self.count += count\n",
        "A block may be overwritten before the entry of its copy is durable: the old content is lost.",
        COPIES,
    ),
    Mutant(
        "snapshot: no fence before the second word of a batch",
        STORE,
        "        raw.fence()\n        raw.store_word(place_of_first, new_of_first, 8)\n",
        "        raw.store_word(place_of_first, new_of_first, 8)\n",
        "Entries may be durable before the old contents that they name.",
        COPIES,
    ),
    Mutant(
        "snapshot: no fence after the second word of a batch",
        STORE,
        "        raw.fence()\n        self.count += len(old)\n",
        "        self.count += len(old)\n",
        "Blocks may be overwritten before the entries of their copies are durable.",
        COPIES,
    ),
    Mutant(
        "snapshot: a batch is in the table before its contents are durable",
        STORE,
        "        if not whole:\n            words[1] = 0\n",
        "",
        "After a power cut, entries name what was never stored.",
        COPIES,
    ),
    Mutant(
        "snapshot: a large batch is in the table before its contents are durable",
        STORE,
        "    if not whole:\n        entries[0, 1] = 0\n",
        "",
        "After a power cut, entries name what was never stored.",
        COPIES,
    ),
    Mutant(
        "snapshot: a store that only writes use grows when it is full",
        KEEPER,
        "        if journal.idle and not self._growing and not self.volume.read_only:\n",
        "        if False:\n",
        "The growth finds no room for its own copies, and the snapshot is lost in a pool that has room.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a growth counts what it has used as room",
        KEEPER,
        "            while store.room < exceptions:\n",
        "            goal = store.count + exceptions\n            while store.room < goal - store.count:\n",
        "A write that needs all of the new room loses the snapshot in a pool that has room.",
        KEEPERS,
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
        "                    before(offset, size)\n            else:\n",
        "                    pass\n            else:\n",
        "The snapshot holds the new content.",
        COPIES,
    ),
    Mutant(
        "snapshot: a write of several chunks looks at the first byte of their bits only",
        PERSIST,
        "                low, high = chunk >> 3, (last >> 3) + 1\n",
        "                low, high = chunk >> 3, (chunk >> 3) + 1\n",
        "The snapshot holds a part of the new content.",
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
        "            if needed[chunk >> 3] >> (chunk & 7) & 1:\n                before(offset, size)\n        except",
        "            if needed[chunk >> 3] >> (chunk & 7) & 1:\n                pass\n        except",
        "The snapshot holds the new word.",
        COPIES,
    ),
    Mutant(
        "snapshot: a full store goes on",
        COPIER,
        "        if copied is None:\n            self._lost(True)\n            return\n",
        "        if copied is None:\n            return\n",
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
    Mutant(
        "snapshot: an older one does not need what a newer one copies",
        KEEPER,
        "            needed = past.union(needed, self.copier.needed)\n",
        "            pass\n",
        "An older snapshot loses the blocks that were freed before the newer one.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a deletion merges nothing",
        KEEPER,
        "        if at:\n            yield from self._merge(at)\n",
        "        if at:\n            yield\n",
        "The next older snapshot loses what only the deleted one had.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: another program's changes are not noticed",
        CATALOGUE,
        "    foreign = recorded(view, directory.number) != record(view.superblock())\n",
        "    foreign = not recorded(view, directory.number)\n",
        "A snapshot shows blocks that the kernel has overwritten.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: another program's changes within the second of the unmount are not noticed",
        "daxfs/fs/mounting.py",
        "    return int(time.time()) - 1 & 0xFFFFFFFF\n",
        "    return int(time.time()) & 0xFFFFFFFF\n",
        "A snapshot shows blocks that e2fsck has changed.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: the superblock waits for recovery",
        KEEPER,
        "        sb.s_feature_incompat &= ~int(Incompat.needs_recovery)\n",
        "",
        "An image says that its log must be replayed.",
        (*IMAGES, *KEEPERS),
    ),
    Mutant(
        "snapshot: clients are forgotten",
        KEEPER,
        "                    self.copier.copy(chunks[at : at + MAPPED_AT_ONCE])\n",
        "                    pass\n",
        "A client that was granted memory before changes the snapshot.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: what clients have renewed counts as theirs",
        GRANTS,
        "            _forget(self.storable, file, holder)\n",
        "            pass\n",
        "Each snapshot copies all that was ever granted for storing.",
        (*STORING, *KEEPERS),
    ),
    Mutant(
        "snapshot: a deletion merges what its table had before the older store grew",
        KEEPER,
        "        self._grow(older, total + reserve)  # the reserve need not be had\n"
        "        first, committed = 0, False\n"
        "        while gone in self.kept:\n            old, new = gone.store.table(first, MERGED_AT_ONCE)\n",
        "        most = gone.store.count\n        self._grow(older, total + reserve)\n"
        "        first, committed = 0, False\n"
        "        while gone in self.kept:\n"
        "            old, new = gone.store.table(first, min(MERGED_AT_ONCE, most - first))\n",
        "The older snapshot lacks what the growth itself has overwritten, and can no longer be read.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: any file where the stores are is one",
        FILES,
        "bool(inode.flags & EXT4_IMMUTABLE_FL) and inode.uid == 0 and inode.links_count == 1",
        "True",
        "A copy of a store, or one that a user has forged, is believed.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: a deletion that fails leaves the older store in charge",
        KEEPER,
        "            if copier is not None:\n                self._use(copier)\n            self._restore_roles()\n",
        "            self._restore_roles()\n",
        "The newest snapshot shows what was written after the failure.",
        ("tests/fs/snapshots/test_deleting.py",),
    ),
    Mutant(
        "snapshot: a deletion takes directories for files",
        FILES,
        "    return stat.S_ISREG(inodes.read(view, place.ino).mode)\n",
        "    return True\n",
        "A directory loses its name with all that is in it.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: the protection of a store can be lifted",
        "daxfs/fs/flags.py",
        "        if inode.flags & ~flags & EXT4_IMMUTABLE_FL:\n            volume.snapshots.refuse_change(ino)\n",
        "",
        "Copies go into blocks that belong to another file by then.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: bad memory of a store is an error of the mount",
        CATALOGUE,
        "    except (NotAStore, MissingMemory):\n        return None\n",
        "    except NotAStore:\n        return None\n",
        "One bad line costs all snapshots, and nobody can list them or make new ones.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: a new one makes foreign stores valid",
        KEEPER,
        "                if kept is not None and kept.header.valid:\n                    catalogue.invalidate(",
        "                if False:\n                    catalogue.invalidate(",
        "A snapshot shows blocks that were overwritten while its store was somewhere else.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: stores have the times of a clock that was set back",
        KEEPER,
        "        created_ns = max(clock.now(), self._disown() + 1)",
        "        created_ns = min(clock.now(), self._disown() + clock.now())",
        "An older snapshot is read through a newer one whose store is damaged.",
        PROTECTION,
    ),
    Mutant(
        "snapshot: another program's changes before a replay are not noticed",
        "daxfs/fs/mounting.py",
        "    if catalogue.was_written_after(found, sb):\n",
        "    if catalogue.was_written_after(sb, sb):\n",
        "The log's superblock hides that debugfs has changed the pool.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: clients are not asked to renew",
        "daxfs/fs/grants/storing.py",
        "        grants.bump_epoch()\n",
        "        pass\n",
        "A busy client stays granted all it ever stored to, and each snapshot copies it.",
        (*STORING, *KEEPERS),
    ),
    Mutant(
        "snapshot: a large mapping does not fit into a new store",
        FILES,
        "    if extend(volume, tx, inode, chunks, needed, Reach.of(tx, chunks)) < chunks:\n",
        "    if extend(volume, tx, inode, chunks, needed) < chunks:\n",
        "While a program maps more than 128 MiB for storing, no snapshot can be made.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a new grant copies nothing",
        GRANTS,
        "            if hook is not None:\n                hook.before(begin, end - begin)\n",
        "            if hook is not None:\n                hook.expect(end - begin)\n",
        "A client that is granted memory later changes the snapshot.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: FITRIM takes what is needed",
        "daxfs/fs/trim.py",
        "    return (ByteRange(begin, end),) if hook is None else hook.unneeded(begin, end)\n",
        "    return (ByteRange(begin, end),)\n",
        "Trimming copies every freed block into the store, and so fills the pool.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a store takes blocks that are needed",
        FILES,
        "            length = bitmaps.free_run(bitmap, first, end - first)\n",
        "            length = end - first\n",
        "A store overwrites what an older snapshot needs.",
        ("tests/fs/snapshots/test_files.py", *KEEPERS),
    ),
    Mutant(
        "snapshot: the log is not emptied",
        KEEPER,
        "            volume.journal.checkpoint()\n",
        "            volume.journal.commit()\n",
        "The image's journal names transactions that are not in it, and its superblock is old.",
        (*IMAGES, *KEEPERS),
    ),
    Mutant(
        "snapshot: an older one outlives a lost one",
        CATALOGUE,
        "        if header.serial < lost_serial or header.created_ns <= lost_ns:\n            return OLDER\n",
        "",
        "An older snapshot is read through a store that has lost content.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a reader beside the mount does not see that it is lost",
        READING,
        "        valid = all(head[VALID_AT] == 1 for head in self._heads)\n",
        "        valid = True\n",
        "What was overwritten without a copy is read as if it were of the snapshot.",
        READERS,
    ),
    Mutant(
        "snapshot: a reader beside the mount does not look again",
        READING,
        "                if self._chain.unchanged:\n                    self._confirm()\n",
        "                if True:\n                    self._confirm()\n",
        "A snapshot that was made or deleted meanwhile changes what an older one shows.",
        READERS,
    ),
    Mutant(
        "snapshot: a reader does not look at the table again",
        READING,
        "            if live:\n                self._refresh(-1)\n",
        "            if not live:\n                self._refresh(-1)\n",
        "A block that was overwritten while it was copied is taken for old.",
        READERS,
    ),
    Mutant(
        "snapshot: a stream's records have checksums of their own only",
        STREAM,
        "    checksum = crc32c(crc32c(before.checksum, header), payload)\n",
        "    checksum = crc32c(crc32c(_M, header), payload)\n",
        "Records of two streams can be mixed.",
        STREAMS,
    ),
    Mutant(
        "snapshot: a base that was changed is taken",
        SEND,
        "    if held.superblock != received.superblock_of(pool):\n",
        "    if held.superblock < 0:\n",
        "An image that was mounted for writing gets the changes of another one.",
        SENDS,
    ),
    Mutant(
        "snapshot: an image has its superblock while it is received",
        SEND,
        "    pool.zero(SUPERBLOCK_OFFSET, Superblock.SIZE)\n",
        "",
        "An interrupted receive leaves a mixture of two snapshots that passes for a file system.",
        SENDS,
    ),
    Mutant(
        "snapshot: an image keeps the log that the target had",
        SEND,
        "                _clear_unused(pool, begin, superblock)\n",
        "",
        "After a crash of the received file system a replay takes old transactions for new ones.",
        SENDS,
    ),
    Mutant(
        "snapshot: an increment lacks what was free before",
        SEND,
        "        numbers = np.union1d(np.setdiff1d(numbers, before), np.intersect1d(numbers, overwritten))\n",
        "        numbers = np.intersect1d(numbers, overwritten)\n",
        "New files of the later snapshot are not in the image.",
        SENDS,
    ),
    Mutant(
        "snapshot: an increment lacks what was overwritten",
        SEND,
        "        numbers = np.union1d(np.setdiff1d(numbers, before), np.intersect1d(numbers, overwritten))\n",
        "        numbers = np.setdiff1d(numbers, before)\n",
        "Changed blocks of the later snapshot are not in the image.",
        SENDS,
    ),
    Mutant(
        "snapshot: a deletion is not told to readers",
        KEEPER,
        "            before[at].store.set_role(layout.LEAVING)\n",
        "",
        "A reader beside the mount takes new content of freed blocks for that of the deleted store.",
        KEEPERS,
    ),
    Mutant(
        "snapshot: a mount leaves the roles of stores as they are",
        KEEPER,
        "            self.kept = stores\n            self._set_roles(stores)\n",
        "            self.kept = stores\n",
        "After a power cut in a deletion nobody can read the snapshots beside the mount.",
        KEEPERS,
    ),
]
