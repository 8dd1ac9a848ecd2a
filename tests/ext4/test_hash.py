"""Name hashes against debugfs."""

from __future__ import annotations

import random
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daxfs.errors import Corrupt
from daxfs.ext4 import hash as dxhash

SEED = (0xC0FFEE, 0, 0x12345678, 0xFFFFFFFF)


@settings(max_examples=30, deadline=None)
@given(name=st.text(max_size=63).map(str.encode), version=st.integers(0, 2))
def test_signedness_matters_to_bytes_above_ascii_only(name: bytes, version: int) -> None:
    same = dxhash.dirhash(name, version, SEED) == dxhash.dirhash(name, version + 3, SEED)
    assert same or not name.isascii()


def _names() -> list[bytes]:
    rng = random.Random(7)
    ascii_only = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789_."
    latin = ascii_only + bytes(range(0xA1, 0xFF))
    lengths = [*range(1, 40), 47, 48, 49, 63, 64, 65, 127, 128, 129, 200, 255]
    return [bytes(rng.choice(letters) for _ in range(n)) for n in lengths for letters in (ascii_only, latin)]


@pytest.mark.parametrize("version", range(6))
@pytest.mark.parametrize("seed", [uuid.UUID("6f0c3a52-90a1-4c5b-8a53-0c6d8f9e1b77"), uuid.UUID(int=0)])
def test_hashes_agree_with_debugfs(make_image: Callable[..., Path], version: int, seed: uuid.UUID) -> None:
    names = _names()
    algorithm = ("legacy", "half_md4", "tea", "HASHALG_3", "HASHALG_4", "HASHALG_5")[version]
    script = b"".join(b"dx_hash -h %s -s %s %s\n" % (algorithm.encode(), str(seed).encode(), n) for n in names)
    image = make_image(size="4M")
    output = subprocess.run(
        ["debugfs", "-f", "-", str(image)], input=script, capture_output=True, timeout=30, check=True
    ).stdout
    lines = [line for line in output.split(b"\n") if line.startswith(b"Hash of ")]
    assert len(lines) == len(names)
    words = struct.unpack("<4I", seed.bytes)
    for name, line in zip(names, lines, strict=True):
        found = line.rsplit(b" is 0x", 1)[1].rstrip(b")").split(b" (minor 0x")
        assert dxhash.dirhash(name, version, words) == (int(found[0], 16), int(found[1], 16)), name


def test_a_directorys_version_follows_the_superblocks_char() -> None:
    assert dxhash.effective_version(dxhash.HALF_MD4, True) == dxhash.HALF_MD4_UNSIGNED
    assert dxhash.effective_version(dxhash.HALF_MD4, False) == dxhash.HALF_MD4
    assert dxhash.effective_version(dxhash.TEA_UNSIGNED, True) == dxhash.TEA_UNSIGNED


@pytest.mark.parametrize("version", [6, 7, 255])
def test_an_unknown_version_is_corruption(version: int) -> None:
    with pytest.raises(Corrupt, match="hash version"):
        dxhash.dirhash(b"name", version, SEED)
