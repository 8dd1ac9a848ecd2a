"""``daxfs mkfs`` and ``mkfs.daxfs``: its arguments, its progress, its report. `mkfs.make_pool` does the work."""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence

from daxfs.errors import UserError
from daxfs.tools import mkfs
from daxfs.tools.sizes import format_size, parse_size

_USAGE_TEXT = "usage: daxfs mkfs POOL [--size SIZE] [mke2fs options]"
_USAGE = 1  # mke2fs


def run(arguments: Sequence[str]) -> None:
    """Make a pool. mkfs(8) and mke2fs take the size as a second operand, so do we; ``-t ext4`` may be ``daxfs``.

    Raises:
        UserError: a wrong argument, or what `mkfs.make_pool` refuses.
    """
    pool, size, extra = split(arguments)
    report = _make(pool, size, extra)
    if report.output.strip():
        print(report.output.rstrip())
    if "-q" not in extra:
        print(f"{report.path}: {format_size(report.size)} ext4 on {report.kind}, {report.seconds:.2f} s")


def split(arguments: Sequence[str]) -> tuple[str, int | None, list[str]]:
    """The pool, its size and the options for mke2fs."""
    try:
        pairs, places = getopt.gnu_getopt(list(arguments), mkfs.MKE2FS_OPTIONS, ["size="])
    except getopt.GetoptError as error:
        raise UserError(f"{error}; {_USAGE_TEXT}", _USAGE) from None
    size = next((parse_size(value) for name, value in pairs if name == "--size"), None)
    extra = []
    for name, value in pairs:
        if name == "--size" or (name, value) == ("-t", "daxfs") or (name, value) == ("-t", "fuse.daxfs"):
            continue
        extra += [name, value] if value else [name]
    if not places or len(places) > 2 or (len(places) == 2 and size is not None):
        raise UserError(_USAGE_TEXT, _USAGE)
    if len(places) == 2:
        size = parse_size(places[1])
    return places[0], size, extra


def _make(pool: str, size: int | None, extra: list[str]) -> mkfs.Report:
    if not sys.stderr.isatty():
        return mkfs.make_pool(pool, size, extra)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        shown: dict[str, object] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what, total=total)
            bars.update(shown[what], completed=done)  # type: ignore[arg-type]

        return mkfs.make_pool(pool, size, extra, progress)
