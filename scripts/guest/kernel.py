"""Debian packages: the tools that the guest needs, and a kernel that is unpacked into the cache, not installed.

The kernel comes from a Debian release of its own, whatever the machine runs: tests/devices depend on it. apt downloads
it with a private configuration of one release, from the archive that the machine's own configuration names, so that
the machine's package lists and installed packages stay as they are.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from guest.failure import CannotRun

RELEASE = "trixie"
PACKAGE = "linux-image-amd64"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "ndctl": "ndctl",
    "mkfs.xfs": "xfsprogs",
    "systemctl": "systemd",
    "udevadm": "udev",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "dmsetup": "dmsetup",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "xz": "xz-utils",
    "strace": "strace",
    "sfdisk": "fdisk",
    "ip": "iproute2",
}
"""Each program that the host or the guest calls, with its Debian package."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its release, its image, and the directory that holds ``lib/modules``."""

    release: str
    image: Path
    base: Path

    @property
    def modules(self) -> Path:
        """The directory ``lib/modules``."""
        return self.base / "lib" / "modules"


def run(*command: str | Path, limit: float = 300, directory: Path | None = None) -> str:
    """Run a command, in a directory and with a time limit in seconds, and return its standard output.

    Raises:
        CannotRun: it fails; the text has the last line of what it printed.
    """
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=directory,
            env={**os.environ, "PATH": PATHS, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{' '.join(map(str, command[:2]))}: no end after {limit:.0f} seconds") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise CannotRun(f"{' '.join(map(str, command[:2]))}: exit {done.returncode}: {said[-1]}")
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a program of `TOOLS` that `install_tools` has found."""
    found = shutil.which(name, path=PATHS)
    if found is None:
        raise CannotRun(f"{name} is missing: apt-get install {TOOLS[name]}")
    return found


def install_tools() -> None:
    """Install the packages of missing tools, as root.

    Raises:
        CannotRun: a package can't be installed, or the user is not root.
    """
    missing = [package for name, package in TOOLS.items() if shutil.which(name, path=PATHS) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotRun(f"missing Debian packages, ask an administrator for: apt-get install {' '.join(missing)}")
    print(f"test-pmem: installing Debian packages: {' '.join(missing)}", flush=True)
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-qy", "--no-install-recommends", *missing, limit=600)


def find(cache: Path) -> Kernel:
    """Return the kernel in the cache; download it if there is none.

    Raises:
        CannotRun: the machine is no x86-64, or no kernel can be had.
    """
    if platform.machine() != "x86_64":
        raise CannotRun(f"the guest needs an x86-64 machine, this one is {platform.machine()}")
    place = cache / "kernel"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="kernel-") as made:
            _download(Path(made))
            (Path(made) / "root").rename(place)
    return unpacked(place)


def unpacked(place: Path) -> Kernel:
    """Return the kernel of a directory that a kernel package was unpacked to."""
    images = sorted((place / "boot").glob("vmlinuz-*"))
    if not images:
        raise CannotRun(f"{place} holds no kernel: remove it, the next run downloads one")
    release = images[-1].name.removeprefix("vmlinuz-")
    base = place / "usr" if (place / "usr" / "lib" / "modules").is_dir() else place
    return Kernel(release, images[-1], base)


def _download(place: Path) -> None:
    """Download and unpack the kernel package of `RELEASE` into ``place``/root, and list its modules' dependencies."""
    print(f"test-pmem: downloading a kernel of Debian {RELEASE}", flush=True)
    (place / "release.sources").write_text(
        f"Types: deb\nURIs: {_archive()}\nSuites: {RELEASE}\nComponents: main\n"
        + (f"Signed-By: {KEYRING}\n" if KEYRING.exists() else "")
    )
    for folder in ("lists/partial", "cache/archives/partial", "root"):
        (place / folder).mkdir(parents=True)
    (place / "status").touch()
    settings = {
        "Dir::Etc::SourceList": place / "release.sources",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": place / "lists",
        "Dir::State::Status": place / "status",
        "Dir::Cache": place / "cache",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", "-q", *options, "update")
    depends = run("apt-cache", *options, "depends", "--important", PACKAGE).split()
    package = next((word for word in depends if word.startswith("linux-image-") and word != PACKAGE), PACKAGE)
    run("apt-get", "-q", *options, "download", package, directory=place)
    for archive in place.glob("*.deb"):
        run("dpkg", "-x", archive, place / "root")
    kernel = unpacked(place / "root")
    run("depmod", "-b", kernel.base, kernel.release)


def _archive() -> str:
    """Return the address of the Debian archive that this machine's apt uses."""
    for attempt in range(2):
        for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)").splitlines():
            address, _, origin = line.partition(" ")
            if origin == "Debian Debian":
                return address
        if attempt == 0 and os.geteuid() == 0:
            run("apt-get", "update", "-q")  # before the first one apt knows addresses without their origin
    raise CannotRun(f"apt knows no Debian archive: unpack a kernel package of {RELEASE} into build/guest/kernel")
