"""daxfs: a real ext4 file system in mapped persistent memory, served from user space.

>>> from daxfs import FileSystem
>>> with FileSystem.open("/dev/shm/pool") as fs:
...     fs.tree.write_bytes("/hello", b"persistent")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daxfs.compiled import install

install()

if TYPE_CHECKING:
    from daxfs.fs.filesystem import FileSystem as FileSystem
    from daxfs.fs.types import Options as Options

__all__ = ["FileSystem", "Options"]


def __getattr__(name: str) -> Any:
    """Load the facade when it is first asked for, so that the command line starts at once."""
    if name == "FileSystem":
        from daxfs.fs.filesystem import FileSystem

        return FileSystem
    if name == "Options":
        from daxfs.fs.types import Options

        return Options
    raise AttributeError(f"module 'daxfs' has no attribute {name!r}")
