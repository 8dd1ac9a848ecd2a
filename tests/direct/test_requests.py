"""A client's requests: what the daemon receives, and which answers are refused."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import pytest
from direct_rig import DATA, ENTRY, POOL_SIZE, FakeDaemon

from daxfs import protocol
from daxfs.direct import pool as pools
from daxfs.direct import requests
from daxfs.direct.pool import Pool
from daxfs.direct.trust import Refused
from daxfs.protocol import Flag, GrantedExtent, Kind, Lease


@pytest.fixture
def descriptor(daemon: FakeDaemon) -> Iterator[int]:
    """The daemon's file, open for reading and writing."""
    descriptor = os.open(daemon.file, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pool(descriptor: int) -> Pool:  # type: ignore[misc]
    """The pool as this process maps it."""
    return pools.attach(descriptor)


def ask(pool: Pool, descriptor: int, **fields: int) -> Lease:
    """Request a lease of the first 8 KiB."""
    request = Lease(7, 0, 8192, Flag.WRITE)._replace(**fields)
    return requests.lease(pool, descriptor, request, bytearray(protocol.LEASE_SIZE))


def test_holder_numbers_differ() -> None:
    numbers = {requests.random_holder() for _ in range(100)}
    assert len(numbers) == 100
    assert all(0 < number < 1 << 64 for number in numbers)


def test_a_lease_is_the_daemons_answer(daemon: FakeDaemon, pool: Pool, descriptor: int) -> None:
    answer = ask(pool, descriptor)
    assert (answer.epoch, answer.size, answer.entry) == (daemon.epoch, daemon.size, ENTRY)
    assert answer.extents[0][:2] == (0, DATA)
    (received,) = daemon.leases
    assert (received.holder, received.offset, received.length, received.flags) == (7, 0, 8192, Flag.WRITE)


def test_a_request_that_a_signal_ends_is_made_again(
    daemon: FakeDaemon, pool: Pool, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the calls of Python's own modules are (PEP 475)."""
    ioctl, signals = fcntl.ioctl, [1, 2]

    def interrupted(*arguments: Any) -> int:
        if signals:
            signals.pop()
            raise InterruptedError(errno.EINTR, "a signal")
        return ioctl(*arguments)

    monkeypatch.setattr(fcntl, "ioctl", interrupted)
    assert ask(pool, descriptor).epoch == daemon.epoch
    assert not signals


def test_each_request_quotes_the_token(daemon: FakeDaemon, descriptor: int) -> None:
    """It proves that this process can open the pool."""
    place, token = 1 << 15, bytes(range(16))
    with daemon.pool.open("r+b") as file:
        file.seek(place)
        file.write(token)
    daemon.record = daemon.record._replace(token=place)
    pool = pools.attach(descriptor)
    ask(pool, descriptor)
    requests.renew(pool, descriptor, 7)
    assert [lease.token for lease in daemon.leases] == [token, token]


@pytest.mark.parametrize("field", ["device", "inode"])
def test_an_answer_about_another_pool_is_refused(daemon: FakeDaemon, pool: Pool, descriptor: int, field: str) -> None:
    daemon.record = daemon.record._replace(**{field: 99})
    with pytest.raises(Refused, match="another pool"):
        ask(pool, descriptor)


def test_memory_past_the_mapped_pool_is_refused(daemon: FakeDaemon, pool: Pool, descriptor: int) -> None:
    daemon.extents = [GrantedExtent(0, POOL_SIZE - 4096, 4096, Kind.MEMORY)]
    assert ask(pool, descriptor).extents
    daemon.extents = [GrantedExtent(0, POOL_SIZE - 4096, 8192, Kind.MEMORY)]
    with pytest.raises(Refused, match="grown"):
        ask(pool, descriptor)


def test_a_refusal_is_the_daemons_error(daemon: FakeDaemon, pool: Pool, descriptor: int) -> None:
    daemon.refuse = {"lease": errno.EAGAIN, "stored": errno.EINVAL, "appended": errno.EIO}
    for number, request in (
        (errno.EAGAIN, lambda: ask(pool, descriptor)),
        (errno.EINVAL, lambda: requests.notify_stored(descriptor)),
        (errno.EIO, lambda: requests.notify_appended(descriptor, daemon.size, daemon.size + 5, 7)),
    ):
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            request()
        assert caught.value.errno == number
    requests.renew(pool, descriptor, 7)


def test_write_notifications(daemon: FakeDaemon, pool: Pool, descriptor: int) -> None:  # noqa: ARG001
    requests.notify_stored(descriptor)
    requests.notify_stored(descriptor, protocol.DURABLE)
    assert daemon.stored == [protocol.Stored(0, 0), protocol.Stored(0, protocol.DURABLE)]
    base = daemon.size
    requests.notify_appended(descriptor, base, base + 100, 7, protocol.DURABLE)
    assert daemon.appended == [protocol.Appended(base, base + 100, 7, protocol.DURABLE)]
    with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
        requests.notify_appended(descriptor, base, base + 100, 7)


def test_a_renewal_asks_for_nothing(daemon: FakeDaemon, pool: Pool, descriptor: int) -> None:
    requests.renew(pool, descriptor, 7)
    (received,) = daemon.leases
    assert (received.holder, received.length, received.flags) == (7, 0, Flag.RENEW)


def test_status_words_are_the_pools(daemon: FakeDaemon, pool: Pool) -> None:
    words = requests.status_words(pool, ENTRY, 2)
    assert (words[0], words[1]) == (daemon.epoch, daemon.size)
    daemon.move(DATA * 2, b"x" * daemon.size)
    assert words[0] == daemon.epoch
    words.release()


def test_without_an_entry_the_words_are_the_answers(pool: Pool) -> None:
    """A read-only mount changes nothing."""
    for size in (12, 13, 12):
        words = requests.status_words(pool, 0, size)
        assert (words[0], words[1]) == (0, size)
