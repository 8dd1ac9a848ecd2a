"""Find and run the tools of e2fsprogs: mke2fs, e2fsck, dumpe2fs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from daxfs.errors import UserError


def find_tool(name: str) -> str:
    """Return the path of a tool, searching PATH and the directories of administrators' tools.

    Raises:
        UserError: the tool is not installed.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin", "/usr/local/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        raise UserError(f"{name} is not installed; apt install e2fsprogs", os.EX_UNAVAILABLE)
    return found


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end without a terminal, with untranslated messages. The caller checks the exit code."""
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
