"""Count on how many damaged images daxfs reads what the kernel reads: ``python -m damaged DIRECTORY [NAME...]``.

The directory has images, ``NAME/image.gz`` or ``NAME.img``. Each is decompressed, mounted by the kernel (``ro,noload``;
``errors=continue``, since an image may ask for a panic) and opened by daxfs likewise, each in a process of its own with
a deadline. Root, loop devices and the kernel's ext4 are needed. One line for each image that is not equal, then the
counts; the exit code is 1 if daxfs reads something else, or ends without a result.
"""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from damaged.comparison import Verdict, compare, worst
from damaged.readers import KernelReader, PoolReader, Tree, named, walk
from daxfs.errors import FsError, PoolError, Unsupported
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options

DEADLINE = 60
"""Seconds for one reading of one image; only a hang exceeds it."""
READ_ONLY = Options(read_only=True, replay=False)
Reading = Tree | str


def images(folder: Path, names: list[str]) -> dict[str, Path]:
    """Return the images of a folder by name."""
    found = {path.parent.name: path for path in sorted(folder.glob("*/image.gz"))}
    found |= {path.stem: path for path in sorted(folder.glob("*.img"))}
    return {name: path for name, path in found.items() if not names or name in names}


def unpack(packed: Path, image: Path) -> None:
    """Write an image whose zeros are holes."""
    with (gzip.open if packed.suffix == ".gz" else open)(packed, "rb") as source, image.open("wb") as target:
        while piece := source.read(1 << 16):
            if piece.strip(b"\0"):
                target.write(piece)
            else:
                target.seek(len(piece), os.SEEK_CUR)
        target.truncate(target.tell())


def kernel_reading(image: Path, mountpoint: Path) -> Reading:
    """Return what the kernel reads, or why it does not mount the image."""
    mounted = subprocess.run(
        ["mount", "-t", "ext4", "-o", "loop,ro,noload,errors=continue", image, mountpoint],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if mounted.returncode:
        return "NOT MOUNTED: " + mounted.stderr.strip().replace("\n", " ")
    try:
        return apart(lambda: walk(KernelReader(os.fsencode(mountpoint))))
    finally:
        subprocess.run(["umount", mountpoint], timeout=DEADLINE, check=True)


def pool_reading(image: Path) -> Reading:
    """Return what daxfs reads, or why it does not mount the image."""

    def read() -> Reading:
        try:
            with FileSystem.open(image, READ_ONLY) as fs:
                return walk(PoolReader(fs))
        except Unsupported as error:
            return f"NOT MOUNTED: {error.strerror}"
        except (FsError, PoolError) as error:
            return f"NOT MOUNTED: {named(error) if isinstance(error, OSError) else ''} {error}"

    return apart(read)


def apart(read: Callable[[], Reading]) -> Reading:
    """Return what ``read`` returns in a process of its own, or how that ended."""
    with tempfile.TemporaryFile() as result:
        child = os.fork()
        if not child:
            code = 1
            try:
                pickle.dump(read(), result)
                result.flush()
                code = 0
            finally:
                os._exit(code)
        end = time.monotonic() + DEADLINE
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "FAILED: no end within the deadline"
            time.sleep(0.01)
        if status:
            return f"FAILED: wait status {status}"
        result.seek(0)
        found: Reading = pickle.load(result)
        return found


def judge(image: Path, mountpoint: Path) -> tuple[Verdict, list[str]]:
    """Read an image twice; return the verdict and the differences."""
    kernel = kernel_reading(image, mountpoint)
    ours = pool_reading(image)
    if isinstance(ours, str) and ours.startswith("FAILED"):
        return Verdict.FAILED, [ours]
    if isinstance(kernel, str) and kernel.startswith("FAILED"):
        return Verdict.FAILED, [f"the kernel {kernel}"]
    if isinstance(kernel, str):
        return (Verdict.EQUAL, []) if isinstance(ours, str) else (Verdict.MORE, [f"the kernel: {kernel}"])
    if isinstance(ours, str):
        return Verdict.NOT_MOUNTED, [ours]
    found = compare(kernel, ours)
    return worst([verdict for verdict, _ in found]), [f"{verdict.value}: {text}" for verdict, text in found]


def main(arguments: list[str] | None = None) -> int:
    """Compare; see the module."""
    parser = argparse.ArgumentParser(prog="python -m damaged", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=int, default=6, help="differences that are shown of each image")
    options = parser.parse_intermixed_args(arguments)
    found = images(options.directory, options.names)
    if not found:
        print(f"{options.directory} has no image: nothing was compared", file=sys.stderr)
        return 2
    counts: Counter[Verdict] = Counter()
    work = Path(tempfile.mkdtemp(prefix="daxfs-damaged-", dir="/dev/shm"))
    try:
        mountpoint = work / "mnt"
        mountpoint.mkdir()
        for name, packed in found.items():
            unpack(packed, work / "image")
            verdict, differences = judge(work / "image", mountpoint)
            counts[verdict] += 1
            if verdict is not Verdict.EQUAL:
                print(f"{name}: {verdict.value}")
                for text in differences[: options.most]:
                    print(f"    {text}")
                if len(differences) > options.most:
                    print(f"    and {len(differences) - options.most} more", flush=True)
    finally:
        shutil.rmtree(work)
    print(f"{sum(counts.values())} images: " + ", ".join(f"{counts[each]} {each.value}" for each in Verdict))
    return 1 if counts[Verdict.DIFFERENT] or counts[Verdict.FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
