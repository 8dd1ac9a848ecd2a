"""What the handlers of one connection share: the core, open files, the result of INIT, forgets that wait.

The kernel names an open file by a handle, which is never given again. A forget needs no answer, so `process_forgets`
runs when no request waits, when more than `MOST_FORGETS` wait, or when the core finds the pool full (`reclaim`):
freeing a large file must not delay a read.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError, MissingMemory
from daxfs.fs.steps import Steps
from daxfs.fs.types import ROOT_INO, Attributes
from daxfs.fuse import logs, unexpected
from daxfs.fuse.kernel import abi, encoding, nodeid
from daxfs.fuse.kernel.abi import Init
from daxfs.fuse.kernel.announced import Announced
from daxfs.fuse.kernel.negotiation import Agreement
from daxfs.fuse.kernel.openbatch import OpenBatches
from daxfs.fuse.kernel.openlimit import OpenLimit
from daxfs.fuse.kernel.request import Request
from daxfs.fuse.kernel.scheduling import FORGETS, Scheduler
from daxfs.fuse.kernel.work import Answer, Work
from daxfs.fuse.mountoptions import MountOptions

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem, OpenFile

log = logging.getLogger("daxfs.fuse")

Handler = Callable[["Connection", Request], Answer]

MOST_OUTDATED = 4096
"""The most inodes in `Connection.outdated`; a full set is emptied."""
MOST_FORGETS = 4096
"""The number of waiting forgets from which on some are processed even while requests wait."""
FORGETS_AT_ONCE = 16
"""Forgets, each of which may free a file, that are processed before the next check for a waiting request."""
RECLAIM_SECONDS = 0.002
"""How long forgets are processed before the request that found the pool full is tried again."""


def unknown_handle(handle: int) -> FsError:
    """Return the refusal (EBADF) of a file handle that was never given to the kernel, or is released."""
    return FsError(errno.EBADF, f"file handle {handle}")


class RequestCounting(Protocol):
    """The interface of `statistics.Counting`, which counts and times the requests of a connection."""

    spun: float

    def keep(self) -> None:
        """Postpone the end of counting."""

    def work_ended(self, work: Work, body: Answer) -> None:
        """Count a request that has taken several steps."""

    def piece(self, snapshot: int, offset: int, *, fresh: bool) -> bytes:
        """Return a piece of the statistics."""


SMALL = 1024
"""A body of fewer bytes is appended to the header, which is faster than a second buffer for writev(2)."""
NEVER = 1 << 62
"""A `Connection.shortest_view` that no read has."""


class Connection:
    """One mount's side of the protocol, without the device.

    Attributes:
        core: the file system.
        files: open files by handle.
        batches: the batches of open files.
        announced: atomic writes that will come (`atomicwrites.py`).
        agreement: the result of INIT.
        notify: sends a notification (code, body), which answers no request.
        options: in force.
        wakened: returns what ends a wait for storage (`Device.wakened`).
        caches_data: files without DAX are opened for the kernel's page cache; fixed for the lifetime of the mount.
        block_size: of the pool; stat(2) shows it.
        ended: DESTROY was received.
        outdated: inodes, as the kernel knows them, whose attributes were invalidated because clients stored, and were
            not sent since.
        forgets: (node, lookups) of the forgets that wait; always the same list.
        scheduler: everything else that waits.
        table: the handlers by opcode; the connection's own dict, since counting changes it.
        counting: counts requests; None while nobody asks.
        open_limit: the open files of each user.
        shortest_view: bytes of a read from which on the kernel copies them from the pool's memory itself. It can't do
            that where memory is missing, and answers EIO; so all reads are copied here while the pool has holes that
            its file system may not be able to fill.
    """

    def __init__(
        self,
        core: FileSystem,
        table: dict[int, Handler],
        notify: Callable[[int, bytes], None] = lambda _code, _body: None,
        options: MountOptions | None = None,
        wakened: Callable[[], Callable[[], object]] = lambda: bool,
    ) -> None:
        self.wakened = wakened
        self.core = core
        core.add_reclaimer(self.reclaim, lambda: bool(self.forgets))
        self.table = dict(table)
        self.counting: RequestCounting | None = None
        self.files: dict[int, OpenFile] = {}
        self.batches = OpenBatches()
        self.announced = Announced()
        self.agreement = Agreement(0, Init(0), 0)
        self.notify = notify
        self.options = options or MountOptions()
        # The daemon does not see a read that the page cache answers, so with strictatime all files bypass the cache.
        self.caches_data = self.options.dax != "always" and self.options.atime != "strictatime"
        self.block_size = core.statfs().block_size
        self.ended = False
        self._handles = count(1)
        self.open_limit = OpenLimit()
        self.outdated: set[int] = set()
        self.forgets: list[tuple[int, int]] = []
        self.scheduler = Scheduler(core, self._background)
        self.shortest_view = NEVER if core.has_no_room_for_holes() else SMALL

    def check_open_limit(self, request: Request) -> None:
        """Refuse to open a file (ENFILE) for a user who has as many open as ``max_open_files=`` allows."""
        self.open_limit.check(request.uid, self.options.max_open_files)

    def opened(self, request: Request, file: OpenFile) -> bytes:
        """Give an open file a handle; return fuse_open_out."""
        handle = next(self._handles)
        self.files[handle] = file
        self.open_limit.opened(handle, request.uid)
        request.undo = partial(self.closed, handle)
        if self.has_cache(file.ino):
            return abi.OPEN_OUT.pack(handle, abi.FOPEN_KEEP_CACHE, 0)
        return abi.OPEN_OUT.pack(handle, abi.FOPEN_DIRECT_IO | abi.FOPEN_PARALLEL_DIRECT_WRITES, 0)

    def has_cache(self, ino: int) -> bool:
        """Return whether reads and writes of a file that is open go through the kernel's page cache."""
        return self.caches_data and not self.core.uses_dax(ino)

    def file(self, handle: int) -> OpenFile:
        """Return the open file of a handle; EBADF if there is none."""
        try:
            return self.files[handle]
        except KeyError:
            raise unknown_handle(handle) from None

    def closed(self, handle: int) -> None:
        """Release the open file of a handle that the kernel has closed. What that frees may take more steps."""
        file = self.file(handle)
        del self.files[handle]
        self.batches.closed(handle)
        self.announced.closed(handle)
        self.open_limit.closed(handle)
        try:
            self.core.steps.release(file)
        finally:
            self.free_rest()

    def free_rest(self) -> None:
        """Have the session free what is left to free, if there is anything."""
        if self.core.steps.unfinished:
            self.scheduler.begin_background()

    def keep_tiers(self) -> bool:
        """Have the session move data between memory and storage where it should; return whether it should."""
        if not self.core.steps.misplaced:
            return False
        self.scheduler.begin_keeping_tiers(self.core.steps.keeping_tiers)
        return True

    def _background(self) -> Steps[None]:
        """Process forgets, and free what files that were closed or forgotten have left, until nothing is left."""
        while self.forgets or self.core.steps.unfinished:
            yield from self.forgetting()
            yield from self.core.steps.freeing()

    def not_copied(self, reply: Sequence[bytes | memoryview]) -> None:
        """Take note of an answer that the kernel could not copy from the pool's memory: it has answered EIO."""
        for part in reply:
            bytes(part)
        with suppress(MissingMemory):  # logged, and the caller has its error
            self.core.finish_copy()
        if self.core.has_no_room_for_holes():
            self.shortest_view = NEVER

    def forget(self, node: int, lookups: int) -> None:
        """Queue the forget of ``lookups`` lookups of a node."""
        self.forgets.append((node, lookups))
        self.scheduler.waiting.add(FORGETS)

    def reclaim(self) -> bool:
        """Process waiting forgets for `RECLAIM_SECONDS`, since the pool is full; return whether there were any."""
        if not self.forgets:
            return False
        end = perf_counter() + RECLAIM_SECONDS
        while self.forgets:
            self.process_forgets(FORGETS_AT_ONCE)
            if perf_counter() > end:
                break
        return True

    def forgetting(self) -> Steps[None]:
        """Process all waiting forgets, in steps."""
        while self.forgets:
            self.process_forgets(FORGETS_AT_ONCE)
            yield

    def process_forgets(self, most: int | None = None) -> None:
        """Process up to ``most`` waiting forgets (None: all). A forget has no answer, so a refusal is only logged."""
        waiting = self.forgets[:most]
        del self.forgets[:most]
        if not self.forgets:
            self.scheduler.waiting.discard(FORGETS)
        pins, unpin = self.core.pins, self.core.steps.unpin
        for node, lookups in waiting:
            ino = nodeid.resolve(node, pins)
            if ino is None:
                continue
            try:
                unpin(ino, lookups)
            except FsError as error:
                logs.unanswered(f"forgetting inode {ino}", error)
            except Exception as error:
                unexpected.refusal(self.core, error, f"forgetting inode {ino}")
        self.free_rest()

    def invalidate_attributes(self, ino: int) -> None:
        """Invalidate the attributes of an inode in the kernel, which then requests them when it needs them."""
        pins = self.core.pins
        generation = pins.generation(ino)
        if generation is not None or ino == ROOT_INO:  # else the kernel has forgotten it
            node = nodeid.encode(*(pins.aliases.outside(ino) or (ino, generation or 0)))
            self.notify(abi.NOTIFY_INVAL_INODE, abi.INVAL_INODE_OUT.pack(node, -1, 0))

    def invalidate_attributes_once(self, ino: int) -> None:
        """Invalidate the attributes of an inode that clients have changed, unless they are invalid already."""
        shown = self.core.pins.aliases.shown(ino)
        if shown not in self.outdated:
            self.invalidate_attributes(ino)
            if len(self.outdated) >= MOST_OUTDATED:
                self.outdated.clear()
            self.outdated.add(shown)

    def attributes(self, found: Attributes) -> bytes:
        """Return fuse_attr_out; the inode's attributes in the kernel are valid from now on."""
        found = nodeid.known_as(found, self.core.pins)
        self.outdated.discard(found.ino)
        return encoding.attr_out(found, self.block_size)

    def entry(self, found: Attributes) -> bytes:
        """Return fuse_entry_out; the inode's attributes in the kernel are valid from now on."""
        found = nodeid.known_as(found, self.core.pins)
        self.outdated.discard(found.ino)
        return encoding.entry_out(found, self.block_size)

    def close_all(self, *, unmounted: bool) -> None:
        """Close all files that are still open when the session ends, even if the pool is damaged.

        Args:
            unmounted: the kernel has closed all files, so their leases have ended; the unmount may have overtaken
                their RELEASE. If False, clients go on without the daemon.
        """
        self.process_forgets()
        if not unmounted:
            self.core.end_mount()
        for handle in tuple(self.files):
            try:
                self.closed(handle)
            except FsError as error:
                logs.unanswered(f"closing file handle {handle}", error)
            except Exception as error:
                unexpected.refusal(self.core, error, f"closing file handle {handle}")
