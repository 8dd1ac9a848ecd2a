"""Run trials in a process of their own, which a watchdog ends if one takes too much processor time or memory.

A trial watches itself (`trial.deadline`), but its alarm does not ring inside one long call of compiled code. So the
watchdog looks at the process from outside. It counts processor time, since others may use the machine too.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from fuzz.trial import CPU_SECONDS, MEMORY, Finding

LOOK_EVERY = 0.2
"""Seconds between two looks at the process."""
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def watched(
    run: Callable[[int], Finding | None],
    seeds: Iterable[int],
    *,
    cpu_seconds: float = 2 * CPU_SECONDS,
    memory: int = MEMORY,
) -> Iterator[Finding]:
    """Yield the findings of the trials ``run(seed)``, and those of the watchdog.

    Args:
        run: one trial.
        seeds: of the trials.
        cpu_seconds: more than a trial allows itself.
        memory: bytes that a trial may take beyond what the process has at its beginning.
    """
    left = list(seeds)
    left.reverse()
    while left:
        resident = _resident(os.getpid())  # what the child begins with
        child, reports = _start(run, left)
        try:
            yield from _watch(child, reports, left, cpu_seconds, memory, resident)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            reports.close()


def _start(run: Callable[[int], Finding | None], seeds: list[int]) -> tuple[int, BinaryIO]:
    """Start a process for the seeds, the last one first; it reports each finding, or None, and its memory then."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, os.fdopen(ours, "rb", buffering=0)
    code = 1
    gc.freeze()  # a collection looks only at what trials made, and does not copy the parent's memory page by page
    try:
        with os.fdopen(theirs, "wb", buffering=0) as reports:
            for seed in reversed(seeds):
                try:
                    found = run(seed)
                except Exception:
                    found = Finding(seed, (), "the fuzzer itself: " + traceback.format_exc(limit=-4))
                gc.collect()  # or pools of earlier trials would count
                reports.write(_packed(found, _resident(os.getpid())))
        code = 0
    finally:
        os._exit(code)


def _packed(found: Finding | None, resident: int) -> bytes:
    content = pickle.dumps((found, resident))
    return len(content).to_bytes(4, "little") + content


def _watch(
    child: int, reports: BinaryIO, left: list[int], cpu_seconds: float, memory: int, resident: int
) -> Iterator[Finding]:
    """Yield findings until all trials are done, or until one had to be ended; take the seeds that are done.

    What a trial begins with is told by the process before it, since the trial may be far by now (``resident``).
    """
    spent = _cpu(child)
    while left:
        ready, _, _ = select.select([reports], [], [], LOOK_EVERY)
        if ready:
            head = reports.read(4)
            if len(head) < 4:
                yield Finding(left.pop(), (), "the process has ended")
                return
            found: Finding | None
            found, resident = pickle.loads(_exactly(reports, int.from_bytes(head, "little")))
            left.pop()
            if found is not None:
                yield found
            spent = _cpu(child)
        elif _cpu(child) - spent > cpu_seconds:
            yield Finding(left.pop(), (), f"no end after {cpu_seconds} s of processor time")
            return
        elif _resident(child) > resident + memory:
            yield Finding(left.pop(), (), f"more than {memory >> 20} MiB")
            return


def _exactly(reports: BinaryIO, size: int) -> bytes:
    content = b""
    while len(content) < size:
        content += reports.read(size - len(content))
    return content


def _cpu(process: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _resident(process: int) -> int:
    """Return the bytes of memory that a process has, without pages of files: those of libraries come one by one."""
    _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE
