"""The command line in a fork of the test process, which has imported it already: a tenth of the time of a new process.

The command has standard streams, arguments and an exit code of its own, as in a new process. Commands that mount or
execute a program are started as users start them: what they leave running must not be a fork of the tests.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

import mount_rig

from daxfs.tools import cli
from support import HANG_SECONDS

STARTED = ("mount", "exec", "snapshot mount")
"""Commands that leave a daemon or become another program; with ``remount`` the daemon is there."""


def daxfs(*arguments: str | Path, code: int = 0, limit: float = HANG_SECONDS) -> str:
    """Run the command line, expect its exit code, return its standard error, or its output if that is empty."""
    words = [*map(str, arguments)]
    if " ".join(words).startswith(STARTED) and not any(word.startswith("remount") for word in words):
        return mount_rig.daxfs(*words, code=code, limit=limit)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            _run(words, output.fileno(), errors.fileno())
        ended = os.pidfd_open(child)
        try:
            if not select.select([ended], [], [], limit)[0]:
                os.kill(child, 9)
        finally:
            os.close(ended)
        found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = [stream.seek(0) or stream.read() for stream in (errors, output)]
    assert found == code, f"daxfs {arguments}: exit {found}\n{written[1]}\n{written[0]}"
    return written[0] or written[1]


def _run(words: list[str], output: int, errors: int) -> NoReturn:
    """Be the command, in the child."""
    code = 70  # EX_SOFTWARE: what a traceback ends in here
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((nothing, 0), (output, 1), (errors, 2)):
            os.dup2(descriptor, number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        logging.root.handlers.clear()  # those of pytest
        sys.argv = ["daxfs", *words]
        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
