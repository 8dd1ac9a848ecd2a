"""Follows the tests in the guest: their output as it comes, the count of results, the closing line."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path


class Report:
    """The results of all boots of one run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.passed = 0
        self.failed: list[str] = []

    @property
    def began(self) -> bool:
        """Whether a test has run."""
        return bool(self.passed or self.failed)

    def say(self, text: str) -> None:
        """Print one line of progress."""
        print(f"test-pmem: {text}", flush=True)

    def add(self, results: Path) -> int:
        """Count the results of one boot; return how many tests it ran."""
        lines = results.read_text().splitlines() if results.exists() else []
        for line in map(json.loads, lines):
            if line["outcome"] == "passed":
                self.passed += 1
            else:
                self.failed.append(line["test"])
        return len(lines)

    def fail(self, what: str) -> None:
        """Count a failure that is no test's."""
        self.say(what)
        self.failed.append(what)

    def close(self) -> int:
        """Print the failures and the closing line; return the exit code."""
        for test in self.failed:
            print(f"FAILED {test}")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = used.ru_utime + used.ru_stime
        print(f"test-pmem: {time.monotonic() - self.started:.0f} s, of the processor {processor:.0f} s")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


class Follower:
    """Prints what is appended to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def __call__(self) -> None:
        """Print what has been appended since the last call."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
            self._position += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()
