"""Parse the options of a mount, as mount(8), fstab(5) and ``daxfs mount -o`` give them, into `MountOptions`.

`optiontable` has the meaning of each option. An unknown option is refused: an option that is silently ignored is worse
than an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from daxfs.errors import UserError
from daxfs.fuse import mounts, optiontable
from daxfs.fuse.mountoptions import MountOptions
from daxfs.fuse.optiontable import Kind, Option

REMOUNT = "remount"
"""The option with which a mount command changes an existing mount."""
_OF_THE_KERNEL = frozenset({REMOUNT, "fd", "rootmode", "user_id", "group_id", "max_read", "blksize", "seclabel"})
"""Options that mount(8) copies from /proc/self/mountinfo into a remount. The kernel shows them; nobody changes them."""

_OPTION = re.compile(r'(?:"[^"]*"?|[^,"])+')


def split(given: Iterable[str]) -> list[str]:
    """Split lists of options at commas. A comma between double quotes belongs to a value (SELinux labels have them)."""
    return [option for text in given for option in _OPTION.findall(text)]


def parse(given: Iterable[str]) -> MountOptions:
    """Parse option lists (``"ro,commit=30"``); a later option overrides an earlier one.

    Raises:
        UserError: an unknown or refused option, or a bad value.
    """
    found = MountOptions()
    for text in split(given):
        found = _apply(found, optiontable.find(text), text)
    _check(found)
    if found.stats and found.session != "kernel":
        raise UserError("bad mount option: stats; only session=kernel counts", mounts.USAGE)
    return found


def remounted(current: MountOptions, given: Iterable[str]) -> MountOptions:
    """Return the options of a mount after ``remount`` with the given lists; options not given keep their values.

    Raises:
        UserError: as `parse`; or an option would change that is fixed for the lifetime of a mount.
    """
    found = replace(current, notes=())
    for text in split(given):
        if text.partition("=")[0] in _OF_THE_KERNEL:
            continue
        option = optiontable.find(text)
        changed = _apply(found, option, text)
        if changed != found and not option.live:
            raise UserError(f"bad mount option: {text}; it can't be changed by remount, unmount first", mounts.USAGE)
        found = changed
    _check(found)
    return found


def _check(found: MountOptions) -> None:
    """Refuse options that contradict each other (UserError)."""
    if found.tier_low >= found.tier_high:
        text = f"tier_low={found.tier_low},tier_high={found.tier_high}; the first must be less than the second"
        raise UserError(f"bad mount option: {text}", mounts.USAGE)


def _apply(found: MountOptions, option: Option, text: str) -> MountOptions:
    if option.kind is Kind.REFUSED:
        raise UserError(f"refused mount option: {text}; {option.text}", mounts.USAGE)
    if option.action is not None:
        return option.action(found, text.partition("=")[2])
    if option.kind in (Kind.ALWAYS, Kind.WITHOUT) and text != "default_permissions":
        return replace(found, notes=(*found.notes, f"mount option {text} is {option.kind.value}: {option.text}"))
    return found
