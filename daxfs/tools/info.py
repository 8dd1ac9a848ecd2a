"""``daxfs info``: show a pool's kind, size and persistence, and the state of the file system in it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from daxfs import compiled
from daxfs.errors import PoolError, UserError
from daxfs.ext4 import features
from daxfs.ext4.features import Incompat
from daxfs.fs.defaults import in_force
from daxfs.fs.tiers import members
from daxfs.fs.types import Options
from daxfs.pmem import persist
from daxfs.structures import groups
from daxfs.tools import mountpoints
from daxfs.tools.asking import ask
from daxfs.tools.reading import Reading, reading
from daxfs.tools.sizes import format_size
from daxfs.tools.status import status

VALID_FS = 1
ERROR_FS = 2
_WORTHWHILE = 1 << 20
"""Bytes after the file system that are shown: a group can be as small."""
WITH_ERRORS = "with errors: run daxfs check"


@dataclass(frozen=True, slots=True)
class Info:
    """The output of ``daxfs info``; the names are those of its JSON. Sizes are in bytes.

    Attributes:
        alignment: the unit of mappings of the pool.
        persistence: what a mount chooses by itself.
        errors: errors of metadata since the last check; `first_error` and `last_error` are the fields of
            `daxfs.ext4.superblock.RecordedError`.
        storage: the members of the pool's storage: each one's ``path``, its ``size``, how much of it is ``free``, and
            its ``state``; empty: none.
        on_errors: what such an error does to a mount: ``continue`` or ``remount-ro``.
        mount: the status of the mount, from its daemon (`daxfs.fuse.kernel.status`); empty without a mount.
    """

    pool: str
    kind: str
    size: int
    alignment: int
    persistence: str
    mountpoint: str
    state: str
    errors: int
    first_error: dict[str, Any] | None
    last_error: dict[str, Any] | None
    on_errors: str
    label: str
    uuid: str
    block_size: int
    blocks: int
    free_blocks: int
    reserved_blocks: int
    free: int
    inodes: int
    free_inodes: int
    inode_size: int
    journal: str
    journal_size: int
    default_options: list[str]
    reserved_for: dict[str, int]
    mounts: int
    last_mounted: str
    last_written: str
    features: list[str]
    unsupported: list[str]
    storage: list[dict[str, Any]]
    mount: dict[str, Any]


def pool_of(place: str) -> tuple[str, str]:
    """Return the pool and its mountpoint ("" if it is not mounted) for a pool's path or a mountpoint.

    Raises:
        UserError: ``place`` is a directory on which no daxfs is mounted.
    """
    top = mountpoints.find(place)
    if top is not None:
        return top.source, top.mountpoint
    if os.path.isdir(place):
        raise UserError(f"no daxfs is mounted on {place}; name a pool or a mountpoint", os.EX_NOINPUT)
    found = mountpoints.of_pool(os.path.realpath(place))
    return place, found.mountpoint if found is not None else ""


def examine(place: str) -> Info:
    """Collect all information about a pool, by its path or its mountpoint."""
    path, mountpoint = pool_of(place)
    with reading(path) as found:
        return replace(_gather(found, mountpoint), pool=path)


def _gather(found: Reading, mountpoint: str) -> Info:
    sb, geometry, pool = found.superblock, found.geometry, found.pool
    journal, journal_size = _journal(found)
    state = _state(found, mountpoint)
    answer: tuple[dict[str, Any], int, int] | None = None
    if mountpoint:
        try:
            answer = ask(lambda: _facts(mountpoint))
        except TimeoutError:
            state += ", but its daemon does not answer"
    # The pool has the numbers of the last commit; the mount's are newer.
    facts, free_blocks, free_inodes = answer or ({}, sb.free_blocks_count, sb.s_free_inodes_count)
    errors: dict[str, Any] = facts.get("errors") or {
        "count": sb.s_error_count,
        "first": sb.first_error and sb.first_error._asdict(),
        "last": sb.last_error and sb.last_error._asdict(),
        "behaviour": in_force(sb, Options()).errors,
    }
    if errors["count"]:
        state = WITH_ERRORS
    if errors.get("stopped"):
        state = "mounted, and read-only since an error: run daxfs umount, daxfs check"
    uuid = sb.s_uuid.hex()
    return Info(
        pool=pool.path,
        kind=pool.kind,
        size=pool.size,
        alignment=pool.align,
        persistence=persist.choose(pool.path, pool.kind, None, read_only=True),
        mountpoint=mountpoint,
        state=state,
        errors=errors["count"],
        first_error=errors["first"],
        last_error=errors["last"],
        on_errors=errors["behaviour"],
        label=sb.label,
        uuid="-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])),
        block_size=geometry.block_size,
        blocks=geometry.blocks_count,
        free_blocks=free_blocks,
        reserved_blocks=sb.reserved_blocks_count,
        free=free_blocks * geometry.block_size,
        inodes=geometry.inodes_count,
        free_inodes=free_inodes,
        inode_size=geometry.inode_size,
        journal=journal,
        journal_size=journal_size,
        default_options=sb.default_options,
        reserved_for={"uid": sb.s_def_resuid, "gid": sb.s_def_resgid},
        mounts=sb.s_mnt_count,
        last_mounted=_text(sb.s_last_mounted),
        last_written=_time(sb.s_wtime) if sb.s_wtime else "",
        features=list(sb.feature_names),
        unsupported=[
            *features.unsupported_incompat(sb.s_feature_incompat),
            *features.unsupported_ro_compat(sb.s_feature_ro_compat),
        ],
        storage=_storage(found),
        mount=facts,
    )


def _storage(found: Reading) -> list[dict[str, Any]]:
    """Describe the members of the pool's storage; empty if it has none."""
    pool = found.pool
    records = members.records_of(found.view) if pool.memory_size < pool.size else ()
    return [_member(found, record) for record in records]


