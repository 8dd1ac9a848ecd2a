"""Put each image that a record of stores may leave on a disk, one after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from recorder import Event, Store

from explorer.disk import Disk
from explorer.lines import choices, cuts


class Shown(NamedTuple):
    """What is on the disk: a cut after ``position`` events, and in words which of the undecided lines it has.

    ``first`` says that it is the first image of its cut.
    """

    position: int
    label: str
    first: bool


def sweep(
    events: Sequence[Event],
    disk: Disk,
    rng: random.Random,
    *,
    alone: int,
    subsets: int,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Shown]:
    """Every image, as `lines.choices` has them; whoever asks for the next one finds the disk as the last one was put.

    Args:
        events: the record.
        disk: holds the bytes that the record began with.
        rng: where samples come from.
        alone: as in `lines.choices`.
        subsets: as in `lines.choices`.
        start: cuts before this many events are left out.
        stop: cuts after this many events are left out.
    """
    stored = 0
    for cut in cuts(events, disk.content, start):
        if stop is not None and cut.position > stop:
            return
        stores: set[int] = set()
        for event in events[stored : cut.position]:
            if isinstance(event, Store):
                stores.update(disk.blocks(event.offset, len(event.data)))
        disk.refresh(stores)
        stored = cut.position
        first = True
        for common in choices(cut.lines, rng, alone=alone, subsets=subsets):
            disk.put_all(common.ground)
            ground = disk.mark()
            for label, chosen in common.images:
                disk.put_all(chosen)
                yield Shown(cut.position, label, first)
                disk.rewind(ground)
                first = False
            disk.rewind()
