"""Every mount option that daxfs knows, one row each: how it is written, what becomes of it, one line about it.

The parser (`options.py`), ``daxfs mount --help``, README.md and the man page daxfs-mount(8) are made of this table. It
holds the options of ext4(5) and fs/ext4/super.c, of mount(8), and daxfs's own. An option is

- served: it does here what it does there;
- always so: what it asks for holds on every mount, asked for or not;
- without effect: it tunes what daxfs does not have, or allows what daxfs does not do. The mount goes on, and the log
  says so;
- refused: the mount would promise what daxfs does not keep;
- mount(8)'s: of no concern to a file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.fuse.mountoptions import DEFAULT_COMMIT_SECONDS, MountOptions

Action = Callable[[MountOptions, str], MountOptions]
"""Takes what is asked for so far and the option's value; returns what is asked for with it."""

MAX_POLL_MICROSECONDS = 100_000
MAX_COMMIT_SECONDS = 3600
MAX_WAKE_MICROSECONDS = 10_000
MAX_NUMBER = (1 << 32) - 1
_USER_MOUNT = mounts.MS_NOSUID | mounts.MS_NODEV


class Kind(Enum):
    """What becomes of an option; the value is the heading in lists of options."""

    SERVED = "served"
    ALWAYS = "always so"
    WITHOUT = "without effect"
    REFUSED = "refused"
    OUTSIDE = "of mount(8)"


@dataclass(frozen=True, slots=True)
class Option:
    """One row.

    Attributes:
        spellings: as help shows them: ``noatime``, ``dax=always|inode`` (one of these values), ``commit=SECONDS`` (any
            value; ``N`` is a number).
        kind: what becomes of it.
        text: one line for the user; of a refused option the reason.
        action: what a served option does.
        live: it can be changed by ``remount``.
    """

    spellings: tuple[str, ...]
    kind: Kind
    text: str
    action: Action | None = None
    live: bool = False


def number(name: str, value: str, largest: int) -> int:
    """The value of the option ``name``, from 0 to ``largest``.

    Raises:
        UserError: it is no such number.
    """
    if not value.isascii() or not value.isdigit() or int(value) > largest:
        raise UserError(f"bad mount option: {name}={value}; a whole number from 0 to {largest}", mounts.USAGE)
    return int(value)


def _set(**changes: Any) -> Action:
    return lambda found, _: replace(found, **changes)


def _raise_flags(flags: int) -> Action:
    return lambda found, _: replace(found, flags=found.flags | flags)


def _clear_flags(flags: int) -> Action:
    return lambda found, _: replace(found, flags=found.flags & ~flags)


def _commit(found: MountOptions, value: str) -> MountOptions:
    seconds = number("commit", value, MAX_COMMIT_SECONDS)
    return replace(found, commit_seconds=float(seconds or DEFAULT_COMMIT_SECONDS))  # as with ext4, 0 means the default


def _poll(found: MountOptions, value: str) -> MountOptions:
    return replace(found, poll_seconds=number("poll", value, MAX_POLL_MICROSECONDS) / 1e6)


def _wake(found: MountOptions, value: str) -> MountOptions:
    if value == "off":
        return replace(found, wake_microseconds=None)
    return replace(found, wake_microseconds=number("wake", value, MAX_WAKE_MICROSECONDS))


def _number(name: str) -> Action:
    return lambda found, value: _set(**{name: number(name, value, MAX_NUMBER)})(found, value)


def _log(found: MountOptions, value: str) -> MountOptions:
    return replace(found, log=os.path.abspath(value))


def _context(name: str) -> Action:
    def add(found: MountOptions, value: str) -> MountOptions:
        option = f"{name}={value}"
        return found if option in found.kernel else replace(found, kernel=(*found.kernel, option))

    return add


def _served(spellings: str, text: str, action: Action, *, live: bool = False) -> Option:
    return Option(tuple(spellings.split()), Kind.SERVED, text, action, live)


def _always(spellings: str, text: str) -> Option:
    return Option(tuple(spellings.split()), Kind.ALWAYS, text)


def _without(spellings: str, text: str) -> Option:
    return Option(tuple(spellings.split()), Kind.WITHOUT, text)


def _refused(spellings: str, text: str) -> Option:
    return Option(tuple(spellings.split()), Kind.REFUSED, text)


def _outside(spellings: str, text: str) -> Option:
    return Option(tuple(spellings.split()), Kind.OUTSIDE, text)


