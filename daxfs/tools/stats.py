"""``daxfs stats``: show a mount's requests and their times, its journal, and what it keeps in memory.

The daemon counts only while somebody asks (`daxfs.fuse.kernel.statistics`). So the first query begins the counting, and
the output covers an interval after it; with the mount option ``stats`` it covers all since the mount.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.fuse.kernel.statistics import KEEP_SECONDS, PIECE_HEADER, QUESTION, STATISTICS
from daxfs.tools import asking, command, mountpoints
from daxfs.tools.sizes import format_size
from daxfs.tools.snapshot import Snapshot, failures, percentile

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL_SECONDS = 1.0
LONGEST_INTERVAL_SECONDS = KEEP_SECONDS - 10.0
"""The longest interval: counting must not end before the second query."""
WIDTH = 160
"""The most columns of the table, on a narrow terminal too: a truncated number is worse than a wrapped line."""
ATTEMPTS = 10


@contextmanager
def opened(mountpoint: str) -> Iterator[tuple[int, str]]:
    """Open the root directory of a mount; yield its descriptor and its real path.

    Raises:
        UserError: no daxfs is mounted there, its daemon has ended, or it belongs to another user.
    """
    place = mountpoints.require(mountpoint).mountpoint
    try:
        descriptor = mountpoints.open_root(place)
    except PermissionError:
        raise UserError(f"{mountpoint} {_refusal(place)}", os.EX_NOPERM) from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise UserError(
            f"{mountpoint}: its daemon has ended; run: daxfs umount {mountpoint}", os.EX_UNAVAILABLE
        ) from None
    try:
        yield descriptor, place
    finally:
        os.close(descriptor)


def _refusal(place: str) -> str:
    """Say why a mount can't be opened: the kernel shows nothing at all of a mount that is another user's alone."""
    try:
        os.stat(place)
    except PermissionError:
        return "belongs to another user, who has not mounted it with allow_other; run this as that user"
    return "has a root directory that you may not read; run this as its owner"


def ask(descriptor: int, mountpoint: str) -> Snapshot:
    """Query a snapshot, in as many pieces as it needs.

    Raises:
        UserError: the session has no statistics, or the caller may not start the counting.
    """
    return Snapshot.of(_text(descriptor, mountpoint))


def _text(descriptor: int, mountpoint: str) -> bytes:
    """Query the text of a snapshot. Raises as `ask`."""
    for _ in range(ATTEMPTS):
        try:
            return _fetch(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.ENOSYS):
                text = f"{mountpoint}: its session keeps no statistics; mount it with session=kernel"
                raise UserError(text, os.EX_UNAVAILABLE) from None
            if error.errno == errno.EPERM:
                text = f"{mountpoint}: counting has not begun, and only root and the daemon's user may begin it"
                raise UserError(text, os.EX_NOPERM) from None
            if error.errno != errno.ESTALE:
                raise
    raise UserError(f"{mountpoint}: other queries come all the time; try again", os.EX_UNAVAILABLE)


def _fetch(descriptor: int) -> bytes:
    text, snapshot, length = b"", 0, 1
    while len(text) < length:
        piece = command.send(descriptor, STATISTICS, QUESTION.pack(snapshot, len(text)))
        snapshot, length = PIECE_HEADER.unpack_from(piece)
        text += piece[PIECE_HEADER.size :][: length - len(text)]
    return text


def show(
    mountpoint: str,
    *,
    interval: float | None = None,
    total: bool = False,
    as_json: bool = False,
    prometheus: bool = False,
    listen: str | None = None,
) -> None:
    """Print the statistics of a mount.

    Args:
        mountpoint: of the mount.
        interval: seconds to watch; None: `INTERVAL_SECONDS`, or all since the mount if it counts from then on.
        total: show all since counting began, at once.
        as_json: print JSON.
        prometheus: print all since counting began, in Prometheus's text format.
        listen: ``ADDRESS:PORT``: serve the same to Prometheus, until the mount is gone (`listening`).

    Raises:
        UserError: as `opened` and `ask`; or contradicting options.
    """
    if interval is not None and (total or prometheus):
        raise UserError("--interval shows an interval, --total and --prometheus show all: choose one", os.EX_USAGE)
    if interval is not None:
        check_interval(interval)
    if listen is not None:
        if total or as_json or prometheus or interval is not None:
            raise UserError("--listen takes no other option", os.EX_USAGE)
        from daxfs.tools import listening

        look(mountpoint)  # what the user may not ask is an error now
        listening.serve(mounts.real_mountpoint(mountpoint), listen, lambda: scrape(mountpoint))
        return
    place, found = mounts.real_mountpoint(mountpoint), look(mountpoint)
    if not (total or prometheus or (found.lasting and interval is None)):
        time.sleep(interval or INTERVAL_SECONDS)
        found = look(mountpoint).after(found)
    if prometheus:
        print(exposition(place, found), end="")
    elif as_json:
        print(json.dumps({"mountpoint": place, **asdict(found)}, indent=2))
    else:
        _print(place, found)


def check_interval(seconds: float) -> None:
    """Refuse an interval in which counting might end (UserError)."""
    if not 0 < seconds <= LONGEST_INTERVAL_SECONDS:
        raise UserError(f"--interval takes up to {LONGEST_INTERVAL_SECONDS:.0f} seconds", os.EX_USAGE)


class NoAnswer(UserError):
    """A daemon does not answer."""


def look(mountpoint: str) -> Snapshot:
    """Return all since counting began. Between two looks nothing of the mount is open.

    Raises:
        NoAnswer: within `asking.ANSWER_SECONDS`.
        UserError: as `opened` and `ask`.
    """
    try:
        found = asking.ask(lambda: _look(mountpoint))
    except TimeoutError:
        text = f"{mountpoint}: its daemon does not answer: it is stopped (SIGSTOP), or busy with a single long step"
        raise NoAnswer(text, os.EX_UNAVAILABLE) from None
    if found is None:
        raise UserError(f"{mountpoint}: its statistics can't be read", os.EX_UNAVAILABLE)
    if "error" in found:
        raise UserError(found["error"], found["code"])
    return Snapshot.of(found["text"].encode())


def _look(mountpoint: str) -> dict[str, Any]:
    """Return the text of a snapshot, or the error and the exit code of a `UserError`."""
    try:
        with opened(mountpoint) as (descriptor, place):
            return {"text": _text(descriptor, place).decode()}
    except UserError as error:
        return {"error": str(error), "code": error.code}


def scrape(mountpoint: str) -> str:
    """Return all since counting began, in Prometheus's text format. Raises as `opened` and `ask`."""
    with opened(mountpoint) as (descriptor, place):
        return exposition(place, ask(descriptor, place))


