"""Access control lists: both encodings, the validity rules, and the effects of ACLs and mode bits on each other."""

from __future__ import annotations

import errno
import stat
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt, FsError
from daxfs.ext4 import acl
from daxfs.ext4.acl import Acl, Entry

USER, GROUP, MASK, OTHER = acl.ACL_USER, acl.ACL_GROUP, acl.ACL_MASK, acl.ACL_OTHER
USER_OBJ, GROUP_OBJ = acl.ACL_USER_OBJ, acl.ACL_GROUP_OBJ
PERM = st.integers(0, 7)
IDS = st.lists(st.integers(0, 2**32 - 2), unique=True, max_size=4).map(sorted)


def from_mode(mode: int) -> Acl:
    """Return the ACL that is equivalent to the permission bits of ``mode``."""
    tags = (acl.ACL_USER_OBJ, 6), (acl.ACL_GROUP_OBJ, 3), (acl.ACL_OTHER, 0)
    return tuple(Entry(tag, mode >> shift & 7) for tag, shift in tags)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users, groups = draw(IDS), draw(IDS)
    entries = [Entry(USER_OBJ, draw(PERM)), *(Entry(USER, draw(PERM), i) for i in users)]
    entries += [Entry(GROUP_OBJ, draw(PERM)), *(Entry(GROUP, draw(PERM), i) for i in groups)]
    if users or groups or draw(st.booleans()):
        entries.append(Entry(MASK, draw(PERM)))
    return (*entries, Entry(OTHER, draw(PERM)))


FULL: Acl = (
    Entry(USER_OBJ, 6),
    Entry(USER, 7, 5),
    Entry(USER, 4, 9),
    Entry(GROUP_OBJ, 4),
    Entry(GROUP, 6, 20),
    Entry(MASK, 6),
    Entry(OTHER, 1),
)


@settings(max_examples=50, deadline=None)
@given(acls())
def test_valid_lists_survive_both_encodings(entries: Acl) -> None:
    acl.validate(entries)
    assert acl.from_wire(acl.to_wire(entries)) == entries
    assert acl.from_disk(acl.to_disk(entries), "inode") == entries


def test_encodings_byte_for_byte() -> None:
    entries = (Entry(USER_OBJ, 6), Entry(USER, 4, 1000), Entry(GROUP_OBJ, 4), Entry(MASK, 6), Entry(OTHER, 0))
    assert acl.to_disk(entries).hex() == "010000000100060002000400e8030000040004001000060020000000"
    assert acl.to_wire(entries).hex() == (
        "0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000000ffffffff"
    )


@pytest.mark.parametrize(
    "entries",
    [
        FULL[1:],
        FULL[:-1],
        FULL[:5] + FULL[6:],  # named entries without mask
        (*FULL, Entry(OTHER, 1)),
        (FULL[0], *FULL),
        (Entry(USER_OBJ, 8), *FULL[1:]),
        (FULL[0], Entry(USER, 7), *FULL[3:]),  # no id
        (Entry(0x40, 7), *FULL[1:]),
        (FULL[0], *FULL[5:]),  # no group
        (*FULL[:5], FULL[5], FULL[5], FULL[6]),
    ],
)
def test_invalid_lists_are_refused(entries: Acl) -> None:
    with pytest.raises(FsError) as caught:
        acl.from_wire(acl.to_wire(entries))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("named", [(2, 1), (1, 1)])
def test_ids_may_come_in_any_order_as_in_the_kernel(named: tuple[int, int]) -> None:
    entries = (FULL[0], *(FULL[at] for at in named), *FULL[3:])
    assert acl.from_wire(acl.to_wire(entries)) == entries


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"", errno.EINVAL), (bytes(3), errno.EINVAL), (b"\2\0\0\0\1", errno.EINVAL), (b"\1\0\0\0", errno.EOPNOTSUPP)],
)
def test_malformed_values_are_refused(value: bytes, number: int) -> None:
    with pytest.raises(FsError) as caught:
        acl.from_wire(value)
    assert caught.value.errno == number


def test_an_empty_list_is_no_list() -> None:
    assert acl.from_wire(b"\2\0\0\0") == ()
    assert acl.from_disk(b"\1\0\0\0", "inode") == ()


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0", b"\1\0\0\0\2\0\4\0", b"\1\0\0\0\1\0", b"\1\0\0\0\3\0\0\0"])
def test_damage_on_the_disk_is_named(value: bytes) -> None:
    with pytest.raises(Corrupt, match="access control list: inode 12"):
        acl.from_disk(value, "inode 12")


def test_what_the_mode_says_need_not_be_stored() -> None:
    for mode in (0o755, 0o640, 0o007):
        assert acl.equiv_mode(from_mode(mode)) == (True, mode)
    assert acl.equiv_mode(FULL) == (False, 0o661)


def test_chmod_moves_the_mask_or_else_the_group() -> None:
    assert acl.equiv_mode(acl.chmod(FULL, 0o100712)) == (False, 0o712)
    assert acl.chmod(FULL, 0o712)[3] == FULL[3]
    assert acl.chmod(from_mode(0o777), 0o640) == from_mode(0o640)


def test_a_default_list_shapes_what_is_made_below() -> None:
    file = acl.inherit(FULL, stat.S_IFREG | 0o646)
    assert file.mode == stat.S_IFREG | 0o640
    assert file.default is None
    assert file.access == (FULL[0], *FULL[1:5], Entry(MASK, 4), Entry(OTHER, 0))
    folder = acl.inherit(FULL, stat.S_IFDIR | 0o1777)
    assert folder == acl.Inherited(stat.S_IFDIR | 0o1661, FULL, FULL)
    plain = acl.inherit(from_mode(0o750), stat.S_IFDIR | 0o777)
    assert plain == acl.Inherited(stat.S_IFDIR | 0o750, None, from_mode(0o750))


@settings(max_examples=50, deadline=None)
@given(acls(), st.integers(0, 0o777))
def test_a_new_inode_gets_no_more_than_its_mode(entries: Acl, mode: int) -> None:
    made = acl.inherit(entries, stat.S_IFREG | mode)
    assert made.mode & ~(stat.S_IFREG | mode) == 0
    if made.access is not None:
        acl.validate(made.access)
        assert acl.equiv_mode(made.access)[1] == made.mode & 0o777


def test_access_is_decided_by_the_first_that_matches() -> None:
    def may(uid: int, groups: set[int], want: int) -> bool:
        return acl.permits(FULL, 1, 10, uid, groups, want)

    assert may(1, set(), 6)
    assert not may(1, {20}, 1)  # only the owner's entry counts
    assert may(5, set(), 6)
    assert not may(5, set(), 1)  # the mask forbids it
    assert not may(9, {20}, 2)  # a named user's groups do not help
    assert may(7, {10}, 4)
    assert may(7, {10, 20}, 2)
    assert not may(7, {10}, 2)
    assert not may(7, {20}, 1)  # in a group: the entry for others does not count
    assert may(7, {30}, 1)


def test_a_minimal_list_permits_what_the_mode_does() -> None:
    for mode, want in product((0o755, 0o640, 0o604, 0o077), range(1, 8)):
        entries = from_mode(mode)
        assert acl.permits(entries, 1, 10, 1, set(), want) == (mode >> 6 & want == want)
        assert acl.permits(entries, 1, 10, 2, {10}, want) == (mode >> 3 & want == want)
        assert acl.permits(entries, 1, 10, 2, {11}, want) == (mode & want == want)
