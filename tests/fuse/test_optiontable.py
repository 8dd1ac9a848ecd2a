"""The table of mount options: every option of ext4(5) and mount(8) has a row, and the parser agrees with the rows."""

from __future__ import annotations

import pytest

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.fuse.mountoptions import MountOptions
from daxfs.fuse.options import parse, remounted
from daxfs.fuse.optiontable import OPTIONS, Kind, find

SERVED = "sync dirsync async commit=9 dax dax=always dax=inode relatime atime noatime diratime nodiratime ro rw suid"
SERVED += " errors=continue errors=remount-ro grpid bsdgroups nogrpid sysvgroups resuid=5 resgid=70000"
SERVED += " nosuid dev nodev exec noexec nosymfollow symfollow strictatime norelatime debug user users owner group"
ALWAYS = "acl user_xattr data=ordered barrier barrier=1 nodelalloc auto_da_alloc nodiscard noquota"
ALWAYS += " usrjquota= grpjquota= bsddf sb=1 block_validity nowarn_on_error"
WITHOUT = "data=writeback data_err=abort discard nobarrier barrier=0 delalloc noauto_da_alloc lazytime"
WITHOUT += " nolazytime journal_checksum nojournal_checksum journal_async_commit journal_ioprio=3 max_batch_time=15000"
WITHOUT += " min_batch_time=0 inode_readahead_blks=32 stripe=16 mb_optimize_scan=1 nombcache no_mbcache init_itable"
WITHOUT += " init_itable=10 noinit_itable dioread_lock dioread_nolock nodioread_nolock i_version iversion inlinecrypt"
WITHOUT += " prefetch_block_bitmaps noblock_validity nobh orlov nomblk_io_submit nonempty silent nomand"
REFUSED = (
    "noacl nouser_xattr errors=panic data=journal quota usrquota grpquota prjquota jqfmt=vfsv1 usrjquota=aquota.user"
)
REFUSED += " minixdf sb=32768 journal_dev=0x801 journal_path=/dev/x abort nouid32 mand allow_root"
REFUSED += " auto_unmount max_dir_size_kb=8 test_dummy_encryption"
OUTSIDE = "defaults auto noauto nofail _netdev nouser user=joe comment=x x-systemd.automount X-mount.mkdir=0755"
BAD = (
    "errors errors= errors=die data=none barrier=2 stripe=x stripe= stripe=-1 journal_ioprio max_batch_time=99999999999"
)
BAD += " dax= dax=sometimes session= commit= commit=1.5 noatime=1 acl=1 wake= log"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (text, kind)
        for kind, listed in (
            (Kind.SERVED, SERVED),
            (Kind.ALWAYS, ALWAYS),
            (Kind.WITHOUT, WITHOUT),
            (Kind.REFUSED, REFUSED),
            (Kind.OUTSIDE, OUTSIDE),
        )
        for text in listed.split()
    ],
)
def test_an_option_is_treated_as_its_row_says(text: str, kind: Kind) -> None:
    assert find(text).kind is kind
    if kind is Kind.REFUSED:
        with pytest.raises(UserError, match="refused mount option: ") as caught:
            parse([text])
        assert caught.value.code == mounts.USAGE
        assert str(caught.value).endswith(find(text).text)
        return
    found = parse([text])
    if kind is not Kind.SERVED:
        assert found == MountOptions()
    noted = kind in (Kind.ALWAYS, Kind.WITHOUT)
    assert found.notes == ((f"mount option {text} is {kind.value}: {find(text).text}",) if noted else ())


@pytest.mark.parametrize("text", BAD.split())
def test_a_bad_value_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="bad mount option: ") as caught:
        parse([text])
    assert caught.value.code == mounts.USAGE
    assert "\n" not in str(caught.value)


def test_each_spelling_has_one_row() -> None:
    words = [word for option in OPTIONS for word in option.spellings]
    assert len(words) == len(set(words))
    for option in OPTIONS:
        assert (option.action is not None) == (option.kind is Kind.SERVED)
        assert option.text
        assert "\n" not in option.text


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("", mounts.MS_RELATIME),
        ("noatime,sync", mounts.MS_NOATIME | mounts.MS_SYNCHRONOUS),
        ("strictatime,ro", mounts.MS_STRICTATIME | mounts.MS_RDONLY),
        ("nosymfollow,nodiratime", mounts.MS_NOSYMFOLLOW | mounts.MS_NODIRATIME | mounts.MS_RELATIME),
        ("nosymfollow,symfollow,ro,rw,sync,async", mounts.MS_RELATIME),
    ],
)
def test_what_the_kernel_is_told(text: str, flags: int) -> None:
    assert parse([text]).mount_flags == flags


def test_remount_changes_what_is_mentioned() -> None:
    current = parse(["commit=30,noatime,nosuid,dax=inode,context=a"])
    assert remounted(current, ["remount,ro"]) == parse(["commit=30,noatime,nosuid,dax=inode,context=a,ro"])
    assert remounted(remounted(current, ["ro"]), ["rw"]) == current
    # Options that mount(8) copies from fstab and from the kernel's table into every remount.
    merged = "rw,nosuid,noatime,user_id=0,group_id=0,default_permissions,max_read=4096,dax=inode,context=a,seclabel"
    assert remounted(current, [merged, "remount,commit=7"]) == parse(["commit=7,noatime,nosuid,dax=inode,context=a"])


@pytest.mark.parametrize(
    "text",
    ["dax=never", "session=pyfuse3", "poll=1", "wake=off", "strictatime", "stats", "log=/x", "data=journal", "bogus"],
)
def test_remount_refuses_what_holds_as_long_as_the_mount(text: str) -> None:
    with pytest.raises(UserError, match="mount option: "):
        remounted(parse(["wake=1,poll=0"]), ["remount", text])
