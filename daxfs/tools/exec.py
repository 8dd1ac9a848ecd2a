"""``daxfs exec``: run a program with the preload library, so that files on a mount are its own memory.

The library is loaded by the dynamic linker. A program that has none (statically linked) or that the linker protects
from its caller (set-user-ID, file capabilities) runs just the same, through FUSE.
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
    """The preload library, as it was built when daxfs was installed.

    Raises:
        UserError: it was not built, or lies where LD_PRELOAD can't name it.
    """
    if not LIBRARY.exists():
        raise UserError(
            f"{LIBRARY} was not built, which takes a C compiler: install gcc and libc6-dev, then daxfs again"
            " (make setup); DAXFS_DIRECT=0 runs programs without it",
            FAILED,
        )
    if any(separator in str(LIBRARY) for separator in SEPARATORS):
        raise UserError(f"{LIBRARY}: LD_PRELOAD can't name a file with a space or colon in its path", FAILED)
    return LIBRARY


def environment(given: Mapping[str, str], *, verbose: bool = False) -> dict[str, str]:
    """The program's environment: ``given``, with the library ahead of what LD_PRELOAD has already.

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
    """Become the program ``arguments[0]``, looked up in PATH.

    Raises:
        UserError: it can't be run; exit codes as env(1) has them.
    """
    program = arguments[0]
    changed = environment(os.environ, verbose=verbose)
    if verbose and "LD_PRELOAD" in changed:
        print(f"daxfs: LD_PRELOAD={changed['LD_PRELOAD']} {shutil.which(program) or program}", file=sys.stderr)
    # Python ignores these, and what is ignored stays so across exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(program, list(arguments), changed)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{program}: {error.strerror}", NOT_FOUND) from None
    except OSError as error:
        raise UserError(f"{program}: {error.strerror}", NOT_EXECUTABLE) from None
