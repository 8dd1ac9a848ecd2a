"""The table of all mount options that daxfs knows, one row each: its spellings, its kind, one line of help.

The parser (`options.py`), ``daxfs mount --help``, README.md and the man page daxfs-mount(8) are made from this table.
It holds the options of ext4(5) and fs/ext4/super.c, of mount(8), and daxfs's own. An option is

- served: it does what its manual says;
- always so: every mount behaves as if the option were given;
- without effect: it tunes what daxfs does not have, or allows what daxfs does not do. The mount succeeds, and the log
  has a line about the option;
- refused: the mount would promise what daxfs does not keep;
- of mount(8): it does not concern the file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from daxfs.errors import UserError
from daxfs.fs.types import DEFAULT_TIER_HIGH, DEFAULT_TIER_LOW
from daxfs.fuse import mounts
from daxfs.fuse.mountoptions import DEFAULT_COMMIT_SECONDS, DEFAULT_MAX_OPEN_FILES, MountOptions

Action = Callable[[MountOptions, str], MountOptions]
"""Takes the options parsed so far and the option's value; returns the options with this one applied."""

MAX_POLL_MICROSECONDS = 100_000
MAX_COMMIT_SECONDS = 3600
MAX_WAKE_MICROSECONDS = 10_000
MAX_PERCENT = 100
MAX_NUMBER = (1 << 32) - 1
_USER_MOUNT = mounts.MS_NOSUID | mounts.MS_NODEV


class Kind(Enum):
    """What daxfs does with an option; the value is the heading in lists of options."""

    SERVED = "served"
    ALWAYS = "always so"
    WITHOUT = "without effect"
    REFUSED = "refused"
    OUTSIDE = "of mount(8)"


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table: an option and its synonyms.

    Attributes:
        spellings: as help shows them: ``noatime``, ``dax=always|inode`` (one of these values), ``commit=SECONDS`` (any
            value; ``N`` is a number).
        kind: what daxfs does with the option.
        text: one line for the user; for a refused option the reason.
        action: the effect of a served option.
        live: ``remount`` can change the option.
    """

    spellings: tuple[str, ...]
    kind: Kind
    text: str
    action: Action | None = None
    live: bool = False


def number(name: str, value: str, largest: int) -> int:
    """Parse the value of the option ``name``, a whole number from 0 to ``largest``.

    Raises:
        UserError: the value is not such a number.
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
    return replace(found, commit_seconds=float(seconds or DEFAULT_COMMIT_SECONDS))  # 0 is the default, as in ext4


def _poll(found: MountOptions, value: str) -> MountOptions:
    return replace(found, poll_seconds=number("poll", value, MAX_POLL_MICROSECONDS) / 1e6)


def _max_open_files(found: MountOptions, value: str) -> MountOptions:
    return replace(found, max_open_files=number("max_open_files", value, MAX_NUMBER))


def _wake(found: MountOptions, value: str) -> MountOptions:
    if value == "off":
        return replace(found, wake_microseconds=None)
    return replace(found, wake_microseconds=number("wake", value, MAX_WAKE_MICROSECONDS))


def _number(name: str) -> Action:
    return lambda found, value: _set(**{name: number(name, value, MAX_NUMBER)})(found, value)


