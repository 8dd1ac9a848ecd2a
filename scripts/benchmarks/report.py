"""What a run measured: samples, tables of medians with their ratios, the figures that are wanted, JSON.

A sample is one measurement of one round. Tables show the median, and below it the smallest and the largest; ratios are
those of medians. A ratio or a figure that the project wants stands beside its bound, as ``1.92 >= 1.80`` or
``1.72 < 1.80``, and is counted at the end of the run.
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
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

import rig


@dataclass(frozen=True)
class Scale:
    """How much one run does.

    Attributes:
        rounds: of everything that is compared; the median counts.
        seconds: of each fio job.
        files: of the directory whose names are measured.
        tree: files of the tree that is unpacked.
        listed: the largest directory whose listing is measured.
    """

    rounds: int = 5
    seconds: float = 2.0
    files: int = 10_000
    tree: int = 3_000
    listed: int = 100_000


FULL = Scale()
QUICK = Scale(rounds=1, seconds=0.5, files=1_000, tree=300, listed=10_000)


class Samples:
    """Measurements by row (what was done) and column (who did it), in the order in which they came."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, column: str, value: float) -> None:
        """One measurement more."""
        self.rows.setdefault(row, {}).setdefault(column, []).append(value)

    def median(self, row: str, column: str) -> float:
        """What to quote."""
        return statistics.median(self.rows[row][column])

    @property
    def columns(self) -> list[str]:
        """All columns of all rows."""
        return list(dict.fromkeys(column for row in self.rows.values() for column in row))


@dataclass(frozen=True)
class Ratio:
    """A column of quotients: medians of ``of`` by medians of ``to``; ``least`` is what is wanted, by row."""

    of: str
    to: str
    least: Mapping[str, float] = field(default_factory=dict)


class Report:
    """Tables on the console, and the same as plain data for JSON."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.console = rig.console()
        self.sections: dict[str, dict[str, object]] = {}
        self.wanted: dict[str, bool] = {}
        self._section = ""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """One section of the run: a rule, and the machine's load before and after it."""
        self._section = name
        self.sections[name] = {"load_before": load(), "tables": []}
        begin = time.monotonic()
        self.console.rule(name)
        yield
        self.sections[name] |= {"load_after": load(), "seconds": round(time.monotonic() - begin)}
        self.console.print("  load before {load_before}, after {load_after}; {seconds} s".format(**self.sections[name]))

    def say(self, text: str) -> None:
        """A line below a table."""
        self.console.print(f"  {text}")

    def bound(self, what: str, value: float, *, least: float | None = None, most: float | None = None) -> str:
        """A figure beside its bound, if it has one; it counts as wanted then."""
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
        """Show and keep a table of medians and ratios."""
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
        """Show and keep a plain table; the first column says what the row is."""
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        self.keep(title, "", {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows})

    def keep(self, title: str, unit: str, rows: Mapping[str, object]) -> None:
        """Remember a table for JSON."""
        tables = self.sections[self._section]["tables"]
        assert isinstance(tables, list)
        tables.append({"title": title, "unit": unit, "rows": rows})

    def close(self, place: str) -> None:
        """Say what was wanted and not reached; write all to ``place`` unless that is empty: tables (.md), else JSON."""
        short = [what for what, met in self.wanted.items() if not met]
        if self.wanted:
            self.console.rule("wanted")
            self.say(f"{len(self.wanted) - len(short)} of {len(self.wanted)} figures as wanted")
            for what in short:
                self.say(f"short: {what}")
        if place.endswith(".md"):
            Path(place).write_text("\n".join(self.markdown()))
        elif place:
            run = {"machine": machine(), "scale": vars(self.scale), "sections": self.sections, "wanted": self.wanted}
            Path(place).write_text(json.dumps(run, indent=1) + "\n")

    def markdown(self) -> Iterator[str]:
        """The tables as docs/BENCHMARKS.md has them: medians and ratios."""
        yield ", ".join(f"{name} {value}" for name, value in machine().items())
        for name, section in self.sections.items():
            tables = section["tables"]
            assert isinstance(tables, list)
            for table in tables:
                columns = list(dict.fromkeys(column for row in table["rows"].values() for column in row))
                yield f"\n{name}: {table['title']}{', ' + table['unit'] if table['unit'] else ''}\n"
                yield "| what | " + " | ".join(columns) + " |"
                yield "|---|" + "---|" * len(columns)
                for what, row in table["rows"].items():
                    cells = [cell(row.get(column, "")) for column in columns]
                    yield f"| {what} | " + " | ".join(cells) + " |"
        yield ""


def shown(values: Sequence[float]) -> str:
    """The median, and the span below it if there is one."""
    if not values:
        return ""
    digits = 0 if statistics.median(values) >= 100 else 2
    text = f"{statistics.median(values):,.{digits}f}"
    return f"{text}\n{min(values):,.{digits}f} - {max(values):,.{digits}f}" if len(values) > 1 else text


def summary(values: Sequence[float]) -> dict[str, object]:
    """The same as plain data."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def cell(value: object) -> str:
    """A cell of a Markdown table: of samples the median."""
    if isinstance(value, dict):
        return shown([value["median"]])
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def load() -> float:
    """Processes that wanted to run, mean of the last minute: above 1 somebody else is at work."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, object]:
    """What a figure depends on besides the code."""
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
    """The version that a program says of itself."""
    done = subprocess.run([rig.tool(name), option], capture_output=True, text=True, timeout=20, check=False)
    found = re.search(rf"^{name}[ -](\d[\d.]*)", done.stdout + done.stderr, re.MULTILINE)
    return found[1] if found else ""
