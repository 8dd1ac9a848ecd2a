"""The options in force on one mount, and their translation for the kernel and for the core.

`options` parses them from the lists of mount(8), fstab(5) and ``daxfs mount -o``, by the table in `optiontable`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from daxfs.fs.types import DEFAULT_TIER_HIGH, DEFAULT_TIER_LOW, Options
from daxfs.fuse import mounts

DEFAULT_COMMIT_SECONDS = 5
DEFAULT_POLL_SECONDS = 200e-6
DEFAULT_MAX_OPEN_FILES = 1 << 16
SHALLOW_MICROSECONDS = 2
CPUIDLE_DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"

_FLAGS = {
    "nosuid": mounts.MS_NOSUID,
    "nodev": mounts.MS_NODEV,
    "noexec": mounts.MS_NOEXEC,
    "nosymfollow": mounts.MS_NOSYMFOLLOW,
}
_ATIME_FLAGS = {
    "relatime": mounts.MS_RELATIME,
    "strictatime": mounts.MS_STRICTATIME,
    "noatime": mounts.MS_NOATIME,
}


def default_poll_seconds() -> float:
    """Return the default of ``poll=`` in seconds; 0 (off) on one processor, since polling needs one of its own."""
    return DEFAULT_POLL_SECONDS if len(os.sched_getaffinity(0)) > 1 else 0.0


def default_wake_microseconds() -> int | None:
    """Return the default of ``wake=`` in microseconds; None is off.

    In a guest it is 0, because an idle virtual processor goes back to the host; elsewhere it is the exit latency of the
    shallowest state. It is off on one processor: caller and daemon take turns there, and no processor sleeps.
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
    """The options of one mount.

    Attributes:
        replay: False (``noload``): a read-only mount does not replay the journal.
        atime: ``relatime``, ``strictatime`` or ``noatime``.
        directory_atime: reading a directory updates its access time by the rule of ``atime``.
        grpid: new files take the group of their directory; None: as the superblock says.
        resuid: the user that may take reserved blocks; None: as the superblock says.
        resgid: the group that may take reserved blocks; None: as the superblock says.
        errors: what an error of metadata does to the volume, ``continue`` or ``remount-ro``; None: as the superblock
            says.
        tier_high: percent of the memory of a pool with storage; while more is in use, files go to storage.
        tier_low: until less than so many percent are in use.
        flags: MS_* of mount(2) that the kernel alone acts on.
        kernel: further options for the kernel (SELinux contexts).
        session: ``kernel`` (our own) or ``pyfuse3``.
        dax: which files bypass the page cache: ``always``, ``inode`` (files with the flag), ``never``.
        poll_seconds: how long the session polls for the next request before it sleeps; 0 is off.
        wake_microseconds: the longest exit latency of a processor while requests come densely; None: no limit.
        max_open_files: the most open files of each user but root; 0: no limit.
        log: a file for messages of the daemon; "" is syslog.
        debug: the log has debug messages too.
        stats: requests are counted and timed from the mount on.
        trust_owner: accept a pool that others can change; the mount is then nosuid and nodev in any case.
        notes: lines for the log about options that change nothing.
    """

    read_only: bool = False
    replay: bool = True
    sync: bool = False
    commit_seconds: float = float(DEFAULT_COMMIT_SECONDS)
    atime: str = "relatime"
    directory_atime: bool = True
    grpid: bool | None = None
    resuid: int | None = None
    resgid: int | None = None
    errors: str | None = None
    tier_high: int = DEFAULT_TIER_HIGH
    tier_low: int = DEFAULT_TIER_LOW
    allow_other: bool = field(default_factory=lambda: os.geteuid() == 0)
    flags: int = 0
    kernel: tuple[str, ...] = ()
    session: str = "kernel"
    dax: str = "always"
    poll_seconds: float = field(default_factory=default_poll_seconds)
    wake_microseconds: int | None = field(default_factory=default_wake_microseconds)
    max_open_files: int = DEFAULT_MAX_OPEN_FILES
    log: str = ""
    debug: bool = False
    stats: bool = False
    trust_owner: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def mount_flags(self) -> int:
        """The flags MS_* for mount(2).

        The kernel acts on MS_RDONLY and on `flags`. It leaves times and durability of a FUSE mount to the daemon, and
        only shows their flags in /proc/mounts.
        """
        flags = self.flags | _ATIME_FLAGS[self.atime]
        flags |= mounts.MS_RDONLY if self.read_only else 0
        flags |= mounts.MS_SYNCHRONOUS if self.sync else 0
        flags |= mounts.MS_NOSUID | mounts.MS_NODEV if self.trust_owner else 0
        return flags if self.directory_atime else flags | mounts.MS_NODIRATIME

    def of_volume(self, mountpoint: str) -> Options:
        """Return the options that the core acts on."""
        return Options(
            read_only=self.read_only,
            replay=self.replay,
            sync=self.sync,
            commit_interval=self.commit_seconds,
            atime=self.atime,
            directory_atime=self.directory_atime,
            grpid=self.grpid,
            resuid=self.resuid,
            resgid=self.resgid,
            mountpoint=mountpoint,
            dax=self.dax,
            errors=self.errors,
            tier_high=self.tier_high,
            tier_low=self.tier_low,
        )

    def listed(self) -> list[str]:
        """List the options that would make the same mount, including those that have their defaults."""
        flags = self.mount_flags
        wake = "off" if self.wake_microseconds is None else self.wake_microseconds
        return [
            "ro" if self.read_only else "rw",
            *([] if self.replay else ["noload"]),
            *(name for name, flag in _FLAGS.items() if flags & flag),
            "sync" if self.sync else "async",
            self.atime,
            *([] if self.directory_atime else ["nodiratime"]),
            *([] if self.errors is None else [f"errors={self.errors}"]),
            f"tier_high={self.tier_high}",
            f"tier_low={self.tier_low}",
            *([] if self.grpid is None else ["grpid" if self.grpid else "nogrpid"]),
            *([] if self.resuid is None else [f"resuid={self.resuid}"]),
            *([] if self.resgid is None else [f"resgid={self.resgid}"]),
            f"commit={self.commit_seconds:.0f}",
            f"dax={self.dax}",
            f"session={self.session}",
            f"poll={self.poll_seconds * 1e6:.0f}",
            f"wake={wake}",
            f"max_open_files={self.max_open_files}",
            *(["allow_other"] if self.allow_other else []),
            *(["stats"] if self.stats else []),
            *(["trust_owner"] if self.trust_owner else []),
            *(["debug"] if self.debug else []),
            *([f"log={self.log}"] if self.log else []),
            *self.kernel,
        ]
