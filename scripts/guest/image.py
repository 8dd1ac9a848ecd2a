"""What the guest boots from: an initramfs, and disk images of the interpreter and the checkout.

The guest sees the machine's own root directory over 9p, so that every installed program is there. Python is slow over
9p: each import costs many round trips. So the standard library and the virtual environment are an ext4 image, kept in
the cache as long as its files stay the same; the checkout is a second image, made for each run. The guest mounts both
on the places that they come from.
"""

from __future__ import annotations

import compileall
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from guest.failure import CannotRun
from guest.kernel import Kernel, run, tool

CHECKOUT = Path(__file__).resolve().parents[2]
INIT = Path(__file__).with_name("init")
DRIVERS = ("virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4")
"""The modules that the guest needs before it sees the machine's root directory."""

UNUSED = (
    *("test", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "config-*", "site-packages", "dist-packages"),
)
"""Parts of the standard library that tests don't import."""

DEVELOPMENT = ("pip*", "mypy", "mypy-*", "*mypyc*", "ruff*", "grimp*", "setuptools*", "importlinter*", "tests", "*.a")
"""Parts of the virtual environment that tests don't import."""


def python_files(environment: Path) -> dict[Path, Callable[[str, list[str]], set[str]]]:
    """Return the places that Python imports from, each with the filter of what is left out (shutil.ignore_patterns)."""
    places = {
        Path(sysconfig.get_path("stdlib")): shutil.ignore_patterns(*UNUSED),
        environment: shutil.ignore_patterns(*DEVELOPMENT),
    }
    library = Path(sysconfig.get_config_var("LIBDIR")) / sysconfig.get_config_var("LDLIBRARY")
    if library.suffix != ".a" and library.is_file() and not library.is_relative_to("/usr"):
        places[library.resolve()] = shutil.ignore_patterns()
    return places


def python_image(cache: Path, environment: Path) -> tuple[Path, list[Path]]:
    """Return the image of the interpreter's files, made anew if they have changed, and the places in their order."""
    places = python_files(environment)
    image = cache / f"python-{_fingerprint(places)}.img"
    if not image.exists():
        for old in cache.glob("python-*.img"):
            old.unlink()
        with tempfile.TemporaryDirectory(dir=cache, prefix="python-") as folder:
            staging = Path(folder) / "root"
            staging.mkdir()
            for number, (place, ignore) in enumerate(places.items()):
                if place.is_dir():
                    shutil.copytree(place, staging / str(number), symlinks=True, ignore=ignore)
                    _compile(staging / str(number), place)
                else:
                    shutil.copy2(place, staging / str(number))
            make_image(staging, Path(folder) / "image")
            (Path(folder) / "image").rename(image)
    return image, list(places)


def checkout_image(folder: Path) -> Path:
    """Make the image of the checkout, with what make setup has compiled and without what Git ignores otherwise."""
    left_out = {line.rstrip("/") for line in (CHECKOUT / ".gitignore").read_text().split()} - {"*.so", "__pycache__"}
    staging = folder / "checkout"
    shutil.copytree(CHECKOUT, staging, symlinks=True, ignore=shutil.ignore_patterns(".git", *left_out))
    (staging / ".venv").mkdir()
    _compile(staging, CHECKOUT)
    made = make_image(staging, folder / "checkout.img")
    shutil.rmtree(staging)
    return made


def make_image(staging: Path, image: Path) -> Path:
    """Make an ext4 image of a directory, with some room to spare."""
    used = sum(4096 + path.lstat().st_size for path in staging.rglob("*"))
    with image.open("wb") as file:
        file.truncate(used * 5 // 4 + (16 << 20))
    run(tool("mke2fs"), "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", staging, image)
    return image


def initramfs(kernel: Kernel, folder: Path) -> Path:
    """Make the initramfs: busybox, the drivers of the disks and of 9p in the order that insmod needs, and ``init``."""
    root = folder / "initramfs"
    for name in ("bin", "drivers", "new", "lower", "upper", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy2(tool("busybox"), root / "bin" / "busybox")
    shutil.copy2(INIT, root / "init")
    for number, module in enumerate(_in_order(kernel, DRIVERS)):
        target = root / "drivers" / f"{number:02}-{module.name.removesuffix('.xz')}"
        target.write_bytes(_decompressed(module))
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    image = folder / "initramfs.cpio"
    with image.open("wb") as output:
        subprocess.run(
            [tool("cpio"), "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            cwd=root,
            input=names.encode(),
            stdout=output,
            check=True,
        )
    shutil.rmtree(root)
    return image


def _in_order(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """Return the files of modules and of what they depend on, each after its dependencies."""
    files: dict[Path, None] = {}
    for name in names:
        shown = run(
            tool("modprobe"), "-C", "/dev/null", "-d", kernel.base, "-S", kernel.release, "--show-depends", name
        )
        for line in shown.splitlines():
            word, _, path = line.partition(" ")
            if word == "insmod":
                files[Path(path.strip())] = None
    if not files:
        raise CannotRun(f"the kernel {kernel.release} has none of the modules {' '.join(names)}")
    return list(files)


def _decompressed(module: Path) -> bytes:
    """Return a module's bytes."""
    if module.suffix != ".xz":
        return module.read_bytes()
    return subprocess.run([tool("xz"), "-dc", module], stdout=subprocess.PIPE, check=True).stdout


def _compile(staging: Path, place: Path) -> None:
    """Compile the modules of a copied directory; tracebacks name the files at their own place."""
    with contextlib.redirect_stdout(None):
        compileall.compile_dir(staging, maxlevels=20, quiet=2, stripdir=str(staging), prependdir=str(place), workers=0)


def _fingerprint(places: dict[Path, Callable[[str, list[str]], set[str]]]) -> str:
    """Return a digest of names, sizes and times of all files that the image has."""
    digest = hashlib.sha256(sys.version.encode())
    for place, ignore in places.items():
        for path in _files(place, ignore):
            status = path.lstat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(place: Path, ignore: Callable[[str, list[str]], set[str]]) -> Iterator[Path]:
    """Iterate over the files of a place that are not left out, in a fixed order; compiled modules don't count."""
    if place.is_file():
        yield place
        return
    for folder, folders, files in os.walk(place):
        left_out = ignore(folder, [*folders, *files]) | {"__pycache__"}
        folders[:] = sorted(set(folders) - left_out)
        yield from (Path(folder) / name for name in sorted(set(files) - left_out))
