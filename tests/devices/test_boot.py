"""Mounting at boot: lines of fstab and the helper of mount(8), and systemd with the examples of docs/BOOT.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from device_rig import contents, mkfs
from mount_rig import mountpoint

from support import fsck, run

FSTAB = Path("/etc/fstab")
HELPER = Path("/sbin/mount.fuse.daxfs")
BOOT = (Path(__file__).parents[2] / "docs" / "BOOT.md").read_text()
UNITS = Path("/run/boot-units")
RULE = Path("/etc/udev/rules.d/60-daxfs.rules")
SECONDS = 560
"""How long the boot and the shutdown may take together: three interpreters start at once."""
PATIENT = f"x-systemd.device-timeout={SECONDS},x-systemd.mount-timeout={SECONDS}"

NAMESPACES = ("unshare", "--fork", "--pid", "--kill-child", "--mount", "--cgroup", "--mount-proc")
FIRST = f"""\
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs run /run
mkdir {UNITS}; cp /tmp/boot-units/* {UNITS}
export SYSTEMD_UNIT_PATH={UNITS}:
exec /lib/systemd/systemd --system --unit=boot.target --log-target=console
"""
TARGET = """\
[Unit]
DefaultDependencies=no
Requires=systemd-udevd.service systemd-udev-trigger.service witness.service
"""
WITNESS = """\
[Unit]
DefaultDependencies=no
Requires={units}
After={units}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for place in {places}; do mountpoint -q $place && cp /etc/hostname $place/file; done'
ExecStart=systemctl --no-block halt
"""


@pytest.fixture
def helper() -> Iterator[None]:
    """The helper linked into /sbin, as README.md says."""
    HELPER.unlink(missing_ok=True)
    HELPER.symlink_to(Path(sys.prefix) / "bin" / HELPER.name)
    yield
    HELPER.unlink()


@pytest.fixture
def fstab() -> Iterator[Path]:
    """An fstab of the test's own."""
    before = FSTAB.read_text() if FSTAB.exists() else ""
    yield FSTAB
    FSTAB.write_text(before)


@pytest.mark.usefixtures("helper")
def test_lines_of_fstab(devices: dict[str, Path], fstab: Path) -> None:
    with mountpoint() as first, mountpoint() as second:
        pools = {mkfs(devices["devdax-2M"]): first, mkfs(devices["fsdax"]): second}
        fstab.write_text("".join(f"{pool} {place} fuse.daxfs defaults,commit=5 0 0\n" for pool, place in pools.items()))
        run("mount", "-a", limit=280)
        for place in pools.values():
            (place / "file").write_bytes(b"content")
            run("umount", place)
        run("mount", first, limit=280)
        assert (first / "file").read_bytes() == b"content"
        run("umount", first)


def example(language: str) -> str:
    """The example of docs/BOOT.md in a language."""
    found = re.search(rf"```{language}\n(.*?)```", BOOT, re.DOTALL)
    assert found
    return found[1]


def written(name: str, content: str) -> None:
    folder = Path("/tmp/boot-units")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)


def unit_of(place: Path) -> str:
    return run("systemd-escape", "--path", "--suffix=mount", place).strip()


@pytest.fixture
def owners(devices: dict[str, Path]) -> Iterator[None]:
    """The devices' owners and modes, which udev changes."""
    before = {device: device.stat() for device in devices.values()}
    yield
    for device, status in before.items():
        os.chown(device, status.st_uid, status.st_gid)
        device.chmod(status.st_mode & 0o7777)


@pytest.mark.usefixtures("helper", "owners")
def test_systemd_mounts_at_boot_and_unmounts_at_shutdown(devices: dict[str, Path], fstab: Path) -> None:
    pools = [mkfs(devices[name]) for name in ("fsdax", "devdax-2M", "devdax-4K")]
    with ExitStack() as stack:
        places = [stack.enter_context(mountpoint()) for _ in pools]
        lines = example("fstab").replace("/dev/pmem0", str(pools[0])).replace("/mnt/pool", str(places[0]))
        lines = lines.replace("/dev/dax0.0", str(pools[1])).replace("/mnt/other", str(places[1]))
        fstab.write_text(lines.replace("defaults", f"defaults,{PATIENT}"))
        RULE.write_text(example("udev"))
        unit = example("ini").replace("/usr/local/bin/daxfs", str(Path(sys.prefix) / "bin" / "daxfs"))
        unit = unit.replace("/dev/dax0.0", str(pools[2])).replace("/mnt/pool", str(places[2]))
        written(
            "daxfs-pool.service", unit.replace("[Service]", f"DefaultDependencies=no\n[Service]\nTimeoutSec={SECONDS}")
        )
        written("boot.target", TARGET)
        units = " ".join(["daxfs-pool.service", *map(unit_of, places[:2])])
        written("witness.service", WITNESS.format(units=units, places=" ".join(map(str, places))))
        said = subprocess.run(
            ["timeout", "-s", "KILL", str(SECONDS), *NAMESPACES, "sh", "-c", FIRST],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        for pool in pools:
            with contents(pool) as file:
                content = run("debugfs", "-R", "cat /file", file)  # the version of debugfs follows
                assert content.startswith(Path("/etc/hostname").read_text()), said.stdout + said.stderr
                assert "needs_recovery" not in run("dumpe2fs", "-h", file), "it was not unmounted at shutdown"
                fsck(file)
