"""The wait for requests in a pyfuse3 session: polling, sleeping, fairness to other tasks, and closing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
from sleep_rig import asleep
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from daxfs.fuse.libfuse import wait
from daxfs.fuse.libfuse.wait import Gate
from support import HANG_SECONDS

pytestmark = pytest.mark.trio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def test_readable_at_once_takes_no_checkpoint(pipe: tuple[int, int]) -> None:
    gate = Gate(0.001)
    os.write(pipe[1], b"x")
    await gate.wait_readable(pipe[0])
    with assert_no_checkpoints():
        await gate.wait_readable(pipe[0])


async def test_without_polling_every_wait_is_trios(pipe: tuple[int, int]) -> None:
    gate = Gate(0)
    os.write(pipe[1], b"x")
    for _ in range(3):
        with assert_checkpoints():
            await gate.wait_readable(pipe[0])


@pytest.mark.parametrize("poll_seconds", [0, 0.0002])
async def test_sleeps_until_something_comes(pipe: tuple[int, int], poll_seconds: float) -> None:
    gate = Gate(poll_seconds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait_readable, pipe[0])
        await wait_all_tasks_blocked()
        await asleep()
        os.write(pipe[1], b"x")


async def test_others_run_while_requests_keep_coming(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(wait, "perf_counter", lambda: clock[0])
    gate = Gate(0.001)
    os.write(pipe[1], b"x")
    await gate.wait_readable(pipe[0])
    clock[0] += wait.FAIR_SECONDS / 2
    with assert_no_checkpoints():
        await gate.wait_readable(pipe[0])
    clock[0] += wait.FAIR_SECONDS
    with assert_checkpoints():
        await gate.wait_readable(pipe[0])


@pytest.mark.parametrize("poll_seconds", [0, 0.0002])
async def test_close_wakes_the_sleeper_and_refuses_the_next(pipe: tuple[int, int], poll_seconds: float) -> None:
    gate = Gate(poll_seconds)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:

            async def sleeper() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await gate.wait_readable(pipe[0])

            nursery.start_soon(sleeper)
            await wait_all_tasks_blocked()
            gate.close(pipe[0])
        with pytest.raises(trio.ClosedResourceError):
            await gate.wait_readable(pipe[0])


async def test_close_during_the_fair_checkpoint(pipe: tuple[int, int]) -> None:
    gate = Gate(0.0002)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:

            async def closer() -> None:
                gate.close(pipe[0])

            nursery.start_soon(closer)
            with pytest.raises(trio.ClosedResourceError):
                await gate.wait_readable(pipe[0])


async def test_the_lock_of_the_module_is_free() -> None:
    with assert_no_checkpoints():
        async with Gate(0).module().Lock():
            pass
