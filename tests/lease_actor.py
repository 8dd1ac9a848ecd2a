"""Clients that speak the raw protocol of direct access, as `daxfs.protocol` describes it: ioctl(2) and mmap(2).

A `Client` is a process of its own whose calls are `LeaseCalls`: the calls of `actor_rig`, and leases. It follows the
rules of daxfs.h where a call says so (`put`, `get`), and breaks them where a test wants to see the effect
(`put_blindly`). Scripts name open files, and their leases, by the slots that they gave `open`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from actor_rig import PRIVATE, Actor, Calls, perform

from daxfs import protocol
from daxfs.protocol import Flag, Kind
from daxfs.tools import stats
from support import HANG_SECONDS

F_OFD_SETLK = 37
FLOCK = struct.Struct("hhqqi4x")
UNIT = 1024
"""Bytes of the smallest block."""
TO_STORE = Flag.WRITE | Flag.FILL


def token(descriptor: int) -> bytes:
    """Return the token that lies in the pool of an open file."""
    found = identity(descriptor)
    with open(found.path, "rb") as pool:
        pool.seek(found.token)
        return pool.read(protocol.TOKEN_SIZE) if found.token else b""


def ask(descriptor: int, request: protocol.Lease, *, size: int = protocol.LEASE_SIZE) -> protocol.Lease:
    """Send one DAXFS_IOC_LEASE (of either length) through an open file; quote the token unless the request has one."""
    if not request.token:
        request = request._replace(token=token(descriptor))
    buffer = bytearray(request.pack(size))
    fcntl.ioctl(descriptor, protocol.IOC_LEASE if size == protocol.LEASE_SIZE else protocol.IOC_SHORT_LEASE, buffer)
    return protocol.Lease.unpack(buffer)


def identity(descriptor: int) -> protocol.Pool:
    """Return the answer to DAXFS_IOC_POOL."""
    buffer = bytearray(protocol.POOL.size)
    fcntl.ioctl(descriptor, protocol.IOC_POOL, buffer)
    return protocol.Pool.unpack(buffer)


def opened_pool(found: protocol.Pool) -> int:
    """Open the pool, take the client's lock, and return the descriptor."""
    descriptor = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    assert (status.st_dev, status.st_ino) == (found.device, found.inode)
    lock = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, protocol.LOCKS + found.lock, 1, 0)
    fcntl.fcntl(descriptor, F_OFD_SETLK, lock)
    return descriptor


