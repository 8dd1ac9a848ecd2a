"""What lies on storage, for those who read it or need it in memory (docs/TIERS.md).

What lies on storage does not change there. A read gets it through copies in DRAM, which are bounded. Whoever stores to
it, or works on its blocks in another way, has it moved to memory first. An operation that meets data on storage changes
nothing and ends with `OnStorage`, whose steps bring what it needs; then it runs again from its beginning. Nothing here
changes the volume.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from daxfs.errors import OnStorage
from daxfs.fs.steps import finish
from daxfs.fs.tiers.heat import pieces_of
from daxfs.pmem.storagequeue import StorageQueue, Ticket
from daxfs.structures import inodes, mapping

if TYPE_CHECKING:
    from daxfs.fs.steps import Steps
    from daxfs.fs.tiers.heat import Heat
    from daxfs.journal.view import View
    from daxfs.pmem.pool import Pool
    from daxfs.runs import BlockRun

UNIT = 64 << 10
"""Bytes that are kept together, at multiples of it."""
MOST_AT_ONCE = 1 << 20
"""Bytes that one call reads for readers at most: units that are needed and follow each other; if a call goes on from
where another has ended, also units that are not needed yet."""
MOST_SEQUENCES = 16
"""Places where calls have ended that are remembered."""
MOST_NOTED = 4096
"""Files, and pieces of files, that wait for `daxfs.fs.tiers.keeping`; further ones are noted when used again."""
MOST_UNITS = 512
"""Units that are kept in DRAM: 32 MiB."""
LEAST_USES = 2
"""The uses of a piece in the last minute or two from which on it should lie in memory."""


class _Call(NamedTuple):
    """A call that reads units from ``begin`` on."""

    begin: int
    ticket: Ticket


class Search:
    """A search for room in memory, as a `daxfs.fs.steps.Wait` for its end."""

    __slots__ = ("due",)

    def __init__(self) -> None:
        self.due = False

    def wait(self) -> None:
        """Return at once: whoever has the steps of the search goes on with them."""


class StorageCache:
    """The storage of one volume, all members together, as its readers see it.

    Attributes:
        begin: the offset in the pool at which storage begins; ``end``: where it ends.
        queues: calls on each member.
        busy: blocks on storage that are being read or written to move what they hold: no demotion takes them.
        group: the group in which a demotion has found room last.
        hand: the group whose files are looked at next for some that can go to storage (`daxfs.fs.tiers.policy`).
        promote: returns the steps that move bytes [begin, end) of a file to memory (`daxfs.fs.tiers.moves`).
        misplaced: files that may lie elsewhere than their attribute says; the order of keys is that of their notes.
        rising: (inode number, piece) of what was read from storage, and more than once of late (`Heat`).
        allowance: bytes that may come up for reads now, as of ``allowed_at`` (monotonic).
        allowed_at: see above.
        stuck_until: when it makes sense to look again for what can go to storage (monotonic).
        search: the search for room in memory that is under way; others wait for its end, and nothing is copied twice.
        settled: no metadata lies here, as far as is known (`daxfs.fs.tiers.homecoming`).
        waits: reads that have waited for the storage.
        read: bytes that were read for readers.
        promoted: bytes that were moved to memory.
        demoted: bytes that were moved to storage.
        lowered: blocks that have gone to storage, whoever moved them, unwritten ones included.
        parks: who uses the volume runs the steps of `OnStorage` itself, between other requests.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.queues = [StorageQueue(storage) for storage in pool.storages]
        self.busy: list[BlockRun] = []
        self.group = self.hand = 0
        self.promote: Callable[[int, int, int], Steps[None]] = _nothing
        self.parks = False
        self.settled = True
        self.misplaced: dict[int, None] = {}
        self.rising: dict[tuple[int, int], None] = {}
        self.allowance = 0
        self.allowed_at = 0.0
        self.stuck_until = 0.0
        self.search: Search | None = None
        self.waits = 0
        self.read = self.promoted = self.demoted = self.lowered = 0
        self._units: OrderedDict[int, bytes] = OrderedDict()
        self._asked: dict[int, _Call] = {}
        self._missing: list[int] = []
        self._ends: OrderedDict[int, None] = OrderedDict()

    def leave_to(self, notify: Callable[[], object]) -> None:
        """Have who uses the volume run the steps of `OnStorage`; ``notify`` as in `StorageQueue`."""
        self.parks = True
        for queue in self.queues:
            queue.notify = notify

    @property
    def begin(self) -> int:
        return self._pool.memory_size

    @property
    def end(self) -> int:
        return self._pool.size

    # Members

    def queue_of(self, offset: int) -> StorageQueue:
        """Return the calls on the member that holds a byte of the pool."""
        return next(queue for queue in self.queues if offset < queue.storage.place.end)

    def border_after(self, offset: int) -> int:
        """Return where the memory or the member ends that holds a byte of the pool."""
        return self.queue_of(offset).storage.place.end if self.holds(offset) else self.begin

    @property
    def usable(self) -> bool:
        """Whether some member has not failed."""
        return not all(queue.failed for queue in self.queues)

    def load(self, begin: int, length: int) -> Ticket:
        """Ask for bytes of the pool, all on one member."""
        queue = self.queue_of(begin)
        return queue.read(begin - queue.storage.place.begin, length)

    def store(self, begin: int, content: bytes) -> Ticket:
        """Ask that bytes of the pool, all on one member, be written and made durable."""
        queue = self.queue_of(begin)
        return queue.write(begin - queue.storage.place.begin, content)

    # Reading

    def content(self, begin: int, end: int) -> bytearray:
        """Return the bytes [begin, end) of the pool, on storage; zeros for those that must be brought first.

        `finish_read` ends the operation then.
        """
        found = bytearray(end - begin)
        self.want(begin, end)
        for unit in range(begin - begin % UNIT, end, UNIT):
            held = self._units.get(unit)
            if held is not None:
                low, high = max(begin, unit), min(end, unit + UNIT)
                found[low - begin : high - begin] = held[low - unit : high - unit]
        return found

    def metadata(self, offset: int, length: int) -> memoryview:
        """Return a copy of a block of metadata, which another program has put here (`Pool.reader`).

        Raises:
            OnStorage: it must be brought first, and who uses the volume does that.
            FsError: EIO, the member has failed.
        """
        unit = offset - offset % UNIT
        if unit in self._units:
            self._units.move_to_end(unit)
        else:
            queue = self.queue_of(unit)
            if queue.failed:
                raise queue.failure()
            if self.parks:
                raise OnStorage(lambda: self._bring([unit]))
            finish(self._bring([unit]))
        return memoryview(self._units[unit])[offset - unit : offset - unit + length]

    def want(self, begin: int, end: int) -> None:
        """Take note that a read needs the bytes [begin, end) of the pool, on storage."""
        for unit in range(begin - begin % UNIT, end, UNIT):
            if unit in self._units:
                self._units.move_to_end(unit)
            elif unit not in self._missing:
                self._missing.append(unit)

    def bringing(self) -> Steps[None]:
        """Bring what is noted by `want`.

        Raises:
            FsError: EIO, the storage has failed.
        """
        try:
            self.finish_read()
        except OnStorage as needed:
            yield from needed.bring()

    def finish_read(self) -> None:
        """End a read of several parts.

        Raises:
            OnStorage: some of it must be brought first.
            FsError: EIO, a member that has some of it has failed.
        """
        if self._missing:
            missing, self._missing = self._missing, []
            for queue in map(self.queue_of, missing):
                if queue.failed:
                    raise queue.failure()
            self.waits += 1
            raise OnStorage(lambda: self._bring(missing))

    def _bring(self, units: list[int]) -> Steps[None]:
        """Read units into DRAM."""
        for call in self._ask(units):
            content: bytes = yield from result(call.ticket)
            # The last ones first: what is needed first stays longest.
            for unit in reversed(range(call.begin, call.begin + len(content), UNIT)):
                if self._asked.get(unit) is call:
                    del self._asked[unit]
                    self._keep(unit, content[unit - call.begin : unit - call.begin + UNIT])

    def _keep(self, unit: int, content: bytes) -> None:
        self._units[unit] = content
        self.read += len(content)
        if len(self._units) > MOST_UNITS:
            self._units.popitem(last=False)

    def _ask(self, units: list[int]) -> list[_Call]:
        """Return the calls that read the units, each once; those are made that nobody has made."""
        wanted: list[_Call] = []
        for unit in units:
            call = self._asked.get(unit)
            if call is None or call.ticket.failed:
                call = self._read(unit, units)
            if call not in wanted:
                wanted.append(call)
        return wanted

    def _read(self, begin: int, units: list[int]) -> _Call:
        """Read from a unit on what follows of ``units``, or ahead of them, with one call."""
        ahead, border = begin in self._ends, self.border_after(begin)
        end = begin + UNIT
        while end - begin < MOST_AT_ONCE and end < border and (end in units or ahead):
            if end in self._units or end in self._asked:
                break
            end += UNIT
        end = min(end, border)
        self._ends.pop(begin, None)
        self._ends[end] = None
        if len(self._ends) > MOST_SEQUENCES:
            self._ends.popitem(last=False)
        call = _Call(begin, self.load(begin, end - begin))
        for unit in range(begin, end, UNIT):
            self._asked[unit] = call
        return call

    def occupying(self, place: BlockRun, ticket: Ticket) -> Steps[Any]:
        """Wait for a call on some blocks as `result`; until it has returned, no demotion takes these blocks.

        They stay occupied if the call is abandoned, since it may still read or write them.
        """
        self.busy.append(place)
        try:
            return (yield from result(ticket))
        finally:
            if ticket.done:
                self.busy.remove(place)

    # What the policy should look at

    def misplace(self, ino: int) -> None:
        """Note a file whose data may lie elsewhere than its attribute says."""
        if len(self.misplaced) < MOST_NOTED:
            self.misplaced[ino] = None

    def met(self, ino: int, begin: int, end: int, heat: Heat) -> None:
        """Note that a read of the bytes [begin, end) of a file has met some on storage."""
        self.misplace(ino)
        for piece in pieces_of(begin, end):
            if heat.uses(ino, piece) >= LEAST_USES and len(self.rising) < MOST_NOTED:
                self.rising[ino, piece] = None

    # Changing

    def forget(self, begin: int, end: int) -> None:
        """Keep nothing of bytes [begin, end) of the pool, and nothing of what is being read there."""
        for unit in range(begin - begin % UNIT, end, UNIT):
            self._units.pop(unit, None)
            self._asked.pop(unit, None)

    def follow_size(self) -> None:
        """Follow members that have joined or left; keep nothing of what has no place any longer."""
        before = {queue.storage: queue for queue in self.queues}
        notify = self.queues[0].notify
        self.queues = [before.pop(each) if each in before else StorageQueue(each) for each in self._pool.storages]
        for queue in before.values():
            queue.close()
        for queue in self.queues:
            queue.notify = notify
        for units in (self._units, self._asked):
            for unit in [each for each in units if each >= self.end]:
                del units[unit]

    def holds(self, offset: int) -> bool:
        """Return whether a byte of the pool lies on storage."""
        return offset >= self.begin

    def require_memory(self, view: View, ino: int, begin: int, end: int) -> None:
        """See to it that no block of the bytes [begin, end) of a file, which changes, lies on storage.

        Raises:
            OnStorage: some do, and must be brought first.
        """
        if end <= begin:
            return
        self.misplace(ino)
        bits = view.geometry.block_bits
        for run in mapping.walk(view, inodes.read(view, ino), begin >> bits, end - 1 >> bits):
            if self.holds((run.pblk + run.length << bits) - 1):
                raise OnStorage(lambda: self.promote(ino, begin, end))

    def close(self) -> None:
        """End the calls."""
        for queue in self.queues:
            queue.close()


def _nothing(_ino: int, _begin: int, _end: int) -> Steps[None]:
    """Move nothing."""
    yield from ()


def result(ticket: Ticket) -> Steps[Any]:
    """Wait for a call on storage; return its result."""
    while not ticket.due:
        yield ticket
    return ticket.result()
