"""Start the command line: an interrupt while it is being loaded is one line and exit code 130, as later.

Loading takes a tenth of a second, in which Ctrl-C would print a traceback of imports. So the programs begin here, and
this module imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
from types import ModuleType
from typing import NoReturn

INTERRUPTED = 130


def load() -> ModuleType:
    """Import the command line. An interrupt that the process ignores (in the background of a shell) stays ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from daxfs.tools import cli

    signal.signal(signal.SIGINT, before)
    return cli


def _end(*_: object) -> NoReturn:
    """End the process at once: nothing has begun."""
    os.write(2, b"daxfs: interrupted\n")
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the ``daxfs`` command."""
    load().main()


def mkfs_main() -> None:
    """Run the ``mkfs.daxfs`` command."""
    load().mkfs_main()


def mount_main() -> None:
    """Run the ``mount.fuse.daxfs`` command, which mount(8) calls."""
    load().mount_main()


def fsck_main() -> None:
    """Run the ``fsck.daxfs`` command, which fsck(8) calls."""
    load().fsck_main()
