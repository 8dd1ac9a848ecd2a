"""Mappings of files: one buffer of pool memory, even if the file has many extents, as long as a view is left."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from cli_rig import daxfs
from direct_rig import KIB, MIB, FakeDaemon, noise
from mount_rig import in_child

from daxfs import direct, protocol
from daxfs.protocol import Flag


def test_a_mapping_that_a_child_shares_is_not_given_back(daemon: FakeDaemon) -> None:
    mapping = direct.map(daemon.file)
    holder = daemon.leases[-1].holder
    mapping.close()
    assert (daemon.leases[-1].holder, daemon.leases[-1].length, daemon.leases[-1].flags) == (holder, 0, Flag.RENEW)
    mapping = direct.map(daemon.file)
    child = os.fork()
    if child == 0:
        os._exit(0 if bytes(mapping.view[:3]) == b"mmm" else 1)
    assert os.waitpid(child, 0)[1] == 0
    asked = len(daemon.leases)
    mapping.close()
    assert len(daemon.leases) == asked


def test_memory_that_a_file_lost_is_not_another_files_while_it_may_be_touched(root: Path) -> None:
    """A mapped file is removed and the pool filled: the mapping keeps its own bytes."""
    content = noise(8 * MIB)
    (root / "a").write_bytes(content)
    mapping = direct.map(root / "a")
    assert mapping.direct
    (root / "a").unlink()
    full = False
    for number in range(400):
        try:
            (root / f"b{number}").write_bytes(b"b" * MIB)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            full = True
            break
    assert full
    assert bytes(mapping.view) == content


def in_pieces(root: Path, pieces: int) -> bytes:
    """Make ``a``, which lies in that many pieces of 64 KiB; returns its content."""
    content = noise(pieces * 64 * KIB)
    with (root / "a").open("wb", buffering=0) as one, (root / "b").open("wb", buffering=0) as two:
        for place in range(0, len(content), 64 * KIB):
            one.write(content[place : place + 64 * KIB])
            os.fsync(one.fileno())
            two.write(bytes(64 * KIB))
            os.fsync(two.fileno())
    return content


@pytest.mark.parametrize("access", ["r", "rw"])
def test_a_file_in_pieces_is_one_buffer(root: Path, access: str) -> None:
    content = in_pieces(root, 130)
    with direct.map(root / "a", access=access) as mapping:
        assert (mapping.direct, mapping.why) == (True, "")
        assert len(mapping) == len(content)
        assert bytes(mapping.view) == content
        assert mapping.view.readonly == (access == "r")
        assert np.array_equal(np.frombuffer(mapping.view, np.uint8), np.frombuffer(content, np.uint8))
    with direct.map(root / "a", 100001, 700003) as mapping:
        assert bytes(mapping.view) == content[100001:800004]


def test_stores_to_a_mapping_are_the_files(root: Path) -> None:
    (root / "a").write_bytes(bytes(5 * MIB + 123))
    with direct.map(root / "a", 5000, access="rw") as mapping:
        array = np.frombuffer(mapping.view, np.uint8)
        array[:] = 7
        mapping.flush(4096, 10)
        mapping.flush()
        del array
    content = (root / "a").read_bytes()
    assert content == bytes(5000) + b"\7" * (5 * MIB + 123 - 5000)


def test_a_view_outlives_everything_that_it_came_from(root: Path) -> None:
    content = noise(2 * MIB)
    (root / "a").write_bytes(content)
    file = direct.open(root / "a", "r+b")
    mapping = direct.map(file, access="rw")
    assert mapping.direct
    array = np.frombuffer(mapping.view, np.uint8)
    file.close()
    mapping.close()
    del mapping, file
    gc.collect()
    (root / "a").unlink()
    (root / "b").write_bytes(bytes(4 * MIB))
    assert array.tobytes() == content
    array[5] = 1


def test_a_mapping_outlives_all_descriptors(root: Path) -> None:
    """The child closes all descriptors, as daemons do."""
    content = noise(2 * MIB)
    (root / "a").write_bytes(content)

    def child() -> None:
        mapping = direct.map(root / "a")
        assert mapping.direct
        os.closerange(3, 1000)
        (root / "a").unlink()
        (root / "b").write_bytes(bytes(4 * MIB))
        assert bytes(mapping.view) == content

    in_child(child)


def test_a_closed_mapping(root: Path) -> None:
    (root / "a").write_bytes(b"x" * 5000)
    mapping = direct.map(root / "a")
    mapping.close()
    mapping.close()
    assert mapping.closed
    for use in (lambda: mapping.view, mapping.flush):
        with pytest.raises(ValueError, match="closed"):
            use()
    for place, length in ((0, 5001), (5000, None), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="of a file of 5000"):
            direct.map(root / "a", place, length)
    with pytest.raises(ValueError, match="use r or rw"):
        direct.map(root / "a", access="w")


def maps_of(mapping: direct.Mapping) -> int:
    """Return the address of a view's first byte."""
    return np.frombuffer(mapping.view, np.uint8).ctypes.data


