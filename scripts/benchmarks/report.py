"""Report the measurements of a run: samples, tables of medians and ratios, required figures, JSON.

A sample is one measurement of one round. Tables show the median, and below it the smallest and the largest sample;
ratios are ratios of medians. A figure with a requirement is shown with its bound, as ``1.92 >= 1.80`` or
``1.72 < 1.80``; the end of the run shows how many are met.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

import rig

PERCENTILE = "percentile"


@dataclass(frozen=True)
class Scale:
    """The amount of work of a run.

    Attributes:
        rounds: repetitions of each comparison, whose median counts.
        seconds: length of each fio job.
        files: in the directory of the metadata section.
        tree: files in the tree that is unpacked.
        listed: entries of the largest directory that is listed.
        names: entries of the directory that another user lists in the section ``fairness``.
    """

    rounds: int = 5
    seconds: float = 2.0
    files: int = 10_000
    tree: int = 3_000
    listed: int = 100_000
    names: int = 1_000_000


FULL = Scale()
QUICK = Scale(rounds=1, seconds=0.5, files=1_000, tree=300, listed=10_000, names=20_000)


class Samples:
    """Measurements by row (the job) and column (the system), in the order of measurement."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, column: str, value: float) -> None:
        """Add a measurement."""
        self.rows.setdefault(row, {}).setdefault(column, []).append(value)

    def median(self, row: str, column: str) -> float:
        """Return the median of a row and column."""
        return statistics.median(self.rows[row][column])

    @property
    def columns(self) -> list[str]:
        """The columns of all rows."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))


@dataclass(frozen=True)
class Ratio:
    """A column of ratios: medians of ``of`` divided by medians of ``to``; ``least`` has the required ratios by row."""

    of: str
    to: str
    least: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """Lines to draw, each a list of points.

    Attributes:
        title: of the figure.
        x, y: the names of the axes, with their units. An ``x`` of `PERCENTILE` has an axis of its own.
        lines: points by the name of the line.
        log: the axes with a logarithmic scale: "x", "y", "xy" or none.
        apart: draw each line in a panel of its own.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: str = ""
    apart: bool = False


