"""``daxfs map POOL|MOUNTPOINT``: draw what a pool holds, in the terminal or as an image.

A cell of the drawing is one chunk of 2 MiB, or several where the pool has more chunks than the drawing has cells. Its
letter is what most of its used blocks hold; bad memory shows wherever there is any.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from daxfs.errors import UserError
from daxfs.pmem.kinds import HUGE_PAGE
from daxfs.tools.poolmap import Kind, PoolMap, examine
from daxfs.tools.printing import printable
from daxfs.tools.progress import progress_bar
from daxfs.tools.sizes import format_size

LOOKS: dict[Kind, tuple[str, str, str]] = {
    Kind.FREE: ("·", "bright_black", "#e8e8e8"),
    Kind.DATA: ("█", "blue", "#3b6fb6"),
    Kind.METADATA: ("M", "yellow", "#d9a21b"),
    Kind.JOURNAL: ("J", "magenta", "#8e4fa8"),
    Kind.SNAPSHOT: ("S", "green", "#3f9b58"),
    Kind.UNKNOWN: ("?", "white", "#7f7f7f"),
    Kind.BAD: ("X", "red", "#c8321e"),
}
"""Of each kind: its character, its colour in a terminal, its colour in an image."""
PARTLY = "▒"
"""The character of data in a cell that has free blocks too."""
IN_ASCII = str.maketrans("·█▒", ".#+")
"""What is shown instead where the encoding of the output has no such characters."""
ROWS = 24
COLUMNS = 64
IMAGE_COLUMNS, IMAGE_ROWS = 128, 64
FORMATS = (".png", ".svg")


def show(place: str, *, as_json: bool = False, image: str = "") -> None:
    """Draw a pool, given by its path or its mountpoint.

    Args:
        place: the pool or the mountpoint.
        as_json: print the totals and the row of each chunk instead.
        image: draw into this file too, a PNG or SVG.

    Raises:
        UserError: there is no such pool; the image has another format, can't be written, or matplotlib is missing.
    """
    if image and Path(image).suffix.lower() not in FORMATS:
        raise UserError(f"{image}: a map is drawn as {' or '.join(FORMATS)}; name such a file", os.EX_USAGE)
    with progress_bar() as progress:
        found = examine(place, progress)
    if image:
        draw(found, image)
    if as_json:
        kinds = [kind.name.lower() for kind in Kind]
        print(json.dumps({**totals(found), "kinds": kinds, "chunks": found.chunks.tolist()}))
        return
    console = Console(highlight=False)
    columns = min(console.width, COLUMNS)
    cells = cells_of(found, columns * ROWS)
    shown = [Text(title(found, cells)), *lines(cells, columns), *legend(found)]
    if not _can_be_encoded(console.encoding):
        for line in shown:
            line.plain = line.plain.translate(IN_ASCII)
    for line in shown:
        console.print(line, soft_wrap=True)


def _can_be_encoded(encoding: str) -> bool:
    """Return whether an encoding has all characters of a drawing."""
    try:
        "·█▒".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def totals(found: PoolMap) -> dict[str, int | str]:
    """Return the sums of a pool, in bytes and chunks."""
    sums = {kind.name.lower(): found.bytes_of(kind) for kind in Kind}
    return {"pool": found.pool, "size": found.size, **sums, "whole_chunks": found.whole, "broken_chunks": found.broken}


def cells_of(found: PoolMap, most: int) -> npt.NDArray[np.int64]:
    """Return the cells of a drawing, ``most`` at most, each the sum of adjacent chunks: an array (cells, kinds)."""
    each = -(-len(found.chunks) // most)
    padded = np.zeros((-(-len(found.chunks) // each) * each, len(Kind)), np.int64)
    padded[: len(found.chunks)] = found.chunks
    made: npt.NDArray[np.int64] = padded.reshape(-1, each, len(Kind)).sum(axis=1)
    return made


def kinds_of(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the kind that a cell shows: bad memory, else what most of its used blocks hold."""
    used = cells.copy()
    used[:, Kind.FREE] = 0
    used[:, Kind.BAD] *= int(cells.sum() + 1)
    shown: npt.NDArray[np.int64] = np.where(used.any(axis=1), used.argmax(axis=1), Kind.FREE)
    return shown


def title(found: PoolMap, cells: npt.NDArray[np.int64]) -> str:
    """Return the line above the drawing: it says what a cell is."""
    each = -(-len(found.chunks) // len(cells))
    return f"{printable(found.pool)}: {format_size(found.size)}; a cell is {format_size(each * HUGE_PAGE)}"


def lines(cells: npt.NDArray[np.int64], columns: int) -> list[Text]:
    """Return the lines of the drawing."""
    shown = kinds_of(cells).tolist()
    free = (cells[:, Kind.FREE] > 0).tolist()
    made = []
    for start in range(0, len(cells), columns):
        line = Text()
        for at in range(start, min(start + columns, len(cells))):
            character, colour, _ = LOOKS[Kind(shown[at])]
            line.append(PARTLY if character == "█" and free[at] else character, style=colour)
        made.append(line)
    return made


def legend(found: PoolMap) -> list[Text]:
    """Return a line for each kind that there is, and one about the free chunks."""
    made = []
    for kind, (character, colour, _) in LOOKS.items():
        amount = found.bytes_of(kind)
        if amount:
            text = f" {kind.name.lower():<9} {format_size(amount):>12} {100 * amount / found.size:5.1f} %"
            made.append(Text.assemble((character, colour), text))
    free = found.bytes_of(Kind.FREE)
    whole = 100 * found.whole * HUGE_PAGE / free if free else 0.0
    made.append(
        Text(f"free: {found.whole} whole chunks of 2 MiB ({whole:.0f} % of the free space), {found.broken} broken ones")
    )
    return made


def draw(found: PoolMap, file: str) -> None:
    """Draw the pool into a PNG or SVG file.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        text = f"{file} can't be drawn without matplotlib; install it: pip install 'daxfs[plots]'"
        raise UserError(text, os.EX_UNAVAILABLE) from None
    cells = cells_of(found, IMAGE_COLUMNS * IMAGE_ROWS)
    columns = min(IMAGE_COLUMNS, math.ceil(math.sqrt(2 * len(cells))))
    colours = np.array([to_rgb(LOOKS[kind][2]) for kind in Kind])
    shown = kinds_of(cells)
    fullness = 1 - cells[:, Kind.FREE] / np.maximum(cells.sum(axis=1), 1)
    fullness = np.where(shown == Kind.BAD, 1.0, np.where(shown == Kind.FREE, 0.0, 0.25 + 0.75 * fullness))[:, None]
    picture = np.ones((-(-len(cells) // columns) * columns, 3))
    picture[: len(cells)] = colours[shown] * fullness + colours[Kind.FREE] * (1 - fullness)
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(picture.reshape(-1, columns, 3), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    axes.set_title(title(found, cells), fontsize=10, parse_math=False)
    figure.legend(
        handles=[
            Patch(color=look[2], label=f"{kind.name.lower()} {format_size(found.bytes_of(kind))}")
            for kind, look in LOOKS.items()
            if found.bytes_of(kind)
        ],
        loc="outside lower center", ncols=len(LOOKS), fontsize=8, frameon=False,
    )  # fmt: skip
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", os.EX_CANTCREAT) from None