def exposition(mountpoint: str, found: Snapshot) -> str:
    """Return a snapshot in Prometheus's text format, whose library takes a while to load."""
    from daxfs.tools import metrics

    return metrics.exposition(mountpoint, found)


def _print(mountpoint: str, found: Snapshot) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=WIDTH)
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    more = f"; counting has begun now and ends {KEEP_SECONDS} s after the last query" if found.fresh else ""
    print(f"{mountpoint}: {found.seconds:.1f} s from {began}{more}")
    if found.operations:
        console.print(table(found))
    else:
        print("no requests")
    for line in summary(found):
        print(line)


def summary(found: Snapshot) -> list[str]:
    """Describe the journal, and what is open, remembered, leased and bad, a line each."""
    lines = {
        "journal": journal(found.journal),
        "log": _log(found.journal),
        "files": files(found),
        "snapshots": _snapshots(found),
        "storage": _storage(found.tiers),
        "freed": _freed(found),
        "memory": _memory(found),
    }
    return [f"{name + ':':<9} {text}" for name, text in lines.items() if text]


def table(found: Snapshot) -> Table:
    """Return the table of requests by kind, those that took most time first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("request", no_wrap=True)
    for title in ("count", "per s", "errors", "bytes", "mean us", "p50 us", "p99 us", "max us"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, operation in sorted(found.operations.items(), key=lambda item: -item[1].nanoseconds):
        times = (
            operation.nanoseconds / operation.count,
            percentile(operation.histogram, 0.5, operation.longest),
            percentile(operation.histogram, 0.99, operation.longest),
            operation.longest,
        )
        table.add_row(
            name,
            str(operation.count),
            f"{operation.count / found.seconds:.0f}" if found.seconds else "",
            str(operation.errors or ""),
            format_size(operation.bytes) if operation.bytes else "",
            *(f"{value / 1000:.1f}" for value in times),
        )
    return table


def journal(journal: dict[str, Any] | None) -> str:
    """Describe the commits."""
    if journal is None:
        return "none: mounted read-only"
    sizes, largest = journal["sizes"], journal["largest"]
    text = f"{journal['commits']} commits"
    if journal["commits"]:
        middle = percentile(sizes, 0.5, largest)
        text += f" of {journal['blocks']} blocks of metadata (median {middle:.0f}, largest {largest})"
    return f"{text}, {journal['blocks_revoked']} revoked, {journal['rollbacks']} operations undone"


def _log(journal: dict[str, Any] | None) -> str:
    if journal is None:
        return ""
    running = f"{journal['running_blocks']} blocks and {journal['pending_free_blocks']} freed wait for the next commit"
    room, used = journal["log_blocks"], journal["log_blocks_used"]
    if not room:
        return f"none; {running}"
    return f"{used} of {room} blocks ({100 * used // room} %), emptied {journal['tail_moves']} times; {running}"


def _freed(found: Snapshot) -> str:
    """Describe the deferred frees and the programs that they wait for; "" if there are none."""
    waiting = found.files["deferred"]
    if not waiting:
        return ""
    named = ", ".join(
        f"process {each['pid']} of user {each['uid']} holds {format_size(each['size'])} of inode {each['ino']}"
        for each in found.holding
    )
    return f"{format_size(waiting)} wait for direct clients: {named}"


def _memory(found: Snapshot) -> str:
    """Describe missing and bad memory; "" if all is well."""
    errors, bad = found.files["memory_errors"], found.files["bad_bytes"]
    if not errors and not bad:
        return ""
    return f"{errors} loads and stores met missing memory, {format_size(bad)} are known to be bad (daxfs badblocks)"


def _snapshots(found: Snapshot) -> str:
    """Describe what snapshots have cost since the mount; "" if there were none."""
    count, copied, mapped = (found.files[key] for key in ("snapshots", "snapshot_copied", "snapshot_mapped"))
    if not count and not copied and not mapped:
        return ""
    at_once = f", and {format_size(mapped)} of mapped files when one was made" if mapped else ""
    return f"{count} valid, {format_size(copied)} copied for them{at_once}"


def _storage(tiers: dict[str, Any] | None) -> str:
    """Describe reads and moves of a tiered pool; "" if the pool has no storage."""
    if tiers is None:
        return ""
    free = f"{format_size(tiers['storage_free'])} of {format_size(tiers['storage'])} free"
    return f"{free}, {hits(tiers)}, {moves(tiers)}" + "".join(f"; {line}" for line in failures(tiers))


def hits(tiers: dict[str, Any]) -> str:
    """Describe how many of the reads of a tiered pool did not wait for its storage."""
    share = f" ({100 * tiers['hits'] / tiers['reads']:.1f} %)" if tiers["reads"] else ""
    return f"{tiers['hits']} of {tiers['reads']} reads did not wait for storage{share}"


def moves(tiers: dict[str, Any]) -> str:
    """Describe how much of a tiered pool was read from its storage, and moved."""
    return ", ".join(f"{format_size(tiers[name])} {name}" for name in ("read", "promoted", "demoted"))


def files(found: Snapshot) -> str:
    """Describe what is open, remembered and leased."""
    files, refused = found.files, found.files["refused_opens"]
    return (
        f"{files['open_files']} open, {files['remembered']} remembered by the kernel, "
        f"{files['lazy_times']} with times that wait, {files['nameless']} without a name, "
        f"{files['leases']} leases" + (f", {refused} opens refused (max_open_files=)" if refused else "")
    )