def _percent(name: str) -> Action:
    return lambda found, value: _set(**{name: number(name, value, MAX_PERCENT)})(found, value)


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
        "with ro: do not replay the journal; a pool that was not unmounted shows an older state",
        _set(replay=False),
    ),
    _served("sync dirsync", "every operation is durable when it returns", _set(sync=True), live=True),
    _served("async", "operations are durable after fsync, fdatasync or commit= (default)", _set(sync=False), live=True),
    _served(
        "commit=SECONDS", "every operation is durable after this time at the latest (default 5)", _commit, live=True
    ),
    _served(
        "dax dax=always|inode|never",
        "which files bypass the page cache: all (default), those with chattr +x, none (strictatime: all in any case)",
        lambda found, value: replace(found, dax=value or "always"),
    ),
    _served(
        "session=kernel|pyfuse3",
        "use daxfs's own session on /dev/fuse (default), or the session over libfuse, which can do less",
        lambda found, value: replace(found, session=value),
    ),
    _served(
        "wake=USEC|off",
        "while requests come densely, processors use no sleep state with a longer exit latency (needs root)",
        _wake,
    ),
    _served("poll=USEC", "how long the daemon polls for the next request before it sleeps", _poll),
    _served(
        "max_open_files=N",
        f"each user but root may have this many files open (default {DEFAULT_MAX_OPEN_FILES}; 0: no limit)",
        _max_open_files,
        live=True,
    ),
    _served("relatime atime", "reads update an access time that is old (default)", _set(atime="relatime"), live=True),
    _served("strictatime norelatime", "every read updates the access time", _set(atime="strictatime")),
    _served("nostrictatime", "the same as relatime", _set(atime="relatime"), live=True),
    _served("noatime", "reads do not update the access time", _set(atime="noatime"), live=True),
    _served("diratime", "treat directories like files (default)", _set(directory_atime=True), live=True),
    _served("nodiratime", "do not update access times of directories", _set(directory_atime=False), live=True),
    _served("allow_other", "other users may use the mount (default for root)", _set(allow_other=True)),
    _served(
        "grpid bsdgroups",
        "new files take the group of their directory (tune2fs -o bsdgroups)",
        _set(grpid=True),
        live=True,
    ),
    _served(
        "nogrpid sysvgroups",
        "new files take the group of their creator, or of a set-group-ID directory (default)",
        _set(grpid=False),
        live=True,
    ),
    _served(
        "resuid=N", "this user may use the reserved blocks, as root may (tune2fs -u)", _number("resuid"), live=True
    ),
    _served(
        "resgid=N", "this group may use the reserved blocks (tune2fs -g); 0 is no group", _number("resgid"), live=True
    ),
    _served(
        "errors=continue|remount-ro",
        "a change fails on damaged metadata, or on bad memory below it: go on, or become read-only (tune2fs -e)",
        lambda found, value: replace(found, errors=value),
        live=True,
    ),
    _served(
        "tier_high=PERCENT",
        f"while more of the memory of a pool with storage is in use, files go to storage (default {DEFAULT_TIER_HIGH})",
        _percent("tier_high"),
        live=True,
    ),
    _served(
        "tier_low=PERCENT",
        f"they go until less is in use; up to there what is read often comes back (default {DEFAULT_TIER_LOW})",
        _percent("tier_low"),
        live=True,
    ),
    _served("nosuid", "ignore set-id bits and capabilities of files", _raise_flags(mounts.MS_NOSUID), live=True),
    _served("suid", "set-id bits and capabilities work (default for root)", _clear_flags(mounts.MS_NOSUID), live=True),
    _served("nodev", "device files can't be opened", _raise_flags(mounts.MS_NODEV), live=True),
    _served("dev", "device files can be opened (default for root)", _clear_flags(mounts.MS_NODEV), live=True),
    _served("noexec", "programs can't be run", _raise_flags(mounts.MS_NOEXEC), live=True),
    _served("exec", "programs can be run (default)", _clear_flags(mounts.MS_NOEXEC), live=True),
    _served("nosymfollow", "symbolic links are not followed", _raise_flags(mounts.MS_NOSYMFOLLOW), live=True),
    _served("symfollow", "symbolic links are followed (default)", _clear_flags(mounts.MS_NOSYMFOLLOW), live=True),
    _served(
        "trust_owner",
        "accept a pool that users besides root and the mounting user can change; the mount is nosuid and nodev",
        _set(trust_owner=True),
    ),
    _served("stats", "count requests from the mount on, not only while `daxfs stats` asks", _set(stats=True)),
    _served("nostats", "count requests only while `daxfs stats` asks (default)", _set(stats=False)),
    _served("log=FILE", "write messages of the daemon to FILE, not to syslog", _log),
    _served("debug", "write debug messages to the log too", _set(debug=True)),
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
        "as user, for the owner or the group of the pool; programs can be run",
        _raise_flags(_USER_MOUNT),
        live=True,
    ),
    # Options of ext4 that hold on every mount of daxfs.
    _always("default_permissions", "the kernel checks modes and ACLs of files"),
    _always("acl", "the kernel checks the ACLs of files"),
    _always("user_xattr", "extended attributes of users work"),
    _always("data=ordered", "data is durable before the metadata that refers to it"),
    _always("barrier barrier=1", "each commit flushes and fences"),
    _always("nodelalloc", "blocks are allocated when they are written"),
    _always("auto_da_alloc auto_da_alloc=1", "a file that replaces another is durable when its name is"),
    _always("nodiscard", "only fstrim gives free memory back"),
    _always("noquota usrjquota= grpjquota= offusrjquota offgrpjquota offprjquota", "no quota is enforced"),
    _always("bsddf", "df counts the blocks that files can use"),
    _always("sb=1", "the first superblock, in block 0 or 1, is read"),
    _always("block_validity", "each block number is checked before it is used"),
    _always("warn_on_error nowarn_on_error", "damage is logged once"),
    # Options of ext4 that make no difference to daxfs.
    _without("data=writeback", "data is durable before metadata in any case"),
    _without("data_err=abort data_err=ignore", "data is stored in memory; a store does not fail late"),
    _without("discard", "free memory is not given back automatically; run fstrim"),
    _without("barrier=0 nobarrier", "commits flush and fence in any case"),
    _without("noauto_da_alloc auto_da_alloc=0 delalloc", "blocks are allocated when they are written"),
    _without("lazytime nolazytime", "times wait for the next commit in any case"),
    _without("journal_checksum nojournal_checksum", "the features of the journal decide"),
    _without("journal_async_commit", "a commit waits for its blocks"),
    _without("journal_ioprio=N max_batch_time=N min_batch_time=N", "a commit is a copy in memory; nothing is queued"),
    _without("inode_readahead_blks=N stripe=N", "memory has neither read-ahead nor stripes"),
    _without("mb_optimize_scan=N nombcache no_mbcache", "daxfs does not have ext4's allocator and caches"),
    _without("prefetch_block_bitmaps no_prefetch_block_bitmaps", "daxfs does not have ext4's allocator and caches"),
    _without("noblock_validity", "each block number is checked in any case"),
    _without("init_itable init_itable=N noinit_itable", "inodes are initialised when they are used"),
    _without("dioread_lock dioread_nolock nodioread_nolock", "requests are served one after the other"),
    _without("i_version iversion noiversion", "FUSE does not pass the change counter on"),
    _without("bh nobh orlov oldalloc reservation noreservation nomblk_io_submit mblk_io_submit", "ext4 ignores it too"),
    _without("inlinecrypt", "no file is encrypted"),
    _without("nonempty silent loud nomand", "makes no difference to a mount of daxfs"),
    # Options that daxfs would promise and not keep.
    _refused("noacl", "the kernel checks ACLs on every mount; remove them with setfacl -b"),
    _refused("nouser_xattr", "extended attributes of users work on every mount"),
    _refused("errors=panic", "a daemon can't stop the machine; use errors=remount-ro"),
    _refused("data=journal", "chattr +j makes writes atomic, of a file or of all that is made in a directory"),
    _refused(
        "quota usrquota grpquota prjquota jqfmt=FORMAT usrjquota=FILE grpjquota=FILE",
        "no quota is enforced",
    ),
    _refused("minixdf", "df counts the blocks that files can use"),
    _refused("sb=N", "only the first superblock is read; e2fsck -b repairs it from a backup"),
    _refused("journal_dev=DEVICE journal_path=FILE", "the journal must be inside the pool"),
    _refused("abort", "a mount can't begin aborted; use ro"),
    _refused("nouid32", "user and group ids have 32 bits"),
    _refused("max_dir_size_kb=N", "the size of directories is not limited"),
    _refused("test_dummy_encryption test_dummy_encryption=VERSION", "no file is encrypted"),
    _refused("mand", "Linux has no mandatory locks since 5.15"),
    _refused("allow_root", "use allow_other"),
    _refused(
        "auto_unmount",
        "a mount whose daemon ended stays, so that nobody mistakes an empty directory for the files",
    ),
    # Options that concern mount(8) and not the file system.
    _outside("defaults auto noauto nouser nousers noowner nogroup nofail _netdev", "read by mount(8)"),
    _outside("comment=TEXT user=NAME x-TEXT X-TEXT", "for readers of fstab"),
)


def _find() -> tuple[dict[str, Option], dict[str, tuple[Option, str]]]:
    """Return two indexes of the rows: by an option's full text, and by the name of an option that takes any value."""
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
    """Return the row of an option in the user's spelling: ``noatime``, ``commit=30``.

    Raises:
        UserError: the option is unknown, or can't have this value.
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