def test_the_mapping_ends_with_the_last_view(root: Path) -> None:
    (root / "a").write_bytes(b"x" * MIB)
    mapping = direct.map(root / "a")
    view = mapping.view[100:200]
    address = f"{maps_of(mapping):x}-"
    mapping.close()
    del mapping
    assert address in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert address not in Path("/proc/self/maps").read_text()


def test_large_files_are_mapped_congruent_to_the_pool(root: Path) -> None:
    (root / "a").write_bytes(bytes(32 * MIB))
    mapping = direct.map(root / "a")
    region = mapping._region
    assert region is not None
    layout = region.request_layout(0, 32 * MIB, protocol.Flag(0))
    assert layout is not None
    largest = max(layout.pieces, key=lambda piece: piece.length)
    assert largest.place is not None
    assert (maps_of(mapping) + largest.start - largest.place) % (2 * MIB) == 0


def test_holes_of_a_mapping(root: Path) -> None:
    with (root / "few").open("wb") as file:
        file.truncate(3 * MIB)
    with (root / "many").open("wb") as file:
        file.truncate(100 * MIB)
    with direct.map(root / "few", access="rw") as mapping:
        mapping.view[MIB] = 1
        mapping.flush()
    assert (root / "few").stat().st_blocks * 512 == 3 * MIB
    with direct.map(root / "many", access="rw") as mapping:
        assert mapping.direct
        mapping.view[50 * MIB] = 1
        mapping.flush(50 * MIB, 1)
    assert (root / "many").stat().st_blocks * 512 < MIB
    assert (root / "many").read_bytes()[50 * MIB] == 1
    with direct.map(root / "many") as mapping:
        assert mapping.view[50 * MIB : 50 * MIB + 2] == b"\1\0"
        assert mapping.view[90 * MIB] == 0
    with direct.map(root / "many", access="rw", fill=True):
        pass
    assert (root / "many").stat().st_blocks * 512 == 100 * MIB


def test_a_mapping_knows_that_the_file_changed_below_it(root: Path) -> None:
    (root / "a").write_bytes(b"x" * MIB)
    with direct.map(root / "a") as mapping:
        assert not mapping.stale
        in_child(lambda: os.truncate(root / "a", 0))
        assert mapping.stale


@pytest.mark.parametrize("access", ["r", "rw"])
def test_a_mapping_whose_epoch_ended_and_nothing_else_is_not_stale(root: Path, access: direct.Access) -> None:
    """A snapshot ends the epochs of what is mapped for storing."""
    (root / "a").write_bytes(b"x" * MIB)
    with direct.map(root / "a", access=access) as mapping, direct.map(root / "a", access="rw"):
        for name in ("one", "two"):
            epoch = mapping._region._epoch
            daxfs("snapshot", "create", root, name)
            assert mapping._region._status[0] != epoch
            assert not mapping.stale
            assert mapping._region._status[0] == mapping._region._epoch
        in_child(lambda: os.truncate(root / "a", 4096))
        assert mapping.stale
        in_child(lambda: os.truncate(root / "a", MIB))
        assert mapping.stale
    for name in ("one", "two"):
        daxfs("snapshot", "delete", root, name)