OPTIONS: tuple[Option, ...] = (
    _served("ro", "read-only", _set(read_only=True), live=True),
    _served("rw", "read-write (default)", _set(read_only=False), live=True),
    _served(
        "noload norecovery",
        "with ro: the journal is not replayed; a pool that was not unmounted shows an older state",
        _set(replay=False),
    ),
    _served("sync dirsync", "an operation that returned is durable", _set(sync=True), live=True),
    _served("async", "durable at fsync, fdatasync, or after commit= (default)", _set(sync=False), live=True),
    _served("commit=SECONDS", "finished operations are durable after so long anyway (default 5)", _commit, live=True),
    _served(
        "dax dax=always|inode|never",
        "files that bypass the page cache: all (default), those with chattr +x, none (with strictatime all do)",
        lambda found, value: replace(found, dax=value or "always"),
    ),
    _served(
        "session=kernel|pyfuse3",
        "daxfs's own session on /dev/fuse (default), or the one over libfuse, which can do less",
        lambda found, value: replace(found, session=value),
    ),
    _served(
        "wake=USEC|off",
        "while requests come densely, no processor sleeps so deep that waking it takes longer (needs root)",
        _wake,
    ),
    _served("poll=USEC", "how long the daemon asks again and again for the next request before it waits", _poll),
    _served(
        "relatime atime", "reads move the time of access where it is old (default)", _set(atime="relatime"), live=True
    ),
    _served("strictatime norelatime", "each read moves the time of access", _set(atime="strictatime")),
    _served("nostrictatime", "relatime again", _set(atime="relatime"), live=True),
    _served("noatime", "no read moves the time of access", _set(atime="noatime"), live=True),
    _served("diratime", "directories as files (default)", _set(directory_atime=True), live=True),
    _served(
        "nodiratime", "reading a directory does not move its time of access", _set(directory_atime=False), live=True
    ),
    _served("allow_other", "other users may use the mount (default for root)", _set(allow_other=True)),
    _served(
        "grpid bsdgroups",
        "new files take the group of their directory (tune2fs -o bsdgroups)",
        _set(grpid=True),
        live=True,
    ),
    _served(
        "nogrpid sysvgroups",
        "new files take the group of their maker, or of a set-group-ID directory (default)",
        _set(grpid=False),
        live=True,
    ),
    _served(
        "resuid=N", "this user may take the reserved blocks, as root may (tune2fs -u)", _number("resuid"), live=True
    ),
    _served(
        "resgid=N", "this group may take the reserved blocks (tune2fs -g); 0 is none", _number("resgid"), live=True
    ),
    _served("nosuid", "set-id bits and capabilities of files do nothing", _raise_flags(mounts.MS_NOSUID), live=True),
    _served("suid", "they do (default for root)", _clear_flags(mounts.MS_NOSUID), live=True),
    _served("nodev", "device files do not work", _raise_flags(mounts.MS_NODEV), live=True),
    _served("dev", "they do (default for root)", _clear_flags(mounts.MS_NODEV), live=True),
    _served("noexec", "programs do not run", _raise_flags(mounts.MS_NOEXEC), live=True),
    _served("exec", "they do (default)", _clear_flags(mounts.MS_NOEXEC), live=True),
    _served("nosymfollow", "symbolic links are not followed", _raise_flags(mounts.MS_NOSYMFOLLOW), live=True),
    _served("symfollow", "they are (default)", _clear_flags(mounts.MS_NOSYMFOLLOW), live=True),
    _served(
        "trust_owner",
        "accept a pool that others than root and its mounter can change; the mount is nosuid and nodev",
        _set(trust_owner=True),
    ),
    _served("stats", "requests are counted from the mount on, not only while `daxfs stats` asks", _set(stats=True)),
    _served("nostats", "they are not (default)", _set(stats=False)),
    _served("log=FILE", "messages of the daemon go to FILE, not to syslog", _log),
    _served("debug", "the log tells more", _set(debug=True)),
    *(
        _served(f"{name}=LABEL", "SELinux labels, as in mount(8)", _context(name))
        for name in ("context", "fscontext", "defcontext", "rootcontext")
    ),
    _served(
        "user users",
        "an ordinary user may mount (mount(8)); set-id bits, devices and programs are off",
        _raise_flags(_USER_MOUNT | mounts.MS_NOEXEC),
        live=True,
    ),
    _served(
        "owner group",
        "as user, for the owner or the group of the pool; programs may run",
        _raise_flags(_USER_MOUNT),
        live=True,
    ),
    # What ext4 can be asked for and daxfs always does.
    _always("default_permissions", "the kernel checks modes and ACLs of files"),
    _always("acl", "the kernel checks the ACLs of files"),
    _always("user_xattr", "attributes of users are served"),
    _always("errors=remount-ro", "damage is recorded, and makes the volume read-only"),
    _always("data=ordered", "data is durable before the metadata that shows it"),
    _always("barrier barrier=1", "each commit flushes and fences"),
    _always("nodelalloc", "blocks are allocated when they are written"),
    _always("auto_da_alloc auto_da_alloc=1", "a file that replaces another is on the pool when its name is"),
    _always("nodiscard", "freed memory is given back by fstrim only"),
    _always("noquota usrjquota= grpjquota= offusrjquota offgrpjquota offprjquota", "no quota is enforced"),
    _always("bsddf", "df counts what files can use"),
    _always("sb=1", "the superblock of block 0 or 1 is the one that is read"),
    _always("block_validity", "each block number is checked before it is used"),
    _always("warn_on_error nowarn_on_error", "damage is logged once"),
    # What ext4 can be asked for and that makes no difference here.
    _without("errors=continue", "damage makes the volume read-only all the same: going on would spread it"),
    _without("data=writeback", "data is ordered before metadata all the same"),
    _without("data_err=abort data_err=ignore", "data is stored in memory; a store does not fail late"),
    _without("discard", "nothing is given back by itself; run fstrim"),
    _without("barrier=0 nobarrier", "commits flush and fence all the same"),
    _without("noauto_da_alloc auto_da_alloc=0 delalloc", "blocks are allocated when they are written"),
    _without("lazytime nolazytime", "times wait for the next commit in any case"),
    _without("journal_checksum nojournal_checksum", "the features of the journal decide"),
    _without("journal_async_commit", "a commit waits for its blocks"),
    _without("journal_ioprio=N max_batch_time=N min_batch_time=N", "a commit is a copy in memory; nothing is queued"),
    _without("inode_readahead_blks=N stripe=N", "memory has neither read-ahead nor stripes"),
    _without("mb_optimize_scan=N nombcache no_mbcache", "of ext4's allocator and caches"),
    _without("prefetch_block_bitmaps no_prefetch_block_bitmaps noblock_validity", "of ext4's allocator and caches"),
    _without("init_itable init_itable=N noinit_itable", "inodes are initialised when they are used"),
    _without("dioread_lock dioread_nolock nodioread_nolock", "requests are served one after the other"),
    _without("i_version iversion noiversion", "FUSE does not pass the change counter on"),
    _without("bh nobh orlov oldalloc reservation noreservation nomblk_io_submit mblk_io_submit", "ext4 ignores it too"),
    _without("inlinecrypt", "no file is encrypted"),
    _without("nonempty silent loud nomand", "makes no difference to a mount of daxfs"),
    # What would be a lie.
    _refused("noacl", "the kernel checks ACLs on every mount; take them off with setfacl -b"),
    _refused("nouser_xattr", "attributes of users are served on every mount"),
    _refused("errors=panic", "a daemon can't stop the machine; use errors=remount-ro"),
    _refused("data=journal", "data is written in place, not through the journal"),
    _refused(
        "quota usrquota grpquota prjquota jqfmt=FORMAT usrjquota=FILE grpjquota=FILE",
        "no quota is enforced",
    ),
    _refused("minixdf", "df counts what files can use"),
    _refused("sb=N", "only the first superblock is read; e2fsck -b repairs it from a backup"),
    _refused("journal_dev=DEVICE journal_path=FILE", "the journal must be inside the pool"),
    _refused("abort", "a mount can't begin aborted; use ro"),
    _refused("nouid32", "user and group ids have 32 bits"),
    _refused("max_dir_size_kb=N", "the size of directories is not limited"),
    _refused("test_dummy_encryption test_dummy_encryption=VERSION", "no file is encrypted"),
    _refused("mand", "Linux has no mandatory locks since 5.15"),
    _refused("allow_root", "use allow_other"),
    _refused("auto_unmount", "a mount whose daemon ended stays, so that nobody takes an empty directory for the files"),
    # What the file system never needs to see.
    _outside("defaults auto noauto nouser nousers noowner nogroup nofail _netdev", "read by mount(8)"),
    _outside("comment=TEXT user=NAME x-TEXT X-TEXT", "for whoever reads fstab"),
)


