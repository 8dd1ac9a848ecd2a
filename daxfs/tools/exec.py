"""``daxfs exec``: run a program with the preload library, which gives it direct access to files of mounts.

The dynamic linker loads the library. A program without a dynamic linker (statically linked), or with one that ignores
LD_PRELOAD (set-user-ID, file capabilities), runs as usual, through FUSE.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from daxfs.errors import UserError

FAILED = 125  # env(1): the command itself, not the program
NOT_EXECUTABLE = 126
NOT_FOUND = 127

LIBRARY = Path(__file__).resolve().parent.parent / "direct" / "_preload.so"
SEPARATORS = " :"  # ld.so(8), LD_PRELOAD


def library() -> Path:
    """Return the preload library, which is built when daxfs is installed.

    Raises:
        UserError: it was not built, or LD_PRELOAD can't name its path.
    """
    if not LIBRARY.exists():
        raise UserError(
            f"{LIBRARY} was not built, for want of a C compiler: install gcc and libc6-dev, then daxfs again"
            " (make setup); DAXFS_DIRECT=0 runs programs without the library",
            FAILED,
        )
    if any(separator in str(LIBRARY) for separator in SEPARATORS):
        raise UserError(f"{LIBRARY}: LD_PRELOAD can't name a file with a space or colon in its path", FAILED)
    return LIBRARY


def environment(given: Mapping[str, str], *, verbose: bool = False) -> dict[str, str]:
    """Return the program's environment: ``given``, with the library before other libraries in LD_PRELOAD.

    Raises:
        UserError: as `library`.
    """
    changed = dict(given)
    if given.get("DAXFS_DIRECT") == "0":
        return changed
    ours = str(library())
    others = given.get("LD_PRELOAD", "").replace(" ", ":").split(":")
    changed["LD_PRELOAD"] = ":".join([ours, *(other for other in others if other not in ("", ours))])
    if verbose:
        changed["DAXFS_DIRECT_STATS"] = "1"
    return changed


def run(arguments: Sequence[str], *, verbose: bool = False) -> NoReturn:
    """Replace this process by the program ``arguments[0]``, looked up in PATH.

    Raises:
        UserError: the program can't be run; exit codes as env(1) has them.
    """
    program = arguments[0]
    changed = environment(os.environ, verbose=verbose)
    if verbose and "LD_PRELOAD" in changed:
        print(f"daxfs: LD_PRELOAD={changed['LD_PRELOAD']} {shutil.which(program) or program}", file=sys.stderr)
    # Python ignores these signals, and an ignored signal stays ignored after exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(program, list(arguments), changed)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{program}: {error.strerror}", NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"{program}: {error.strerror}", NOT_EXECUTABLE) from None
