"""Mount options: the effect of each option on `MountOptions`, and refusals of unknown ones."""

from __future__ import annotations

import os

import pytest

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.fuse.mountoptions import MountOptions
from daxfs.fuse.options import parse
from daxfs.fuse.serving import tick_seconds


def test_defaults() -> None:
    assert parse([]) == parse(["defaults"]) == MountOptions()
    assert parse([""]).allow_other == (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("sync", "sync", True),
        ("dirsync", "sync", True),
        ("sync,async", "sync", False),
        ("commit=30", "commit_seconds", 30.0),
        ("commit=0", "commit_seconds", 5.0),
        ("poll=0", "poll_seconds", 0.0),
        ("poll=250", "poll_seconds", 250e-6),
        ("max_open_files=7", "max_open_files", 7),
        ("max_open_files=0", "max_open_files", 0),
        ("noatime", "atime", "noatime"),
        ("strictatime", "atime", "strictatime"),
        ("noatime,relatime", "atime", "relatime"),
        ("allow_other", "allow_other", True),
        ("nosuid,nodev", "flags", mounts.MS_NOSUID | mounts.MS_NODEV),
        ("nosuid,nodev,suid", "flags", mounts.MS_NODEV),
        ("user,exec", "flags", mounts.MS_NOSUID | mounts.MS_NODEV),
        ("context=a_u:b_r:c_t", "kernel", ("context=a_u:b_r:c_t",)),
        ('ro,context="a_u:b_r:c_t:s0:c1,c2",sync', "kernel", ('context="a_u:b_r:c_t:s0:c1,c2"',)),
        ("log=/var/log/x", "log", "/var/log/x"),
        ("stats", "stats", True),
        ("tier_high=70,tier_low=0", "tier_low", 0),
        ("tier_low=95,tier_high=100", "tier_high", 100),
        ("stats,nostats", "stats", False),
    ],
)
def test_an_option_says_what_it_asks_for(text: str, field: str, value: object) -> None:
    assert getattr(parse([text]), field) == value


def test_read_only_is_for_the_kernel_too() -> None:
    assert parse(["ro"]).mount_flags & mounts.MS_RDONLY
    assert parse(["ro,rw"]) == MountOptions()


def test_what_fstab_holds_is_accepted() -> None:
    lists = ["rw,relatime,noauto,nofail,_netdev", "x-systemd.automount,X-mount.mkdir=0755,user=joe,comment=hello"]
    assert parse(lists) == MountOptions()


@pytest.mark.parametrize(
    "text",
    [
        "stats,session=pyfuse3",
        "bogus",
        "ro,bogus",
        "commit=x",
        "commit=-1",
        "commit",
        "poll=1000000",
        "commit=99999",
        "remount",
        "tier_high=101",
        "tier_low=-1",
        "tier_low=90",
        "tier_high=80",
        "tier_low=50,tier_high=50",
        "log=",
    ],
)
def test_the_unknown_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="mount option: ") as caught:
        parse([text])
    assert caught.value.code == mounts.USAGE
    assert "\n" not in str(caught.value)


def test_the_tick_keeps_the_commit_interval() -> None:
    assert tick_seconds(5.0) == 1.0
    assert tick_seconds(1.0) == 0.2
    assert tick_seconds(0.01) == 0.1
