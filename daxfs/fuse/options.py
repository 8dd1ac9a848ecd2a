"""The options of a mount, as mount(8), fstab(5) and ``daxfs mount -o`` give them.

Pure parsing: what is asked of the core, of the session and of the kernel. An option that nobody knows is refused,
because an option that is silently ignored is worse than an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from daxfs.errors import UserError
from daxfs.fuse import mounts

DEFAULT_POLL_SECONDS = 200e-6
MAX_POLL_SECONDS = 0.1
MAX_COMMIT_SECONDS = 3600.0
SHALLOW_MICROSECONDS = 2
MAX_WAKE_MICROSECONDS = 10_000
CPUIDLE_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"
_CHOICES = {"session": ("kernel", "pyfuse3"), "dax": ("always", "inode", "never")}

_FLAGS = {"nosuid": mounts.MS_NOSUID, "nodev": mounts.MS_NODEV, "noexec": mounts.MS_NOEXEC}
_ATIME = {
    "relatime": "relatime",
    "atime": "relatime",
    "norelatime": "strictatime",
    "strictatime": "strictatime",
    "noatime": "noatime",
    "nostrictatime": "relatime",
}
_USER_MOUNT = mounts.MS_NOSUID | mounts.MS_NODEV
_IGNORED = frozenset(
    {
        "defaults",
        "auto",
        "noauto",
        "nouser",
        "nofail",
        "_netdev",
        "default_permissions",
        "silent",
        "loud",
        "nodiratime",
        "diratime",
        "lazytime",
        "nolazytime",
        "iversion",
        "noiversion",
        "nomand",
    }
)
"""What mount(8) deals with itself, what is always so, and what makes no difference here."""

_CONTEXTS = ("context=", "fscontext=", "defcontext=", "rootcontext=")


def default_poll_seconds() -> float:
    """Polling needs a processor of its own: off where there is only one."""
    return DEFAULT_POLL_SECONDS if len(os.sched_getaffinity(0)) > 1 else 0.0


def default_wake_microseconds() -> int | None:
    """0 in a guest, where an idle processor is given back to the host; else what the shallowest state takes.

    Off where there is only one processor: then caller and daemon take turns on it, and nobody is woken from sleep.
    """
    if len(os.sched_getaffinity(0)) == 1:
        return None
    try:
        with open(CPUIDLE_DRIVER) as driver:
            guest = driver.read().strip() in ("haltpoll", "none")
    except OSError:
        guest = True
    return 0 if guest else SHALLOW_MICROSECONDS


@dataclass(frozen=True, slots=True)
class MountOptions:
    """One mount's options.

    Attributes:
        flags: MS_* for mount(2).
        kernel: further options for the kernel (SELinux contexts).
        session: ``kernel`` (our own) or ``pyfuse3``.
        dax: which files bypass the page cache: ``always``, ``inode`` (those with the flag), ``never``.
        poll_seconds: how long the session asks again and again after work before it waits; 0 is off.
        wake_microseconds: while requests come, no processor may sleep so deep that waking takes longer; None is off.
        log: a file for messages of the daemon; "" is syslog.
        stats: requests are counted and timed from the mount on.
    """

    read_only: bool = False
    sync: bool = False
    commit_seconds: float = 5.0
    atime: str = "relatime"
    allow_other: bool = field(default_factory=lambda: os.geteuid() == 0)
    flags: int = 0
    kernel: tuple[str, ...] = ()
    session: str = "kernel"
    dax: str = "always"
    poll_seconds: float = field(default_factory=default_poll_seconds)
    wake_microseconds: int | None = field(default_factory=default_wake_microseconds)
    log: str = ""
    stats: bool = False

    def listed(self) -> list[str]:
        """The options that make such a mount, those left to their defaults too."""
        flags = [name for name, flag in _FLAGS.items() if self.flags & flag]
        wake = "off" if self.wake_microseconds is None else self.wake_microseconds
        return [
            "ro" if self.read_only else "rw",
            *flags,
            "sync" if self.sync else "async",
            self.atime,
            f"commit={self.commit_seconds:.0f}",
            f"dax={self.dax}",
            f"session={self.session}",
            f"poll={self.poll_seconds * 1e6:.0f}",
            f"wake={wake}",
            *(["allow_other"] if self.allow_other else []),
            *(["stats"] if self.stats else []),
            *([f"log={self.log}"] if self.log else []),
            *self.kernel,
        ]


def parse(given: Iterable[str]) -> MountOptions:
    """Read option lists (``"ro,commit=30"``); later ones win.

    Raises:
        UserError: an unknown option or a bad value.
    """
    found = MountOptions()
    for text in given:
        for option in text.split(","):
            if option:
                found = _apply(found, option)
    if found.stats and found.session != "kernel":
        raise UserError("bad mount option: stats; only session=kernel counts", mounts.USAGE)
    if found.read_only:
        found = replace(found, flags=found.flags | mounts.MS_RDONLY)
    return found


def _apply(found: MountOptions, option: str) -> MountOptions:
    name, _, value = option.partition("=")
    simple = _SIMPLE.get(option)
    if simple is not None:
        return simple(found)
    if option in _FLAGS:
        return replace(found, flags=found.flags | _FLAGS[option])
    if "no" + option in _FLAGS:
        return replace(found, flags=found.flags & ~_FLAGS["no" + option])
    if option in _ATIME:
        return replace(found, atime=_ATIME[option])
    if name == "commit":
        # As with ext4, 0 means the default.
        return replace(found, commit_seconds=_number(option, value, 1.0, MAX_COMMIT_SECONDS) or 5.0)
    if name == "poll":
        return replace(found, poll_seconds=_number(option, value, 1e-6, MAX_POLL_SECONDS))
    if name == "wake":
        if value == "off":
            return replace(found, wake_microseconds=None)
        return replace(found, wake_microseconds=round(_number(option, value, 1, MAX_WAKE_MICROSECONDS)))
    if name in _CHOICES:
        if value not in _CHOICES[name]:
            raise UserError(f"bad mount option: {option}; one of {', '.join(_CHOICES[name])}", mounts.USAGE)
        return replace(found, session=value) if name == "session" else replace(found, dax=value)
    if name == "log" and value:
        return replace(found, log=os.path.abspath(value))
    if option.startswith(_CONTEXTS):
        return replace(found, kernel=(*found.kernel, option))
    if option in _IGNORED or name.lower().startswith("x-") or name in ("user", "comment"):
        return found
    raise UserError(f"unknown mount option: {option}; see: daxfs mount --help", mounts.USAGE)


_SIMPLE: dict[str, Callable[[MountOptions], MountOptions]] = {
    "ro": lambda found: replace(found, read_only=True),
    "dax": lambda found: replace(found, dax="always"),
    "rw": lambda found: replace(found, read_only=False),
    "sync": lambda found: replace(found, sync=True),
    "dirsync": lambda found: replace(found, sync=True),
    "async": lambda found: replace(found, sync=False),
    "stats": lambda found: replace(found, stats=True),
    "nostats": lambda found: replace(found, stats=False),
    "allow_other": lambda found: replace(found, allow_other=True),
    "user": lambda found: replace(found, flags=found.flags | _USER_MOUNT | mounts.MS_NOEXEC),
    "users": lambda found: replace(found, flags=found.flags | _USER_MOUNT | mounts.MS_NOEXEC),
    "owner": lambda found: replace(found, flags=found.flags | _USER_MOUNT),
    "group": lambda found: replace(found, flags=found.flags | _USER_MOUNT),
}


def _number(option: str, value: str, unit: float, largest: float) -> float:
    """The value of ``option`` in seconds; ``unit`` is what 1 stands for."""
    if not value.isascii() or not value.isdigit() or int(value) * unit > largest:
        raise UserError(f"bad mount option: {option}; a whole number from 0 to {largest / unit:.0f}", mounts.USAGE)
    return int(value) * unit
