"""Who can change a pool: its owner, users whom its mode lets write, and users who can replace it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daxfs.errors import PoolError
from daxfs.pmem import kinds, ownership
from daxfs.pmem.opening import open_pool

ALICE = 12345
MEND = "trust it"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that belongs to root, with a pool that only root can change."""
    (tmp_path / "pool").write_bytes(bytes(1 << 20))
    (tmp_path / "pool").chmod(0o600)
    return tmp_path


def complaint(path: Path) -> str:
    """Return the message with which `refuse` refuses the pool; "" if it accepts the pool."""
    try:
        ownership.refuse(str(path), os.stat(path), MEND)
    except PoolError as error:
        assert error.code == kinds.MOUNT_FAILED
        return str(error)
    return ""


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o4755])
def test_a_pool_of_the_callers_own_is_accepted(place: Path, mode: int) -> None:
    (place / "pool").chmod(mode)
    assert complaint(place / "pool") == ""


def test_another_users_pool(place: Path) -> None:
    os.chown(place / "pool", ALICE, ALICE)
    said = complaint(place / "pool")
    assert f"{place}/pool belongs to user {ALICE}" in said
    assert said.endswith(MEND)


@pytest.mark.parametrize(("mode", "who"), [(0o666, "everybody"), (0o602, "everybody"), (0o660, f"group {ALICE}")])
def test_a_pool_that_others_may_write(place: Path, mode: int, who: str) -> None:
    os.chown(place / "pool", 0, ALICE)
    (place / "pool").chmod(mode)
    assert complaint(place / "pool").startswith(f"{who} may write to {place}/pool")


def let_alice_write(path: Path) -> None:
    """Do as ``setfacl -m u:12345:rwx``: the group bits become the mask."""
    entries = (1, 7, 0xFFFFFFFF), (2, 7, ALICE), (4, 0, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)
    acl = b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, bits, who in entries
    )
    os.setxattr(path, "system.posix_acl_access", acl)


@pytest.mark.parametrize("group", [0, ALICE])
def test_what_an_acl_lets_others_write(place: Path, group: int) -> None:
    """A pool is refused for a user whom an ACL names, although the group is trusted."""
    pool = place / "pool"
    os.chown(pool, 0, group)
    let_alice_write(pool)
    assert "may write to" in complaint(pool)
    pool.chmod(0o600)  # the mask grants nothing
    assert complaint(pool) == ""


def test_a_directory_whose_acl_lets_others_write(place: Path) -> None:
    (place / "d").mkdir()
    pool = (place / "pool").rename(place / "d" / "pool")
    let_alice_write(place / "d")
    assert f"somebody whom an ACL names may write to {place}/d" in complaint(pool)
    (place / "d").chmod(0o1770)
    assert complaint(pool) == "", "a sticky directory keeps the names of others"
    (place / "d").chmod(0o750)
    assert complaint(pool) == ""


def test_a_directory_of_another_user(place: Path) -> None:
    (place / "d" / "e").mkdir(parents=True)
    pool = (place / "pool").rename(place / "d" / "e" / "pool")
    assert complaint(pool) == ""
    os.chown(place / "d", ALICE, ALICE)
    assert f"can be replaced: {place}/d belongs to user {ALICE}" in complaint(pool)


def test_a_directory_that_everybody_may_write(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d").chmod(0o777)
    pool = (place / "pool").rename(place / "d" / "pool")
    assert f"everybody may write to {place}/d" in complaint(pool)
    (place / "d").chmod(0o1777)
    assert complaint(pool) == "", "as /tmp and /dev/shm are"


@pytest.mark.parametrize("sticky", [False, True])
def test_a_symbolic_link_is_judged_by_who_can_change_it(place: Path, sticky: bool) -> None:
    (place / "d").mkdir()
    (place / "d").chmod(0o1777 if sticky else 0o755)
    link = place / "d" / "link"
    link.symlink_to("../pool")
    assert complaint(link) == ""
    os.chown(link, ALICE, ALICE, follow_symlinks=False)
    assert (f"{link} belongs to user {ALICE}" in complaint(link)) is sticky
    absolute = place / "absolute"
    absolute.symlink_to(link)
    assert (complaint(absolute) != "") is sticky


def test_a_circle_of_links_ends(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(PoolError):
        ownership.refuse(str(place / "a"), os.stat(place / "pool"), MEND)


def test_another_file_than_the_opened_one(place: Path) -> None:
    before = os.stat(place / "pool")
    (place / "new").write_bytes(b"new")
    (place / "new").rename(place / "pool")
    with pytest.raises(PoolError, match="just replaced"):
        ownership.refuse(str(place / "pool"), before, MEND)


def test_the_mapped_descriptor_is_the_judged_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool is refused if its file is replaced between the claim and the opening for the mapping."""
    pool, opened = place / "pool", os.open

    def exchange(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if path == str(pool) and exchange.calls == 1:  # type: ignore[attr-defined]
            (place / "evil").write_bytes(bytes(1 << 20))
            (place / "evil").rename(pool)
        exchange.calls += path == str(pool)  # type: ignore[attr-defined]
        return opened(path, flags, *more, **named)

    exchange.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "open", exchange)
    with pytest.raises(PoolError, match="just replaced"):
        open_pool(pool)


def device(mode: int, uid: int, gid: int, kind: int = stat.S_IFBLK) -> Any:
    return SimpleNamespace(st_mode=kind | mode, st_uid=uid, st_gid=gid)


def test_devices_as_udev_makes_them() -> None:
    import grp

    disk = grp.getgrnam("disk").gr_gid
    judge = ownership._writer_of_pool
    assert judge("/dev/pmem0", device(0o660, 0, disk)) == ""
    assert judge("/dev/dax0.0", device(0o600, 0, 0, stat.S_IFCHR)) == ""
    assert "may write" in judge("/dev/pmem0", device(0o660, 0, ALICE))
    assert "may write" in judge("/dev/pmem0", device(0o666, 0, disk))
    assert "belongs to" in judge("/dev/pmem0", device(0o600, ALICE, disk))


def test_a_group_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    members: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: ALICE)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="alice", pw_gid=ALICE))
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name="alice", gr_mem=members))
    judge: Callable[[str, Any], str] = ownership._writer_of_pool
    assert judge("pool", device(0o664, ALICE, ALICE, stat.S_IFREG)) == ""
    members.append("bob")
    assert judge("pool", device(0o664, ALICE, ALICE, stat.S_IFREG)).startswith("group alice may write")


def test_owners_without_a_number_in_this_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"/proc/sys/kernel/overflowuid": "65534", "/proc/sys/kernel/overflowgid": "65534"}
    told |= {f"/proc/self/{which}_map": "0 1000 1" for which in ("uid", "gid")}
    monkeypatch.setattr(ownership.kinds, "read_text", told.__getitem__)
    ownership._hides.cache_clear()
    try:
        judge = ownership._writer_of_pool
        assert judge("/dev/pmem0", device(0o660, 65534, 65534)) == ""
        assert "belongs to" in judge("pool", device(0o600, 65534, 0, stat.S_IFREG))
        told |= {f"/proc/self/{which}_map": "0 0 4294967295" for which in ("uid", "gid")}
        ownership._hides.cache_clear()
        assert "belongs to" in judge("/dev/pmem0", device(0o660, 65534, 65534))
    finally:
        ownership._hides.cache_clear()
