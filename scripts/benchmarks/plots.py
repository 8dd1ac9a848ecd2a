"""Draw the series of a run, one SVG file for each. Needs matplotlib, the optional extra ``plots``.

A series says by itself how it is drawn (`report.Series`); this module knows no section.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import PERCENTILE

SIZE = (7.0, 4.0)
PANEL = (3.0, 1.6)
ACROSS = 3
LAST_PERCENTILE = 99.99
"""Where the largest sample is drawn: the axis of percentiles has no end."""
FEW_POINTS = 8
"""So many points of a logarithmic axis are its marks."""
MOST_MARKED = 60
"""Lines of more points have no marks, each of which would be an element of the file."""
SHOWN_PERCENTILES = (50, 90, 99, 99.9, LAST_PERCENTILE)


def missing() -> str:
    """Return what is missing to draw, with the mend, or nothing."""
    if importlib.util.find_spec("matplotlib"):
        return ""
    return "--plots needs matplotlib: .venv/bin/python -m pip install -e '.[plots]'"


def draw(sections: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Path]:
    """Draw all series of the sections; yield the paths of the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "daxfs", "font.size": 8, "axes.grid": True})
    folder.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        for series in section.get("series", []):
            path = folder / f"{name}-{re.sub(r'[^a-z0-9]+', '-', series['title'].lower()).strip('-')}.svg"
            figure = panels(series) if series["apart"] else together(series)
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            yield path


def together(series: Mapping[str, Any]) -> Any:
    """Draw all lines on the same axes."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE)
    axes = figure.subplots()
    for name, points in series["lines"].items():
        line(axes, series, points, name)
    axes.set_title(series["title"])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def panels(series: Mapping[str, Any]) -> Any:
    """Draw each line on axes of its own, with the same vertical scale."""
    from matplotlib.figure import Figure

    down = -(-len(series["lines"]) // ACROSS)
    figure = Figure((PANEL[0] * ACROSS, PANEL[1] * down), layout="constrained")
    grid = figure.subplots(down, ACROSS, sharey=True, squeeze=False).flat
    for axes, (name, points) in zip(grid, series["lines"].items(), strict=False):
        line(axes, series, points, name)
        axes.minorticks_off()
        axes.locator_params(axis="x", nbins=3)
        axes.set_title(name, fontsize=7)
    for axes in list(grid)[len(series["lines"]) :]:
        axes.set_visible(False)
    figure.suptitle(series["title"])
    return figure


def line(axes: Any, series: Mapping[str, Any], points: list[tuple[float, float]], name: str) -> None:
    """Draw one line, and scale and name the axes."""
    across, up = [point[0] for point in points], [point[1] for point in points]
    if series["x"] == PERCENTILE:
        across = [rarity(part) for part in across]
        axes.set_xscale("log")
        axes.set_xticks([rarity(part) for part in SHOWN_PERCENTILES], [f"{part:g}" for part in SHOWN_PERCENTILES])
        axes.minorticks_off()
    axes.plot(across, up, marker="." if len(across) <= MOST_MARKED else "", markersize=3, linewidth=1, label=name)
    for axis in series["log"]:
        getattr(axes, f"set_{axis}scale")("log")
    if "x" in series["log"] and len(across) <= FEW_POINTS:
        axes.set_xticks(across, [f"{value:,g}" for value in across])
        axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel(series["x"])
    axes.set_ylabel(series["y"])


def rarity(percentile: float) -> float:
    """Return of how many samples one exceeds the percentile: 99 becomes 100."""
    return 100 / (100 - min(percentile, LAST_PERCENTILE))
