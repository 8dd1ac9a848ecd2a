"""Run one session on /dev/fuse: mount, serve until the mount is gone or a signal stops the session, unmount.

The session borrows an open `FileSystem`; its opener closes it. Requests are answered one after the other, each whole,
in turns of some milliseconds; between turns other tasks run (the commit, signals). While a request that takes several
steps is in progress, others are answered between its steps (`scheduling.py`). Without requests the session sleeps in
trio.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable
from os import readv, writev
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from daxfs.errors import FsError
from daxfs.fs.steps import interruption
from daxfs.fuse import serving
from daxfs.fuse.kernel import dispatch, negotiation
from daxfs.fuse.kernel.abi import BODY, Opcode
from daxfs.fuse.kernel.connection import FORGETS_AT_ONCE, MOST_FORGETS, Connection
from daxfs.fuse.kernel.contention import Contention
from daxfs.fuse.kernel.cpu_latency import CpuLatencyRequest
from daxfs.fuse.kernel.device import LINGER_MILLISECONDS, MISSING, Device
from daxfs.fuse.kernel.polling import AdaptivePolling
from daxfs.fuse.kernel.request import Request
from daxfs.fuse.kernel.scheduling import PARKED, TIERS_SECONDS, WORKS
from daxfs.fuse.kernel.statistics import Counting

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fuse.kernel.turns import User
    from daxfs.fuse.mountoptions import MountOptions

log = logging.getLogger("daxfs.fuse")

TURN_SECONDS = 0.010
"""The length of a turn, by whose requests the session learns how to wait."""
OTHERS_SECONDS = 1.0
"""The longest time that signals wait while requests come: handing over to other tasks and back costs more than a
request. A task that waits for a time (the commit timer) runs when that has come. While a long request is in progress,
others run after each turn."""
FORGETS_UNDER_LOAD = 2
"""Forgets that are processed after each request while requests come without a pause and many forgets wait."""
MOST_AHEAD = 64
"""The most requests that are read between two turns."""
AT_ONCE = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.DESTROY})
"""Requests that are not queued: they only take a note."""
TOO_MANY = FsError(errno.EAGAIN, "too many requests of one user wait")
DENSE = 20
"""The number of requests in one turn from which on they count as dense."""
SPARSE = 4
"""The number of requests in one turn up to which they count as sparse: processors may sleep deeply again."""
SPARSE_SECONDS = TURN_SECONDS / SPARSE
"""The shortest pause between sparse requests."""
SHORTEST_SLEEP = 2e-6
"""poll(2) that took fewer seconds has not slept: a request was waiting."""
CROWDED = 4
"""After so many polls in a row that found a request waiting, readv(2) is tried without one. A readv(2) that finds none
is an exception, which costs as much as four polls."""


class Session:
    """The loop between the device and the handlers."""

    def __init__(self, device: Device, connection: Connection, cpu_latency: CpuLatencyRequest) -> None:
        self._device = device
        self._connection = connection
        self._cpu_latency = cpu_latency
        self._polling = AdaptivePolling(choice=device.spin_seconds > 0)
        self._contention = Contention()
        self._request = Request(device.buffer, connection.core.pins)
        self._stopping = False
        self._near = True  # the last wait was short, so that spinning would have met its end
        self._sparse = False  # the last turn had few requests, and has ended

    async def serve(self) -> None:
        """Answer requests until the mount is gone or `stop` was called."""
        device = self._device
        waiting = self._connection.scheduler.waiting
        due = 0.0  # when other tasks run next
        try:
            while not (self._stopping or device.ended or self._connection.ended):
                if self.turn(due):
                    if perf_counter() > due or WORKS in waiting:
                        # In a checkpoint, tasks that are ready run in any order: a second one lets all of them run.
                        await trio.lowlevel.checkpoint()
                        await trio.lowlevel.checkpoint()
                        self._connection.free_rest()
                        self._connection.keep_tiers()
                        left = trio.lowlevel.current_statistics().seconds_to_next_deadline
                        due = perf_counter() + min(left, OTHERS_SECONDS)
                else:
                    self._cpu_latency.release()
                    again = self._connection.keep_tiers()
                    if not self._connection.ended and WORKS not in waiting:
                        with trio.move_on_after(TIERS_SECONDS if again else math.inf):
                            await trio.lowlevel.wait_readable(device.descriptor)
            self._finish()
        except trio.ClosedResourceError:
            log.debug("stopped by a signal")
            self._finish()
        finally:
            self._cpu_latency.release()

    def stop(self) -> None:
        """Make `serve` return soon."""
        self._stopping = True
        trio.lowlevel.notify_closing(self._device.descriptor)

    def turn(self, due: float = math.inf) -> bool:
        """Serve for `TURN_SECONDS`; return False earlier if no request has come for `LINGER_MILLISECONDS`.

        A turn of sparse requests, after another one, goes on until ``due``, the time when other tasks run
        (`_serve_sparse`).
        """
        device, connection, request = self._device, self._connection, self._request
        descriptor, buffers, poll = device.descriptor, device.buffers, device.poll
        spin = device.spin if connection.counting is None else self._timed_spin
        answer, table, waiting = dispatch.answer, connection.table, connection.scheduler.waiting
        spinning = self._contention.begin_turn(self._polling.spinning)
        near, at_once, served, slept = spinning and self._near, 0, 0, 0.0
        now = begin = perf_counter()
        end = begin + TURN_SECONDS
        if WORKS in waiting:
            self._share(end)
            if WORKS in waiting:
                return True
            now = perf_counter()
        while now < end:  # at_once: the polls in a row that found a request waiting
            try:
                length = readv(descriptor, buffers)
            except OSError as error:
                device.not_received(error)
                if device.ended:
                    return True
                at_once = 0
            else:
                reply = answer(connection, request, length, table)
                if reply is not None:
                    try:
                        writev(descriptor, reply)
                    except OSError as error:
                        self._not_sent(error, reply)
                served += 1
            if waiting:
                self._attend(end)
                if WORKS in waiting:
                    return True
            if at_once < CROWDED:
                if near and poll(0):
                    at_once += 1
                elif near and spin():
                    at_once = 0
                elif self._sparse and served <= SPARSE and not waiting:
                    return self._serve_sparse(due)
                else:
                    begun = perf_counter()
                    if not poll(LINGER_MILLISECONDS) and not waiting:
                        self._near = False
                        return False
                    now = perf_counter()
                    slept += (pause := now - begun)
                    near = spinning and pause < device.spin_seconds
                    at_once = at_once + 1 if pause < SHORTEST_SLEEP else 0
            now = perf_counter()
        if connection.scheduler.due:
            self._answer_postponed()
        self._near = near or not spinning
        self._learn(served, now - begin, slept, spinning=spinning)
        return True

    def _serve_sparse(self, due: float) -> bool:
        """Answer requests as long as each comes after a pause of `SPARSE_SECONDS`, until ``due``.

        Turns would teach nothing. What ends one and begins the next lies in no cache after the pause, and costs a third
        of what the request does.

        Returns:
            As `turn`: False if no request has come for `LINGER_MILLISECONDS`.
        """
        device, connection, request = self._device, self._connection, self._request
        waiting = connection.scheduler.waiting
        while not waiting and (begun := perf_counter()) < due:
            if not device.poll(LINGER_MILLISECONDS):
                self._near = False
                return False
            pause = perf_counter() - begun
            self._near = pause < device.spin_seconds
            if pause < SPARSE_SECONDS:
                self._sparse = False
                return True
            try:
                length = readv(device.descriptor, device.buffers)
            except OSError as error:
                device.not_received(error)
                return True
            self._send(dispatch.answer(connection, request, length, connection.table))
        return True

    def _timed_spin(self) -> bool:
        """Spin, and count the time."""
        begin = perf_counter()
        found = self._device.spin()
        if (counting := self._connection.counting) is not None:
            counting.spun += perf_counter() - begin
        return found

    def _learn(self, served: int, seconds: float, slept: float, *, spinning: bool) -> None:
        """Learn how to wait from a turn that has ended."""
        if served >= DENSE:
            self._cpu_latency.hold()
            if not self._contention.present:
                self._polling.learn(served / seconds)
        self._sparse = served <= SPARSE
        if self._sparse:
            self._cpu_latency.release()
        if served > 1:
            self._contention.end_turn(seconds - slept, spun=spinning)

    def _attend(self, end: float) -> None:
        """Attend to what waits: share the time until ``end`` if a work is in progress, else catch up."""
        connection = self._connection
        if PARKED in connection.scheduler.waiting:
            self._wake()
        if WORKS in connection.scheduler.waiting:
            self._share(end)
        elif not self._device.poll(0):
            self._catch_up()
        elif len(connection.forgets) > MOST_FORGETS:
            connection.process_forgets(FORGETS_UNDER_LOAD)

    def _wake(self) -> None:
        """Go on with works that have waited for storage, if there are any."""
        self._device.awaited()
        self._connection.scheduler.wake()

    def _catch_up(self) -> None:
        """Process waiting forgets and postponed requests until a new request comes, or one of them takes more steps."""
        connection, poll = self._connection, self._device.poll
        while connection.forgets:
            connection.process_forgets(FORGETS_AT_ONCE)
            if poll(0) or connection.scheduler.works:
                return
        if connection.scheduler.due:
            self._answer_postponed()

    def _share(self, end: float) -> None:
        """Run works and answer requests by turns until nothing is left of either, or until ``end``."""
        device, connection, request = self._device, self._connection, self._request
        scheduler = connection.scheduler
        begin = perf_counter()
        while begin < end and not connection.ended:
            if PARKED in scheduler.waiting:
                self._wake()
            if scheduler.works:
                if connection.forgets:
                    scheduler.begin_background()
                self._read_ahead()
                if device.ended:
                    return
            turn = scheduler.next()
            if turn is None:
                return
            user, what, seconds = turn
            if isinstance(what, bytes):
                self._answer_queued(user, what)
            else:
                self._send(dispatch.proceed(connection, request, what, seconds, device.poll))
            now = perf_counter()
            scheduler.had_turn(user, what, now - begin)
            begin = now
            if scheduler.due:
                self._answer_postponed()

    def _read_ahead(self) -> None:
        """Queue the requests that the kernel has, and answer at once those that no user waits for in a queue."""
        device, connection, request = self._device, self._connection, self._request
        for _ in range(MOST_AHEAD):
            if not device.poll(0):
                return
            try:
                length = readv(device.descriptor, device.buffers)
            except OSError as error:
                device.not_received(error)
                return
            if length < BODY or request.opcode in AT_ONCE:
                self._send(dispatch.answer(connection, request, length, connection.table))
            elif not connection.scheduler.arrived(request, length):
                self._send(dispatch.refusal(TOO_MANY, request.opcode, request.unique))

    def _answer_queued(self, user: User, message: bytes) -> None:
        """Answer a request that was read ahead, unless it must wait for a work."""
        request, scheduler = self._request, self._connection.scheduler
        request.buffer[: len(message)] = message
        if scheduler.was_interrupted(message):
            user.begun(len(message))
            self._send(dispatch.refusal(interruption(), request.opcode, request.unique))
        elif not scheduler.blocks(request, user, message):
            self._send(dispatch.answer(self._connection, request, len(message), self._connection.table))

    def _answer_postponed(self) -> None:
        """Answer the postponed requests, each with its final result."""
        connection, request = self._connection, self._request
        for message in connection.scheduler.last_chances():
            request.buffer[: len(message)] = message
            self._send(dispatch.answer(connection, request, len(message), connection.table))

    def _finish(self) -> None:
        """Finish and answer the works in progress, since the session ends; those that may be short are shortened."""
        connection = self._connection
        scheduler = connection.scheduler
        while scheduler.works:
            work = scheduler.works[0]
            work.interrupt()
            if work.waits is not None:
                work.waits.wait()
            self._send(dispatch.proceed(connection, self._request, work, math.inf, lambda _: False))

    def _send(self, reply: dispatch.Reply | None) -> None:
        """Send an answer, if there is one."""
        if reply is not None:
            try:
                writev(self._device.descriptor, reply)
            except OSError as error:
                self._not_sent(error, reply)

    def _not_sent(self, error: OSError, reply: dispatch.Reply) -> None:
        """Take back a request whose answer writev(2) refused."""
        if error.errno == MISSING:
            self._connection.not_copied(reply)
        else:
            self._device.not_sent(error)
        self._request.take_back()


def serve(
    core: FileSystem,
    source: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount ``core`` on ``mountpoint`` (a real path) and serve it until the end.

    Args:
        core: the open file system.
        source: what mount tables show as the device: the real path of the pool.
        mountpoint: the directory to mount on.
        options: of the mount.
        ready: called when the mount exists, before the first request is answered.

    Raises:
        UserError: the mount was refused.
        SessionFailed: an unexpected exception ended the session.
    """
    attachment = serving.Attachment(source, mountpoint, options)
    device = Device(attachment.descriptor, negotiation.buffer_size(), options.poll_seconds)
    connection = Connection(core, dispatch.TABLE, device.notify, options, device.wakened)
    if options.stats:
        Counting(connection, lasting=True)
    if core.storages:
        core.leave_storage_to(device.wakened())
    session = Session(device, connection, CpuLatencyRequest(options.wake_microseconds))
    try:
        serving.run(core, mountpoint, session.serve, session.stop, ready)
    except serving.SessionFailed:
        device.close()
        raise
    with serving.failing(core, mountpoint):
        connection.close_all(unmounted=device.unmounted)
    device.close()
    attachment.detach()