class LeaseCalls(Calls):
    """The calls of one client."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = random.SystemRandom().getrandbits(64)
        self.pool: mmap.mmap | None = None
        self.token = b""
        self.leases: dict[int, list[protocol.Lease]] = {}
        self.children: list[int] = []

    # The protocol

    def attach(self, slot: int) -> None:
        """Map the pool of the mount that the file is on; the descriptor is closed."""
        found = identity(self.files[slot])
        descriptor = opened_pool(found)
        self.pool = mmap.mmap(descriptor, found.size)
        os.close(descriptor)

    def read_token(self, slot: int) -> None:
        """Read the token and quote it from now on, even as a user who can't open the pool's path."""
        self.token = token(self.files[slot])

    def lease(self, slot: int, offset: int, length: int, flags: int, holder: int | None = None) -> protocol.Lease:
        """Send one request, and remember the answer."""
        request = protocol.Lease(self.holder if holder is None else holder, offset, length, flags, token=self.token)
        found = ask(self.files[slot], request)
        if length:
            if self.pool is None:
                self.attach(slot)
            self.leases.setdefault(slot, []).append(found)
        return found

    def renew(self, slot: int) -> None:
        """Renew, and forget all answers."""
        self.leases.pop(slot, None)
        ask(self.files[slot], protocol.Lease(self.holder, 0, 0, Flag.RENEW))

    def stored(self, slot: int, size: int = 0, flags: int = 0) -> None:
        fcntl.ioctl(self.files[slot], protocol.IOC_STORED, protocol.Stored(size, flags).pack())

    def status(self, slot: int) -> protocol.StatusEntry:
        """Return the file's status entry."""
        place = self.leases[slot][-1].entry
        return protocol.StatusEntry.unpack(self._mapped()[place : place + protocol.ENTRY.size])

    def get(self, slot: int, offset: int, size: int) -> bytes | None:
        """Load as the rules allow: by an answer that holds, up to EOF; None without such an answer."""
        for found in self.leases.get(slot, ()):
            epoch, length = self._state(found)
            if epoch != found.epoch:
                continue
            stop = max(min(offset + size, length), offset)
            parts = self._parts(found, offset, stop)
            if parts is not None:
                return b"".join(self._mapped()[at : at + count] if at else bytes(count) for at, count in parts)
        return None

    def put(self, slot: int, offset: int, content: bytes) -> bool:
        """Store as the rules allow; return False without a store if they don't."""
        for found in self.leases.get(slot, ()):
            epoch, length = self._state(found)
            if epoch != found.epoch or offset + len(content) > length or not found.flags & Flag.WRITE:
                continue
            parts = self._parts(found, offset, offset + len(content))
            if parts is not None and all(at for at, _ in parts):
                self._put_parts(parts, content)
                return True
        return False

    def append_directly(self, slot: int, content: bytes) -> int:
        """Store at EOF as the status entry has it, and report it; return the offset, -1 without memory there."""
        end = self.lease(slot, 0, 1, 0).size
        found = self.lease(slot, end, len(content), TO_STORE | Flag.EXTEND)
        parts = self._parts(found, end, end + len(content))
        if parts is None or not all(at for at, _ in parts):
            return -1
        self._put_parts(parts, content)
        self.stored(slot, end + len(content))
        return end

    # Against the rules

    def granted(self, slot: int | None = None) -> list[tuple[int, int]]:
        """Return all memory that was ever granted, as (begin, end) in the pool."""
        chosen = self.leases if slot is None else [slot]
        answers = [found for each in chosen for found in self.leases.get(each, ())]
        pieces = [piece for found in answers for piece in found.extents if piece.kind == Kind.MEMORY]
        return [(piece.pool_offset, piece.pool_offset + piece.length) for piece in pieces]

    def put_blindly(self, pieces: list[tuple[int, int]], pattern: bytes) -> None:
        """Store a pattern into parts of the pool, whatever the status page says."""
        memory = self._mapped()
        for begin, end in pieces:
            memory[begin:end] = (pattern * (-(-(end - begin) // len(pattern))))[: end - begin]

    def put_again_and_again(self, pattern: bytes) -> None:
        """Store a pattern into all memory that was ever granted, until the process is killed."""
        pieces = self.granted()
        while True:
            self.put_blindly(pieces, pattern)

    def put_where_it_was(self, slot: int, pattern: bytes) -> int:
        """Store a pattern into memory that was granted once and is not the file's now; return how much that is."""
        at, size, now = 0, os.fstat(self.files[slot]).st_size, []
        while at < size:
            found = ask(self.files[slot], protocol.Lease(self.holder, at, size - at, 0))
            now += [(piece.pool_offset, piece.length) for piece in found.extents if piece.kind == Kind.MEMORY]
            at = found.next
        mine = {begin + step for begin, length in now for step in range(0, length, UNIT)}
        old = {step for begin, end in self.granted(slot) for step in range(begin & -UNIT, end, UNIT)} - mine
        self.put_blindly([(begin, begin + UNIT) for begin in old], pattern)
        return len(old) * UNIT

    def put_in_child(self, slot: int, offset: int, content: bytes) -> bool:
        """`put` in a child, which then ends."""
        child = os.fork()
        if child == 0:
            os._exit(self.put(slot, offset, content))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    def attach_once(self, slot: int) -> None:
        if self.pool is None:
            self.attach(slot)

    def forget(self, slot: int) -> None:
        """Close the file and forget its leases."""
        self.leases.pop(slot, None)
        self.close(slot)

    # Others that have the file too

    def duplicate(self, slot: int, other: int) -> None:
        self.files[other] = os.dup(self.files[slot])

    def fork(self) -> int:
        """Fork a child that keeps everything until it is killed."""
        child = os.fork()
        if child == 0:
            _sleep()
        self.children.append(child)
        return child

    def execute(self, slot: int, inherit: bool) -> int:
        """Fork a child that executes another program, with the open file or without; return after its execve(2)."""
        os.set_inheritable(self.files[slot], inherit)
        begun, begins = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child == 0:
            with suppress(OSError):
                os.execv("/bin/sleep", ["sleep", "100"])
            os._exit(1)
        os.close(begins)
        os.read(begun, 1)
        os.close(begun)
        self.children.append(child)
        return child

    def end_children(self) -> None:
        while self.children:
            child = self.children.pop()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def send(self, slot: int, name: str) -> None:
        """Pass the open file to another process (SCM_RIGHTS)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(name)
            socket.send_fds(sender, [b"."], [self.files[slot]])

    def listen(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)

    def receive(self, slot: int) -> None:
        with self.socket:
            _, (self.files[slot],), _, _ = socket.recv_fds(self.socket, 1, 1)

    def anchor(self, number: int, slot: int) -> None:
        """Map a page of the file itself with PROT_NONE: it keeps the open file."""
        self.map(number, slot, mmap.PAGESIZE, 0, PRIVATE)

    def detach(self) -> None:
        """Unmap the pool."""
        self._mapped().close()
        self.pool = None

    def chdir(self, name: str) -> None:
        os.chdir(name)

    def become(self, uid: int) -> None:
        """Continue as another user."""
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)

    # Below

    def _mapped(self) -> mmap.mmap:
        assert self.pool is not None
        return self.pool

    def _state(self, found: protocol.Lease) -> tuple[int, int]:
        """Return epoch and size of the file as they are now."""
        if not found.entry:
            return found.epoch, found.size
        state = protocol.StatusEntry.unpack(self._mapped()[found.entry : found.entry + protocol.ENTRY.size])
        return state.epoch, state.size

    def _parts(self, found: protocol.Lease, begin: int, end: int) -> list[tuple[int, int]] | None:
        """Return pool offset (0: a hole) and length of each part; None if the answer lacks some of the range."""
        parts = []
        for piece in found.extents:
            low, high = max(begin, piece.offset), min(end, piece.offset + piece.length)
            if low < high:
                if piece.kind == Kind.KERNEL:
                    return None
                at = piece.pool_offset + low - piece.offset if piece.kind == Kind.MEMORY else 0
                parts.append((at, high - low))
        return parts if sum(count for _, count in parts) == end - begin else None

    def _put_parts(self, parts: list[tuple[int, int]], content: bytes) -> None:
        memory, done = self._mapped(), 0
        for at, count in parts:
            memory[at : at + count] = content[done : done + count]
            done += count


def _sleep() -> None:
    try:
        time.sleep(100)
    finally:
        os._exit(0)


class Client(Actor):
    """A process that makes `LeaseCalls`."""

    def __init__(self, root: Path) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.gone = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._pipe.close()
                perform(root, theirs, LeaseCalls)
            finally:
                os._exit(0)
        theirs.close()

    def must(self, call: str, *arguments: Any) -> Any:
        """Make a call that may not fail."""
        outcome = self.do(call, *arguments)
        assert not (isinstance(outcome, str) and hasattr(errno, outcome)), f"{call}{arguments}: {outcome}"
        return outcome

    def kill(self) -> None:
        """Send SIGKILL."""
        if not self.gone:
            self.gone = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._pipe.close()

    def end(self) -> None:
        """Let the process exit."""
        if not self.gone:
            self.gone = True
            super().end()


Clients = Callable[[], Client]


@contextlib.contextmanager
def clients(root: Path) -> Iterator[Clients]:
    made: list[Client] = []

    def make() -> Client:
        made.append(Client(root))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.kill()


def holders(place: Path) -> int:
    with stats.opened(str(place)) as (descriptor, real):
        return stats.ask(descriptor, real).files["leases"]


def free_blocks(place: Path) -> int:
    """Return the number of free blocks, with nothing left to commit."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return os.statvfs(place).f_bfree


def becomes(condition: Callable[[], bool], limit: float = HANG_SECONDS) -> bool:
    """Return whether a condition comes true in time: the kernel reports closed files with a delay."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
