"""Stock tune2fs on the pool of a live mount: what it stores beside the mount is kept, whichever way the mount ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from cli_rig import daxfs
from mount_rig import SESSIONS, Mounted, mounted

from support import fsck, run

Pool = Callable[..., Path]
LOG_BLOCKS = 1024
CHANGES = ("-c 77", "-i 5d", "-e remount-ro", "-o bsdgroups", "-u 5", "-g 6")
KEPT = {
    "Maximum mount count": "77",
    "Check interval": "432000 (5 days)",
    "Errors behavior": "Remount read-only",
    "Default mount options": "bsdgroups user_xattr acl",
    "Reserved blocks uid": "5 (user games)",
    "Reserved blocks gid": "6 (group disk)",
}


def tune(pool: Path) -> None:
    for change in CHANGES:
        run("tune2fs", *change.split(), pool)


def settings(pool: Path) -> dict[str, str]:
    shown = dict(re.findall(r"^([^:\n]+):[ \t]+(.*)$", run("dumpe2fs", "-h", pool), re.MULTILINE))
    return {name: shown[name] for name in KEPT}


def tail_moves(mount: Mounted) -> int:
    moves: int = json.loads(daxfs("stats", mount.place, "--total", "--json"))["journal"]["tail_moves"]
    return moves


def begin_log_anew(mount: Mounted) -> None:
    """Store the waiting superblock at home, by commits that fill the log."""
    before = tail_moves(mount)
    root = os.open(mount.place, os.O_RDONLY)
    try:
        for turn in range(LOG_BLOCKS // 4):
            (mount.place / str(turn)).mkdir()
            os.fsync(root)
    finally:
        os.close(root)
    assert tail_moves(mount) > before


def test_settings_are_kept_at_unmount(session: str, pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path, *SESSIONS[session]) as mount:
        (mount.place / "d").mkdir()
        tune(path)
        (mount.place / "e").mkdir()
    assert settings(path) == KEPT
    fsck(path)


def test_settings_are_kept_by_a_remount(pool: Pool) -> None:
    path = pool("-b", "4096")
    with mounted(path) as mount:
        (mount.place / "d").mkdir()
        tune(path)
        daxfs("mount", "-o", "remount,ro", mount.place)
        assert settings(path) == KEPT
        fsck(path)


def test_settings_are_kept_when_the_log_begins_anew(pool: Pool) -> None:
    path = pool("-b", "1024", "-J", "size=1")
    with mounted(path) as mount:
        tune(path)
        begin_log_anew(mount)
        assert settings(path) == KEPT
    assert settings(path) == KEPT
    fsck(path)
