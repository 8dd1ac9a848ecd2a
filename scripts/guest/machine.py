"""The guest: one QEMU process with an emulated NVDIMM, and the folder that it shares with this process.

Software emulation (TCG), since the guest boots where KVM is missing. The process ends with this one, whatever happens:
by `Machine.kill`, or by the kernel when this process is killed (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guest.image import CHECKOUT
from guest.kernel import PATHS, Kernel, tool

PR_SET_PDEATHSIG = 1
MEMORY_MIB = 3072

SECOND = """\
export PATH={path} HOME=/root TERM=dumb LANG=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
mkdir -p {checkout}
mount --bind /images/checkout {checkout}
{binds}
cd {checkout}
{python} scripts/guest/inside.py >/out/console 2>&1 </dev/null
echo $? >/out/status.new; mv /out/status.new /out/status
sync; echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger; sleep 60
"""


@dataclass(frozen=True)
class Parts:
    """What a guest is made of. ``places``: where the directories 0, 1, ... of the image ``python`` are mounted."""

    kernel: Kernel
    initramfs: Path
    python: Path
    places: list[Path]
    checkout: Path
    nvdimm: Path
    processors: int


class Machine:
    """A running guest. ``out`` is the shared folder, /out in the guest; what it says at boot is in ``console``."""

    def __init__(self, parts: Parts, out: Path, interpreter: Path) -> None:
        self.out = out
        self.started = time.monotonic()
        binds = "\n".join(
            f"[ -e {shlex.quote(str(place))} ] || mkdir -p {shlex.quote(str(place))}\n"
            f"mount --bind /images/python/{number} {shlex.quote(str(place))}"
            for number, place in enumerate(parts.places)
        )
        quoted = {"checkout": shlex.quote(str(CHECKOUT)), "python": shlex.quote(str(interpreter))}
        (out / "second").write_text(SECOND.format(path=PATHS, binds=binds, **quoted))
        self.serial = out / "serial"
        with self.serial.open("wb") as serial:
            self._process = subprocess.Popen(
                _command(parts, out),
                stdin=subprocess.DEVNULL,
                stdout=serial,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),  # noqa: PLW1509 (this process has one thread)
            )

    def running(self) -> bool:
        """Whether the guest still runs."""
        return self._process.poll() is None

    def status(self) -> int | None:
        """Return the exit code of what ran in the guest; None if it has not ended there."""
        try:
            return int((self.out / "status").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def kill(self) -> None:
        """Cut the guest's power."""
        if self.running():
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """Return the end of what the guest's kernel and its first processes said."""
        said = self.serial.read_text(errors="replace")
        console = self.out / "console"
        if console.exists():
            said += console.read_text(errors="replace")
        return "\n".join(said.splitlines()[-25:])


def _end_with(parent: int) -> Callable[[], None]:
    """Return what makes a new process end with this one."""
    prctl = ctypes.CDLL(None).prctl

    def act() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return act


def _command(parts: Parts, out: Path) -> list[str]:
    """Return the command line of QEMU."""
    size = parts.nvdimm.stat().st_size
    shared = {"host": ("/", True), "modules": (parts.kernel.modules, True), "out": (out, False)}
    command = [
        *(tool("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "Nehalem", "-smp", str(parts.processors)),
        *("-machine", "q35,nvdimm=on", "-m", f"{MEMORY_MIB}M,slots=4,maxmem=64G", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-no-reboot", "-serial", "stdio", "-nic", "none", "-device", "virtio-rng-pci"),
        *("-object", f"memory-backend-file,id=nv,share=on,mem-path={parts.nvdimm},size={size},align=2M"),
        *("-device", "nvdimm,id=nvdimm,memdev=nv,label-size=2M,unarmed=off"),
        *("-kernel", str(parts.kernel.image), "-initrd", str(parts.initramfs)),
        *("-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr no_timer_check"),
    ]
    for image in (parts.python, parts.checkout):
        command += ["-drive", f"file={image},if=virtio,format=raw,readonly=on"]
    for name, (path, readonly) in shared.items():
        command += ["-fsdev", f"local,id={name},path={path},security_model=none,multidevs=remap"]
        command[-1] += ",readonly=on" if readonly else ""
        command += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    return command
