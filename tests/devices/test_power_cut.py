"""After a power cut: all that was acknowledged before is there. `scripts/guest` cuts the power, then runs this file."""

from __future__ import annotations

from pathlib import Path

import pytest
from device_rig import checked, mounted
from power_cut import FOLDER, KINDS, Acknowledged, check, pool_of

LOGS = Path("/out/acknowledged")


@pytest.mark.parametrize("kind", KINDS)
def test_acknowledged_changes_are_there(devices: dict[str, Path], kind: str) -> None:
    acknowledged = Acknowledged(LOGS / kind)
    assert acknowledged.count
    with pool_of(kind, devices) as pool:
        with mounted(pool) as mount:
            wrong = check(mount.place / FOLDER, acknowledged)
        checked(pool)
    assert not wrong
