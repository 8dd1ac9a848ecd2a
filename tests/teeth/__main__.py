"""``make test-teeth``: every mutant, or those named in ``TEETH``; a table of what became of them."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from teeth.catalogue import MUTANTS
from teeth.mutant import Mutant
from teeth.runner import Outcome, Verdict, try_mutant, try_unchanged

COLOURS = {Outcome.CAUGHT: "green", Outcome.HUNG: "green", Outcome.SURVIVED: "bold red"}


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants whose names contain one of the words; all without words."""
    return [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]


def table(mutants: list[Mutant], verdicts: dict[str, Verdict]) -> Table:
    """One row for each mutant, survivors last."""
    made = Table("mutant", "must fail in", "outcome", "by", "seconds", title="Mutants")
    for mutant in sorted(mutants, key=lambda mutant: not verdicts[mutant.name].outcome.good):
        outcome, by, seconds = verdicts[mutant.name]
        colour = COLOURS.get(outcome, "yellow")
        which = "full run" if mutant.full else "make test"
        made.add_row(mutant.name, which, f"[{colour}]{outcome.value}[/]", escape(by), f"{seconds:.1f}")
    return made


def run(mutants: list[Mutant], jobs: int, limit: float, *, compiled: bool) -> dict[str, Verdict]:
    """Try them all, some at a time."""
    verdicts: dict[str, Verdict] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    watched = sys.stderr.isatty()
    with Progress(*columns, transient=True, disable=not watched, console=Console(stderr=True)) as progress:
        task = progress.add_task("mutants", total=len(mutants))
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(try_mutant, mutant, limit, compiled=compiled): mutant for mutant in mutants}
            for done in as_completed(waiting):
                name = waiting[done].name
                verdicts[name] = done.result()
                alive = sum(not verdict.outcome.good for verdict in verdicts.values())
                progress.update(task, advance=1, description=f"{name}: {verdicts[name].outcome.value}, {alive} alive")
                if not watched:
                    outcome, by, seconds = verdicts[name]
                    line = f"{len(verdicts)} of {len(mutants)}: {name}: {outcome.value} {by} {seconds:.1f} s"
                    print(line, file=sys.stderr, flush=True)
    return verdicts


def main() -> int:
    """The command line: exit code 1 if a mutant is not caught."""
    parser = argparse.ArgumentParser(prog="make test-teeth", description="Try whether the tests catch known faults.")
    parser.add_argument("names", nargs="*", help="parts of names; all mutants by default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one mutant; a hang counts as caught")
    parser.add_argument("--list", action="store_true", help="names and reasons, nothing is run")
    parser.add_argument("--no-sanity", action="store_true", help="leave out the run on the sources as they are")
    parser.add_argument(
        "--compiled", action="store_true", help="compile the core for each mutant in it; run make compiled first"
    )
    given = parser.parse_args()
    mutants, console = chosen(given.names), Console(width=None if sys.stdout.isatty() else 160)
    if not mutants:
        parser.error(f"no mutant is called {' or '.join(given.names)}; see --list")
    if given.list:
        for mutant in mutants:
            console.print(f"[bold]{mutant.name}[/] ({mutant.path})\n    {escape(mutant.reason)}")
        return 0
    begin = time.monotonic()
    if not given.no_sanity:
        with console.status("The same tests on the sources as they are"):
            said = try_unchanged(mutants, given.limit, compiled=given.compiled)
        if said:
            console.print(f"The tests fail on the sources as they are:\n{said}", markup=False)
            return 1
    verdicts = run(mutants, given.jobs, given.limit, compiled=given.compiled)
    console.print(table(mutants, verdicts))
    caught = sum(verdict.outcome.good for verdict in verdicts.values())
    console.print(f"{caught} of {len(mutants)} caught in {time.monotonic() - begin:,.0f} s")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