def _member(found: Reading, record: members.Record) -> dict[str, Any]:
    state, bits = "present", found.geometry.block_bits
    try:
        members.opened(found.pool, record, exclusively=False).close()
    except PoolError as error:
        state = str(error)
    first, last = (found.geometry.group_of_block(byte >> bits) for byte in (record.place.begin, record.place.end - 1))
    return {
        "path": record.find(found.pool.path),
        "size": record.label.size,
        "free": groups.free_in(found.view, range(first, last + 1)) << bits,
        "state": state,
    }


def _storage_line(storage: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{each['path']}, {format_size(each['size'])}, {format_size(each['free'])} free"
        + ("" if each["state"] == "present" else f"; {each['state']}")
        for each in storage
    )


def _facts(mountpoint: str) -> tuple[dict[str, Any], int, int]:
    """Return the status of a mount, its free blocks and its free inodes."""
    space = os.statvfs(mountpoint)
    return status(mountpoint), space.f_bfree, space.f_ffree


def _reserved_for(info: Info) -> str:
    """Return the user and the group that may use the reserved blocks besides root; "" if there are none."""
    found = [f"{kind} {number}" for kind, number in info.reserved_for.items() if number]
    return " and ".join(found)


def _described(error: dict[str, Any] | None) -> str:
    """Describe a recorded error of metadata in one line."""
    if error is None:
        return ""
    line = f" (line {error['line']})" if error["line"] else ""
    places = "".join(f", {kind} {error[key]}" for key, kind in (("ino", "inode"), ("block", "block")) if error[key])
    return f"{_time(error['when'])}, {error['where']}{line}{places}"


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _text(field: bytes) -> str:
    return bytes(field).split(b"\0", 1)[0].decode(errors="replace")


def _state(found: Reading, mountpoint: str) -> str:
    """Describe the state of the file system in one phrase; ``needs_recovery`` is normal while it is mounted."""
    sb = found.superblock
    if sb.s_state & ERROR_FS or sb.s_error_count:
        return WITH_ERRORS
    if mountpoint:
        return "mounted"
    if sb.s_feature_incompat & Incompat.needs_recovery:
        return "not unmounted: the journal will be replayed by the next mount"
    return "clean" if sb.s_state & VALID_FS else "not unmounted: run daxfs check"


def _journal(found: Reading) -> tuple[str, int]:
    if not found.geometry.has_journal:
        return "none", 0
    if not found.superblock.s_journal_inum:
        return "on another device", 0
    size = found.inode(str(found.superblock.s_journal_inum)).size
    return f"inode {found.superblock.s_journal_inum}", size


def show(place: str, *, as_json: bool = False) -> None:
    """Print all information about a pool."""
    info = examine(place)
    if as_json:
        print(json.dumps(asdict(info), indent=2))
        return
    atomic = info.mount.get("atomic_write", 0)
    unused = info.size - info.blocks * info.block_size
    used = 100 - 100 * info.free_blocks // max(info.blocks, 1)
    rows = {
        "pool": info.pool,
        "kind": info.kind,
        "storage": _storage_line(info.storage),
        "size": f"{format_size(info.size)} ({info.size} bytes)",
        "unused": f"{format_size(unused)} after the file system; daxfs resize uses it" if unused >= _WORTHWHILE else "",
        "alignment": f"{format_size(info.alignment)} (mappings)",
        "persistence": info.persistence,
        "mounted on": info.mountpoint,
        "options": ",".join(info.mount.get("options", ())),
        "atomic writes": f"up to {format_size(atomic)} to files with chattr +j" if atomic else "",
        "core": info.mount.get("core", compiled.state()),
        "state": info.state,
        "on errors": info.on_errors,
        "errors": str(info.errors) if info.errors else "",
        "first error": _described(info.first_error),
        "last error": _described(info.last_error) if info.errors > 1 else "",
        "label": info.label,
        "uuid": info.uuid,
        "blocks": f"{info.blocks} of {info.block_size} bytes, {info.reserved_blocks} reserved",
        "free": f"{format_size(info.free)} ({used} % used)",
        "inodes": f"{info.inodes} of {info.inode_size} bytes, {info.free_inodes} free",
        "journal": f"{info.journal}, {format_size(info.journal_size)}" if info.journal_size else info.journal,
        "defaults": ",".join(info.default_options),
        "reserved for": _reserved_for(info),
        "mounts": f"{info.mounts}" + (f", last on {info.last_mounted}" if info.last_mounted else ""),
        "last written": info.last_written,
        "features": " ".join(info.features),
        "unsupported": " ".join(info.unsupported),
    }
    for name, value in rows.items():
        if value:
            print(f"{name + ':':<14} {value}")
    if durability := info.mount.get("durability"):
        print("durable when it has returned:")
        for call, what in durability.items():
            print(f"  {call + ':':<42} {what}")
