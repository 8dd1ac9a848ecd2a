"""The systems that are compared, each on its own pool in the same directory.

``daxfs`` is mounted by ``daxfs mount``; ``pyfuse3`` is daxfs with its second session; ``fuse2fs`` has the option
``rw``, as in its manual page, and needs no other as root. ``ext4`` is the kernel's, on a loop device over the pool.
``null`` has no pool (`null_server.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import rig


@dataclass(frozen=True)
class System:
    """A system with its pool and its mountpoint."""

    name: str
    pool: Path
    point: Path

    def mounted(self) -> AbstractContextManager[Path]:
        """Mount the system for the body."""
        if self.name == "null":
            return rig.null_server(self.point)
        if self.name == "fuse2fs":
            return rig.fuse2fs(self.pool, self.point)
        if self.name == "ext4":
            return rig.kernel_ext4(self.pool, self.point)
        return rig.daxfs(self.pool, self.point, *(["session=pyfuse3"] if self.name == "pyfuse3" else []))

    def check(self) -> str:
        """Check the pool and return e2fsck's last line; raise CalledProcessError if the pool is not clean."""
        return "no pool" if self.name == "null" else f"e2fsck -fn: {rig.check(self.pool)}"


def make(base: Path, name: str, size: str) -> System:
    """Make a system with a new pool, by its own mkfs, and an empty mountpoint."""
    pool, point = base / f"{name}.pool", base / f"{name}.mnt"
    pool.unlink(missing_ok=True)
    point.mkdir(exist_ok=True)
    if name in ("fuse2fs", "ext4"):
        rig.make_peer_pool(pool, size)
    elif name != "null":
        rig.run(rig.tool("daxfs"), "mkfs", pool, "--size", size)
    return System(name, pool, point)


@contextmanager
def together(systems: Iterable[System]) -> Iterator[dict[str, Path]]:
    """Mount all systems at the same time; yield their mountpoints by name. An idle system sleeps."""
    with ExitStack() as stack:
        yield {system.name: stack.enter_context(system.mounted()) for system in systems}
