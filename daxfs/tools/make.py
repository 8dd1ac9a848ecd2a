"""``daxfs mkfs`` and ``mkfs.daxfs``: parse arguments, show progress, print a report. `mkfs.make_pool` does the work."""

from __future__ import annotations

import getopt
from collections.abc import Sequence
from typing import NamedTuple

from daxfs.errors import UserError
from daxfs.tools import mkfs, tiermaking
from daxfs.tools.progress import progress_bar
from daxfs.tools.sizes import format_size, parse_size
from daxfs.tools.tiermaking import Tier

_USAGE_TEXT = (
    "usage: daxfs mkfs POOL [--size SIZE] [--sparse] [--tier FILE[:SIZE]]... [--keep-mode] [--trust-owner] "
    "[mke2fs options]"
)
_LONG_OPTIONS = ["size=", "sparse", "tier=", "keep-mode", "trust-owner"]
_USAGE = 1  # mke2fs


def run(arguments: Sequence[str]) -> None:
    """Make a pool. As with mkfs(8) and mke2fs the size may be a second operand, and ``-t daxfs`` is accepted.

    Raises:
        UserError: a wrong argument, or a refusal of `mkfs.make_pool`.
    """
    asked = split(arguments)
    report = _make(asked)
    if report.output.strip():
        print(report.output.rstrip())
    if report.readable:
        print(f"{report.path} keeps its mode {report.mode:04o}: every user who may read it can read every file in it")
    if report.lacking:
        print(
            f"{report.path} is sparse, and its file system lacks {format_size(report.lacking)} to hold it whole: "
            "when that file system is full, writes fail with ENOSPC"
        )
    if "-q" not in asked.extra:
        print(f"{report.path}: {format_size(report.size)} ext4 on {report.kind}, {report.seconds:.2f} s")


class Asked(NamedTuple):
    """A parsed command line; ``extra`` are the options for mke2fs."""

    pool: str
    size: int | None
    extra: list[str]
    keep_mode: bool
    trust_owner: bool
    sparse: bool
    tier: list[Tier]


def split(arguments: Sequence[str]) -> Asked:
    """Parse a command line.

    Raises:
        UserError: an unknown option, a bad size, or a wrong number of operands.
    """
    try:
        pairs, places = getopt.gnu_getopt(list(arguments), mkfs.MKE2FS_OPTIONS, _LONG_OPTIONS)
    except getopt.GetoptError as error:
        raise UserError(f"{error}; {_USAGE_TEXT}", _USAGE) from None
    size = next((parse_size(value) for name, value in pairs if name == "--size"), None)
    extra = []
    for name, value in pairs:
        if name.startswith("--") or (name, value) == ("-t", "daxfs") or (name, value) == ("-t", "fuse.daxfs"):
            continue
        extra += [name, value] if value else [name]
    if not places or len(places) > 2 or (len(places) == 2 and size is not None):
        raise UserError(_USAGE_TEXT, _USAGE)
    if len(places) == 2:
        size = parse_size(places[1])
    given = {name for name, _ in pairs}
    tier = [tiermaking.parse(value) for name, value in pairs if name == "--tier"]
    return Asked(places[0], size, extra, "--keep-mode" in given, "--trust-owner" in given, "--sparse" in given, tier)


def _make(asked: Asked) -> mkfs.Report:
    with progress_bar() as progress:
        return mkfs.make_pool(
            asked.pool,
            asked.size,
            asked.extra,
            progress,
            keep_mode=asked.keep_mode,
            trust_owner=asked.trust_owner,
            sparse=asked.sparse,
            tier=asked.tier,
        )
