"""Run one session on /dev/fuse: mount, serve until the mount is gone or a signal stops the session, unmount.

The session borrows an open `FileSystem`; its opener closes it. Requests are answered one after the other, each whole,
in turns of some milliseconds; between turns other tasks run (the commit, signals). Without requests the session sleeps
in trio.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from os import readv, writev
from time import perf_counter
from typing import TYPE_CHECKING

import trio

from daxfs.fuse import serving
from daxfs.fuse.kernel import dispatch, negotiation
from daxfs.fuse.kernel.connection import Connection
from daxfs.fuse.kernel.cpu_latency import CpuLatencyRequest
from daxfs.fuse.kernel.device import LINGER_MILLISECONDS, MISSING, Device
from daxfs.fuse.kernel.polling import AdaptivePolling
from daxfs.fuse.kernel.request import Request
from daxfs.fuse.kernel.statistics import Counting

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem
    from daxfs.fuse.mountoptions import MountOptions

log = logging.getLogger("daxfs.fuse")

TURN_SECONDS = 0.010
"""The length of a turn, by whose requests the session learns how to wait."""
OTHERS_SECONDS = 0.5
"""The longest time that other tasks (the commit timer, signals) wait while requests come: handing over to them and back
costs more than a request."""
FORGETS_AT_ONCE = 16
"""Forgets, each of which may free a file, that are processed before the next check for a waiting request."""
DENSE = 20
"""The number of requests in one turn from which on they count as dense."""
SPARSE = 4
"""The number of requests in one turn up to which they count as sparse: processors may sleep deeply again."""


class Session:
    """The loop between the device and the handlers."""

    def __init__(self, device: Device, connection: Connection, cpu_latency: CpuLatencyRequest) -> None:
        self._device = device
        self._connection = connection
        self._cpu_latency = cpu_latency
        self._polling = AdaptivePolling(choice=device.spin_seconds > 0)
        self._request = Request(device.buffer, connection.core.pins)
        self._stopping = False
        self._near = True  # the last wait was short, so that spinning would have met its end

    async def serve(self) -> None:
        """Answer requests until the mount is gone or `stop` was called."""
        device = self._device
        due = 0.0  # when other tasks run next
        try:
            while not (self._stopping or device.ended or self._connection.ended):
                if self.turn():
                    if perf_counter() > due:
                        await trio.lowlevel.checkpoint()
                        due = perf_counter() + OTHERS_SECONDS
                else:
                    self._cpu_latency.release()
                    if not self._connection.ended:
                        await trio.lowlevel.wait_readable(device.descriptor)
        except trio.ClosedResourceError:
            log.debug("stopped by a signal")
        finally:
            self._cpu_latency.release()

    def stop(self) -> None:
        """Make `serve` return soon."""
        self._stopping = True
        trio.lowlevel.notify_closing(self._device.descriptor)

    def turn(self) -> bool:
        """Serve for `TURN_SECONDS`; return False earlier if no request has come for `LINGER_MILLISECONDS`."""
        device, connection, request = self._device, self._connection, self._request
        descriptor, buffers, poll, spin = device.descriptor, device.buffers, device.poll, device.spin
        answer, table = dispatch.answer, connection.table
        forgets, postponed = connection.forgets, connection.postponing.messages
        spinning = self._polling.spinning
        near = spinning and self._near
        crowded = False  # a request was waiting when the last one was answered: readv may find the next without a poll
        served = 0
        now = begin = perf_counter()
        end = begin + TURN_SECONDS
        while now < end:
            try:
                length = readv(descriptor, buffers)
            except OSError as error:
                device.not_received(error)
                if device.ended:
                    return True
                crowded = False
            else:
                reply = answer(connection, request, length, table)
                if reply is not None:
                    try:
                        writev(descriptor, reply)
                    except OSError as error:
                        self._not_sent(error, reply)
                served += 1
            if (forgets or postponed) and not poll(0):
                self._catch_up()
            if not crowded:
                if near and poll(0):
                    crowded = True
                elif not (near and spin()):
                    begun = perf_counter()
                    if not poll(LINGER_MILLISECONDS) and not postponed:
                        self._near = False
                        return False
                    near = spinning and perf_counter() - begun < device.spin_seconds
            now = perf_counter()
        if connection.postponing.due:
            self._answer_postponed()
        self._near = near or not spinning
        if served >= DENSE:
            self._cpu_latency.hold()
            self._polling.learn(served / (now - begin))
        elif served <= SPARSE:
            self._cpu_latency.release()
        return True

    def _catch_up(self) -> None:
        """Process waiting forgets and postponed requests until a new request comes."""
        connection, poll = self._connection, self._device.poll
        while connection.forgets:
            connection.process_forgets(FORGETS_AT_ONCE)
            if poll(0):
                return
        if connection.postponing.due:
            self._answer_postponed()

    def _answer_postponed(self) -> None:
        """Answer the postponed requests, each with its final result."""
        connection, request = self._connection, self._request
        for message in connection.postponing.last_chances():
            request.buffer[: len(message)] = message
            reply = dispatch.answer(connection, request, len(message), connection.table)
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
    connection = Connection(core, dispatch.TABLE, device.notify, options)
    if options.stats:
        Counting(connection, lasting=True)
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
