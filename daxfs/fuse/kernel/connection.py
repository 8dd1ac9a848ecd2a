"""What the handlers of one connection share: the core, open files, the result of INIT, forgets that wait.

The kernel names an open file by a handle, which is never given again. A forget needs no answer, so `process_forgets`
runs when no request waits, when `MOST_FORGETS` wait, or when the core finds the pool full (`reclaim`): freeing a large
file must not delay a read.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol

from daxfs.errors import FsError
from daxfs.fs.types import ROOT_INO, Attributes
from daxfs.fuse import logs, unexpected
from daxfs.fuse.kernel import abi, encoding
from daxfs.fuse.kernel.abi import Init
from daxfs.fuse.kernel.negotiation import Agreement
from daxfs.fuse.kernel.postponing import Postponing
from daxfs.fuse.kernel.request import Request
from daxfs.fuse.mountoptions import MountOptions

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem, OpenFile

log = logging.getLogger("daxfs.fuse")

Answer = bytes | memoryview | None
"""The body of an answer; None: the request wants none."""
Handler = Callable[["Connection", Request], Answer]

MOST_OUTDATED = 4096
MOST_FORGETS = 4096
"""So many wait at most."""


def unknown_handle(handle: int) -> FsError:
    """The refusal of a file handle that the kernel was not given, or has given back."""
    return FsError(errno.EBADF, f"file handle {handle}")


class RequestCounting(Protocol):
    """What counts and times the requests of a connection (`statistics.Counting`)."""

    def keep(self) -> None:
        """Somebody has asked."""

    def piece(self, snapshot: int, offset: int, *, fresh: bool) -> bytes:
        """A piece of the answer."""


class Connection:
    """One mount's side of the protocol, without the device.

    Attributes:
        core: the file system.
        files: open files by handle.
        agreement: what INIT settled.
        notify: sends a message that answers no request: (code, body).
        options: in force.
        caches_data: files without DAX are opened for the kernel's page cache; settled for as long as the mount lives.
        block_size: of the pool, which stat(2) shows.
        ended: DESTROY has come.
        outdated: inodes whose attributes the kernel was told to forget because of stores, and was not given since.
        forgets: nodes and lookups that wait to be settled; always the same list.
        postponing: requests that found the pool full, and when they are answered.
        table: the handlers by opcode; its own, since counting changes it.
        counting: what counts requests, while somebody wants to know.
    """

    def __init__(
        self,
        core: FileSystem,
        table: dict[int, Handler],
        notify: Callable[[int, bytes], None] = lambda _code, _body: None,
        options: MountOptions | None = None,
    ) -> None:
        self.core = core
        core.add_reclaimer(self.reclaim)
        self.table = dict(table)
        self.counting: RequestCounting | None = None
        self.files: dict[int, OpenFile] = {}
        self.agreement = Agreement(0, Init(0), 0)
        self.notify = notify
        self.options = options or MountOptions()
        # A read that the page cache answers does not come here, so with strictatime all files bypass it.
        self.caches_data = self.options.dax != "always" and self.options.atime != "strictatime"
        self.block_size = core.statfs().block_size
        self.ended = False
        self._handles = count(1)
        self.outdated: set[int] = set()
        self.forgets: list[tuple[int, int]] = []
        self.postponing = Postponing(core)

    def opened(self, request: Request, file: OpenFile) -> bytes:
        """Give an open file its handle: fuse_open_out."""
        handle = next(self._handles)
        self.files[handle] = file
        request.undo = partial(self.closed, handle)
        if not self.caches_data or self.core.uses_dax(file.ino):
            return abi.OPEN_OUT.pack(handle, abi.FOPEN_DIRECT_IO | abi.FOPEN_PARALLEL_DIRECT_WRITES, 0)
        return abi.OPEN_OUT.pack(handle, abi.FOPEN_KEEP_CACHE, 0)

    def file(self, handle: int) -> OpenFile:
        """The open file of a handle (EBADF)."""
        try:
            return self.files[handle]
        except KeyError:
            raise unknown_handle(handle) from None

    def closed(self, handle: int) -> None:
        """The kernel has closed an open file."""
        file = self.file(handle)
        del self.files[handle]
        self.core.release(file)

    def forget(self, node: int, lookups: int) -> None:
        """The kernel remembers a node ``lookups`` times less."""
        self.forgets.append((node, lookups))
        if len(self.forgets) >= MOST_FORGETS:
            self.process_forgets()

    def reclaim(self) -> bool:
        """Give back the files that the kernel has forgotten, since the pool is full; whether there were any."""
        waiting = bool(self.forgets)
        self.process_forgets()
        return waiting

    def process_forgets(self, most: int = MOST_FORGETS) -> None:
        """Do up to ``most`` of the forgets that wait. A forget has no answer, so a refusal is only logged."""
        waiting = self.forgets[:most]
        del self.forgets[:most]
        unpin = self.core.unpin
        for node, lookups in waiting:
            try:
                unpin(ROOT_INO if node == abi.ROOT_ID else node, lookups)
            except FsError as error:
                logs.unanswered(f"forgetting inode {node}", error)
            except Exception as error:
                unexpected.refusal(self.core, error, f"forgetting inode {node}")

    def invalidate_attributes(self, ino: int) -> None:
        """Make the kernel ask again for the attributes of an inode."""
        self.notify(abi.NOTIFY_INVAL_INODE, abi.INVAL_INODE_OUT.pack(encoding.node_of(ino), -1, 0))

    def invalidate_attributes_once(self, ino: int) -> None:
        """Attributes moved without the kernel; it is told once, until it has been given them again."""
        if ino not in self.outdated:
            self.invalidate_attributes(ino)
            if len(self.outdated) >= MOST_OUTDATED:
                self.outdated.clear()
            self.outdated.add(ino)

    def attributes(self, found: Attributes) -> bytes:
        """fuse_attr_out: the kernel knows them from now on."""
        self.outdated.discard(found.ino)
        return encoding.attr_out(found, self.block_size)

    def entry(self, found: Attributes) -> bytes:
        """fuse_entry_out; so it does of these."""
        self.outdated.discard(found.ino)
        return encoding.entry_out(found, self.block_size)

    def close_all(self, *, unmounted: bool) -> None:
        """Close what is still open when the session ends; all of it, even if the pool is damaged.

        Args:
            unmounted: the kernel has closed all files. An unmount can overtake the messages that say so (RELEASE), and
                the leases of these files have ended. Otherwise clients go on without the daemon.
        """
        self.process_forgets()
        if not unmounted:
            self.core.part()
        for handle in tuple(self.files):
            try:
                self.closed(handle)
            except FsError as error:
                logs.unanswered(f"closing file handle {handle}", error)
            except Exception as error:
                unexpected.refusal(self.core, error, f"closing file handle {handle}")