def _find() -> tuple[dict[str, Option], dict[str, tuple[Option, str]]]:
    """Rows by how their options are written in full, and by the name of those that take any value."""
    whole: dict[str, Option] = {}
    by_name: dict[str, tuple[Option, str]] = {}
    for option in OPTIONS:
        for spelling in option.spellings:
            name, equals, values = spelling.partition("=")
            for value in values.split("|"):
                if value.isupper():
                    by_name[name] = option, value
                else:
                    whole[name + equals + value] = option
    return whole, by_name


_WHOLE, _BY_NAME = _find()


def find(text: str) -> Option:
    """The row of an option as the user has written it: ``noatime``, ``commit=30``.

    Raises:
        UserError: unknown, or its value is not one that it can have.
    """
    name, _, value = text.partition("=")
    option = _WHOLE.get(text)
    if option is not None:
        return option
    if name.lower().startswith("x-"):
        return _WHOLE["defaults"]
    option, placeholder = _BY_NAME.get(name, (None, ""))
    if option is not None and value:
        if placeholder == "N":
            number(name, value, MAX_NUMBER)
        return option
    spellings = [word for row in OPTIONS for word in row.spellings if word.partition("=")[0] == name]
    if spellings:
        raise UserError(f"bad mount option: {text}; write {' or '.join(spellings)}", mounts.USAGE)
    raise UserError(f"unknown mount option: {text}; see: daxfs mount --help", mounts.USAGE)
