"""``daxfs top`` of a mount: documents, and what it says of a daemon that is stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from cli_rig import daxfs
from mount_rig import mounted

from daxfs.tools import stats

Pool = Callable[..., Path]


def test_documents_of_a_mount(pool: Pool) -> None:
    with mounted(pool("-b", "4096"), "stats") as mount:
        (mount.place / "file").write_bytes(bytes(20_000))
        documents = daxfs("top", mount.place, "--json", "--count", "2", "--interval", "0.2").splitlines()
        assert len(documents) == 2
        for each in map(json.loads, documents):
            assert each["mountpoint"] == str(mount.place)
            assert 0.2 <= each["seconds"] < 60
            assert each["per_second"] > 0, "the question itself is a request"
            assert 0 < each["busy"] < 1
            assert 0 < each["cpu"] < 2
            assert 0 <= each["spinning"] <= 1
            assert {"log_blocks", "commits"} <= each["journal"].keys()
            assert each["files"]["leases"] == 0
        write = stats.look(str(mount.place)).operations["WRITE"]
        assert (write.longest_by, write.stall) == (os.getpid(), write.longest)
        assert stats.look(str(mount.place)).processes[str(os.getpid())].bytes == 20_000


def test_a_daemon_that_is_stopped(pool: Pool) -> None:
    """One line, within seconds."""
    with mounted(pool("-b", "4096")) as mount:
        mount.daemon.send_signal(signal.SIGSTOP)
        try:
            for command in (("top", mount.place), ("stats", mount.place), ("top", mount.place, "--json")):
                said = daxfs(*command, code=69, limit=30)
                assert said == (
                    f"daxfs: {mount.place}: its daemon does not answer: it is stopped (SIGSTOP), "
                    "or busy with a single long step\n"
                )
        finally:
            mount.daemon.send_signal(signal.SIGCONT)
        assert json.loads(daxfs("top", mount.place, "--json", "--count", "1", "--interval", "0.1"))
