"""Metadata that can't be used: the error is recorded for e2fsck, and the volume goes on or becomes read-only.

Metadata is damaged (`Corrupt`), or its memory is missing (`MissingMemory`). Whatever met it has failed and was undone.
The superblock gets ext4's error fields, so that the next e2fsck checks everything. If a change has failed, ``errors=``
then decides, from the mount options or else from the superblock: the volume goes on, or it commits what was complete
before and changes no more.

Damage that stops no change is recorded and logged, once for each mount, and the volume goes on: a reader got the error,
or an operation did without what is damaged and noted that (`daxfs.structures.noted`). ext4 stops the volume there too;
but whoever may read a damaged file could stop everybody, and a group with a damaged bitmap is not used in any case.
Missing memory that a reader meets is not even recorded. Memory of files' data never counts.

Only `operations` and `removal` report errors, between two operations. Source: ``ext4_handle_error`` in
fs/ext4/super.c, which aborts the journal where daxfs commits.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from daxfs.errors import Corrupt, FsError, MissingMemory
from daxfs.ext4.superblock import (
    EXT4_ERR_EFSCORRUPTED,
    EXT4_ERR_EIO,
    EXT4_ERRORS_PANIC,
    Superblock,
)
from daxfs.fs.defaults import CONTINUE
from daxfs.fs.types import MetadataErrors
from daxfs.structures.noted import Noted

if TYPE_CHECKING:
    from daxfs.fs.types import Options
    from daxfs.fs.volume import Volume

log = logging.getLogger("daxfs.fs")


def note_panic(path: str, sb: Superblock, options: Options) -> None:
    """Log that a superblock asks for what a daemon can't do."""
    if options.errors is None and sb.s_errors == EXT4_ERRORS_PANIC:
        log.warning("%s: errors=panic of its superblock means remount-ro: a daemon can't stop the machine", path)


def recorded(volume: Volume) -> MetadataErrors:
    """Return what the superblock records, and what the volume does about an error."""
    sb = volume.view.superblock()
    stopped = volume.was_writable and volume.read_only
    return MetadataErrors(sb.s_error_count, sb.first_error, sb.last_error, volume.defaults.errors, stopped)


def report_missing(volume: Volume, error: MissingMemory, *, change: bool) -> None:
    """Report missing memory if it holds metadata that a change needs: ``change``, or what opened a handle."""
    error.in_change = error.in_change or change
    if error.stops_change:
        report(volume, error)


def report_commits(volume: Volume) -> None:
    """Report the missing memory that commits have met since the last call and did without."""
    error = volume.journal.lacked
    if error is not None:
        volume.journal.lacked = None
        report_missing(volume, error, change=True)


def report_read(volume: Volume, error: Corrupt) -> None:
    """Report the damage that has failed a reader."""
    volume.view.caches[Noted].add(error)
    report_noted(volume)


def report_noted(volume: Volume) -> None:
    """Report the damage that operations have done without since the last call."""
    found = volume.noted[:]
    volume.noted.clear()
    for error in found:
        report(volume, error, stops_change=False)


def report(volume: Volume, error: Corrupt | MissingMemory, *, stops_change: bool = True) -> None:
    """Record an error of metadata, log it, and have the volume go on or become read-only.

    Args:
        volume: of the metadata.
        error: what was met.
        stops_change: a change has failed for it, so that ``errors=`` decides; False: the volume goes on.
    """
    path = volume.pool.path
    if volume.read_only or not volume.was_writable:
        log.error("%s; run: daxfs check -y %s", error.strerror, path)
        return
    goes_on = not stops_change or volume.defaults.errors == CONTINUE
    cause = str(error.strerror)
    if isinstance(error, MissingMemory):
        cause += ", and a change that needs it was undone"
    if not stops_change:
        log.error("%s; the volume goes on without it, unmount it soon and run: daxfs check -y %s", cause, path)
    elif goes_on:
        log.error("%s; the volume goes on (errors=continue), unmount it soon and run: daxfs check -y %s", cause, path)
    else:
        log.error("%s; the volume is read-only from now on, run: daxfs check -y %s", cause, path)
        volume.nodes.give_up_times()
    try:
        _record(volume, error)
        if not goes_on:
            volume.journal.commit()
    except FsError as failed:
        log.error("%s: the error could not be recorded: %s", path, failed.strerror)
        goes_on = goes_on and not volume.journal.aborted
    if not goes_on:
        volume.stop_changes()


def _record(volume: Volume, error: Corrupt | MissingMemory) -> None:
    with volume.journal.handle(2) as tx:
        sb, now = tx.edit_superblock(), int(time.time())
        if isinstance(error, Corrupt):
            sb.record_error(now, EXT4_ERR_EFSCORRUPTED, error.kind)
        else:
            sb.record_error(now, EXT4_ERR_EIO, "missing memory", block=(error.offset or 0) >> volume.block_bits)
