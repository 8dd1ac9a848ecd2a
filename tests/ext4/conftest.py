"""Images for the tests of the format: mke2fs makes one for each set of options, and each test gets a copy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MakeImage = Callable[..., Path]


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> MakeImage:
    folder = tmp_path_factory.mktemp("images")
    made: dict[tuple[str, ...], Path] = {}

    def make(*options: str, size: str = "64M") -> Path:
        block_size = () if "-b" in options else ("-b", "4096")
        key = (size, *block_size, *options)
        if key not in made:
            path = folder / f"{len(made)}.img"
            command = ["mke2fs", "-q", "-F", "-t", "ext4", *key[1:], str(path), size]
            subprocess.run(command, check=True, timeout=60, capture_output=True)
            made[key] = path
        return made[key]

    return make


@pytest.fixture
def make_image(image_cache: MakeImage, tmp_path: Path) -> MakeImage:
    """``make_image("-I", "128", size="64M")`` returns a private copy of such an image; 4 KiB blocks by default."""

    def make(*options: str, size: str = "64M") -> Path:
        copy = tmp_path / "pool.img"
        source = image_cache(*options, size=size)
        subprocess.run(["cp", "--sparse=always", str(source), str(copy)], check=True, timeout=60)
        return copy

    return make
