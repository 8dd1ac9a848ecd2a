"""The systems that are held against each other, each on its own pool in the same place.

``daxfs`` is mounted as ``daxfs mount`` does it, ``pyfuse3`` is the same with its second session, ``fuse2fs`` with the
option ``rw``, as its manual page has it: as root it needs no other. ``null`` has no pool (`null_server.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rig


@dataclass(frozen=True)
class System:
    """One of them: where its pool is and where it is mounted."""

    name: str
    pool: Path
    point: Path

    def mounted(self) -> AbstractContextManager[Path]:
        """Mount it for a while."""
        if self.name == "null":
            return rig.null_server(self.point)
        if self.name == "fuse2fs":
            return rig.fuse2fs(self.pool, self.point)
        return rig.daxfs(self.pool, self.point, *(["session=pyfuse3"] if self.name == "pyfuse3" else []))

    def check(self) -> str:
        """e2fsck's closing line; raises unless the pool is clean."""
        return "no pool" if self.name == "null" else f"e2fsck -fn: {rig.check(self.pool)}"


def make(base: Path, name: str, size: str) -> System:
    """A system with a fresh pool, made by its own means, and an empty mountpoint."""
    pool, point = base / f"{name}.pool", base / f"{name}.mnt"
    pool.unlink(missing_ok=True)
    point.mkdir(exist_ok=True)
    if name == "fuse2fs":
        rig.make_peer_pool(pool, size)
    elif name != "null":
        rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", size)
    return System(name, pool, point)


@contextmanager
def together(systems: Iterable[System]) -> Iterator[dict[str, Path]]:
    """All of them mounted at the same time: their mountpoints by name. An idle one sleeps."""
    with ExitStack() as stack:
        yield {system.name: stack.enter_context(system.mounted()) for system in systems}
