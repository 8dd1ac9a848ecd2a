"""What the explorer tries: all workloads of one and of two operations, and a sample of those of three (ACE's plan).

The operations are those of `crash_rig.OPERATIONS`, the formats those of `crash_rig.FORMATS`: whatever is registered
there is tried here, alone and after and before everything else. `tiers` adds a format with storage and its operations.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from crash_rig import AFTER, AGAIN, FORMATS, OPERATIONS, PLAIN, SINGLE, Run, Step

from explorer.clients import OPERATIONS as CLIENT_OPERATIONS
from explorer.clients import POOLS, ClientRun
from explorer.tiers import TIER_OPERATIONS, TIER_SINGLE, TIERED, TieredRun

ROUND = 330
"""Operations, each followed by a sync, after which the log of the smallest journal has begun anew."""
NEAR = 80
"""Events before and after the log begins anew between which the power fails."""


class Part(Enum):
    """When the power fails.

    WORK: while the workload runs. LAST: from the beginning of its last operation on (what came before is cut in shorter
    workloads). LIFE: at any time from mount to unmount. LAP: as the log begins anew.
    """

    WORK = "work"
    LAST = "last"
    LIFE = "life"
    LAP = "lap"

    def window(self, run: Run) -> tuple[int, int | None]:
        """The events between which the power fails."""
        if self is Part.LIFE:
            return 0, None
        if self is Part.LAP:
            return run.laps[0] - NEAR, run.laps[0] + NEAR
        if self is Part.LAST:
            return run.moments[-1].begun, None
        return run.start, None


class Workload(NamedTuple):
    """Steps on a pool of a format; ``clients``: steps of a client, whose stores become durable in that way."""

    format: str
    steps: tuple[Step, ...]
    part: Part = Part.WORK
    clients: str = ""

    def run(self, content: bytes) -> Run:
        """Do it on a recording pool that begins with these bytes."""
        if self.clients:
            return ClientRun(content, self.steps, self.clients)
        run = TieredRun if self.format in TIERED else Run
        return run(content, self.steps, close=self.part is Part.LIFE)

    @property
    def kind(self) -> str:
        """Which of the functions below makes such workloads."""
        count = len(self.steps)
        if self.clients:
            return "clients"
        return {Part.LIFE: "lives", Part.LAP: "laps"}.get(self.part) or ("ones", "twos", "threes")[min(count, 3) - 1]

    def spell(self) -> str:
        """One line that `read` understands: ``4k/last: append>sync, unlink``; of a client ``4k/work/lines: append``."""
        steps = ", ".join(f"{name}>{after}" if after else name for name, after in self.steps)
        place = "/".join((self.format, self.part.value, *filter(None, (self.clients,))))
        return f"{place}: {steps}"

    @classmethod
    def read(cls, line: str) -> Workload:
        """What `spell` has written.

        Raises:
            ValueError: there is no such format, part or operation.
        """
        head, _, steps = line.partition(":")
        name, part, clients, *_ = [*head.split("/"), "", ""]
        tiers = TIER_OPERATIONS if name in TIERED else {}
        operations = CLIENT_OPERATIONS if clients else {**OPERATIONS, **tiers}
        pairs = [step.strip().partition(">")[::2] for step in steps.split(",")]
        known = (
            name in {**FORMATS, **PLAIN, **TIERED} and part in {each.value for each in Part} and clients in {"", *POOLS}
        )
        if not known or any(done not in operations or then not in AFTER for done, then in pairs):
            raise ValueError(f"{line!r} is no workload; one is '4k/last: append>sync, unlink'")
        return cls(name, tuple(pairs), Part(part), clients)


def single(name: str) -> list[str]:
    """The operations that are tried on a format."""
    return TIER_SINGLE if name in TIERED else SINGLE


def ones(name: str) -> Iterator[Workload]:
    """Every operation, followed by nothing and by each kind of sync."""
    return (Workload(name, ((operation, after),)) for operation in single(name) for after in AFTER)


def twos(name: str) -> Iterator[Workload]:
    """Every two operations, in one transaction and with a sync between them."""
    return (
        Workload(name, ((first, between), (second, "")), Part.LAST)
        for first in single(name)
        for second in single(name)
        for between in ("", "sync")
    )


def sample(name: str, count: int, seed: int) -> list[Workload]:
    """A seeded sample of two operations."""
    return random.Random(f"{name} {seed}").sample(list(twos(name)), count)


def threes(name: str, count: int, seed: int) -> Iterator[Workload]:
    """A seeded sample of three operations, each followed by something."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        yield Workload(name, tuple((rng.choice(single(name)), rng.choice(AFTER)) for _ in range(3)))


def lives(name: str, count: int, seed: int) -> Iterator[Workload]:
    """Mount, a few operations, unmount: the power fails anywhere."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        yield Workload(name, tuple((rng.choice(single(name)), rng.choice(AFTER)) for _ in range(4)), Part.LIFE)


def laps(name: str, count: int, seed: int) -> Iterator[Workload]:
    """Operations until the log begins anew: the power fails about there."""
    rng = random.Random(f"{name} {seed}")
    for _ in range(count):
        yield Workload(name, tuple((rng.choice(AGAIN), "sync") for _ in range(ROUND)), Part.LAP)


def clients(name: str, count: int, seed: int) -> Iterator[Workload]:
    """Everything that a client does, and a seeded sample of two such operations, for each way to be durable.

    Files without extents are not made longer by clients, and pools with storage have their clients elsewhere.
    """
    if name in PLAIN or name in TIERED or name == "no-extents":
        return
    rng = random.Random(f"{name} {seed}")
    for way in POOLS:
        for operation in CLIENT_OPERATIONS:
            yield Workload(name, ((operation, "sync"),), clients=way)
        for _ in range(count):
            steps = [(rng.choice(list(CLIENT_OPERATIONS)), rng.choice(("", "sync"))) for _ in range(2)]
            yield Workload(name, tuple(steps), clients=way)