class Report:
    """Tables on the console, and the same as plain data for JSON."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.console = rig.console()
        self.sections: dict[str, dict[str, Any]] = {}
        self.wanted: dict[str, bool] = {}
        self._section = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Print the header of a section, and the machine's load before and after the body."""
        self._section = name
        self.sections[name] = {"load_before": load(), "tables": []}
        begin = time.monotonic()
        self.console.rule(name)
        yield
        self.sections[name] |= {"load_after": load(), "seconds": round(time.monotonic() - begin)}
        self.console.print("  load before {load_before}, after {load_after}; {seconds} s".format(**self.sections[name]))

    def say(self, text: str) -> None:
        """Print a line below a table."""
        self.console.print(f"  {text}")

    def not_run(self, what: str) -> None:
        """Say that a measurement was not made because a program is missing, and count its goals as not met."""
        self.say(f"not run: {what}")
        self.wanted[f"{self._section}: not run: {what}"] = False

    def bound(self, what: str, value: float, *, least: float | None = None, most: float | None = None) -> str:
        """Return a figure with its bound, if it has one, and record whether the bound is met."""
        met = (least is None or value >= least) and (most is None or value <= most)
        text = f"{value:,.2f}"
        if least is not None:
            text += f" {'>=' if met else '<'} {least:.2f}"
        if most is not None:
            text += f" {'<=' if met else '>'} {most:.2f}"
        if least is not None or most is not None:
            self.wanted[f"{self._section}: {what}"] = met
        return text

    def compare(self, title: str, samples: Samples, ratios: Sequence[Ratio] = ()) -> None:
        """Print and record a table of medians and ratios."""
        table = Table(title=f"{title} ({samples.unit})")
        table.add_column("what", no_wrap=True)
        for column in (*samples.columns, *(f"{ratio.of} /\n{ratio.to}" for ratio in ratios)):
            table.add_column(column, justify="right", no_wrap=True)
        plain: dict[str, dict[str, object]] = {}
        for what, row in samples.rows.items():
            cells = [shown(row.get(column, [])) for column in samples.columns]
            plain[what] = {column: summary(values) for column, values in row.items()}
            for ratio in ratios:
                if ratio.of not in row or ratio.to not in row:
                    cells.append("")
                    continue
                value = samples.median(what, ratio.of) / samples.median(what, ratio.to)
                name = f"{ratio.of} / {ratio.to}"
                cells.append(self.bound(f"{what}, {name}", value, least=ratio.least.get(what)))
                plain[what][name] = round(value, 3)
            table.add_row(what, *cells)
        self.console.print(table)
        self.keep(title, samples.unit, plain)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print and record a plain table; the first column names the row."""
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.keep(title, "", {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows})

    def keep(self, title: str, unit: str, rows: Mapping[str, object]) -> None:
        """Record a table for the output file."""
        self.sections[self._section]["tables"].append({"title": title, "unit": unit, "rows": rows})

    def draw(self, series: Series) -> None:
        """Record points for the output file and the plots; the console does not show them."""
        self.sections[self._section].setdefault("series", []).append(asdict(series))

    def close(self, place: str) -> None:
        """Print the required figures that were not met; write all to ``place``, if given: tables (.md), else JSON."""
        short = [what for what, met in self.wanted.items() if not met]
        if self.wanted:
            self.console.rule("required")
            self.say(f"{len(self.wanted) - len(short)} of {len(self.wanted)} required figures are met")
            for what in short:
                self.say(f"short: {what}")
        if place.endswith(".md"):
            Path(place).write_text("\n".join(self.markdown()))
        elif place:
            run = {"machine": machine(), "scale": vars(self.scale), "sections": self.sections, "wanted": self.wanted}
            Path(place).write_text(json.dumps(run, indent=1) + "\n")

    def markdown(self) -> Iterator[str]:
        """Yield the lines of the tables in Markdown, with medians and ratios, as in docs/BENCHMARKS.md."""
        yield ", ".join(f"{name} {value}" for name, value in machine().items())
        for name, section in self.sections.items():
            for table in section["tables"]:
                columns = list(dict.fromkeys(column for row in table["rows"].values() for column in row))
                yield f"\n{name}: {table['title']}{', ' + table['unit'] if table['unit'] else ''}\n"
                yield "| what | " + " | ".join(columns) + " |"
                yield "|---|" + "---|" * len(columns)
                for what, row in table["rows"].items():
                    cells = [cell(row.get(column, "")) for column in columns]
                    yield f"| {what} | " + " | ".join(cells) + " |"
        yield ""


def shown(values: Sequence[float]) -> str:
    """Return the median as text, with the range in a second line if there are several samples."""
    if not values:
        return ""
    digits = 0 if statistics.median(values) >= 100 else 2
    text = f"{statistics.median(values):,.{digits}f}"
    return f"{text}\n{min(values):,.{digits}f} - {max(values):,.{digits}f}" if len(values) > 1 else text


def summary(values: Sequence[float]) -> dict[str, object]:
    """Return the samples as plain data, with median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def cell(value: object) -> str:
    """Return the text of a Markdown cell; for samples the median."""
    if isinstance(value, dict):
        return shown([value["median"]])
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def load() -> float:
    """Return the load average of the last minute; above 1 other processes are running."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, object]:
    """Describe the machine and the versions of the tools."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processors": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fio": said("fio", "--version"),
        "fuse2fs": said("fuse2fs", "-V"),
        "load": load(),
    }


def said(name: str, option: str) -> str:
    """Return the version that a program prints."""
    done = subprocess.run([rig.tool(name), option], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(rf"^{name}[ -](\d[\d.]*)", done.stdout + done.stderr, re.MULTILINE)
    return found[1] if found else ""
