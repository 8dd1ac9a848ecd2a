"""Make pools by mke2fs, with options that suit persistent memory.

This module chooses defaults: block size, stripe, journal size, and what mke2fs may leave unwritten because it is zero.
It refuses to overwrite a pool that is in use, has content, or can be changed by others (``targets``). It copies
the image into pools that only a mapping can write (``/dev/dax``, hugetlbfs; see ``imagecopy``). The user's own mke2fs
options are passed on and override the defaults. ``make`` calls ``make_pool``, which prints nothing.
"""

from __future__ import annotations

import fcntl
import getopt
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from daxfs.errors import UserError
from daxfs.pmem import exclusive, kinds
from daxfs.pmem.fallocate import punch_hole
from daxfs.pmem.opening import mapped_kind, open_pool
from daxfs.pmem.pool import Pool
from daxfs.pmem.storage import Storage
from daxfs.tools import room, targets, tiermaking
from daxfs.tools.e2fsprogs import find_tool, run_tool
from daxfs.tools.imagecopy import Progress, copy_image
from daxfs.tools.sizes import format_size
from daxfs.tools.tiermaking import Tier

_FAILED = 1  # the exit code of mke2fs
MKE2FS_OPTIONS = "b:ce:g:i:jl:m:no:qr:s:t:d:vC:DE:FG:I:J:KL:M:N:O:R:ST:U:Vz:"
_BLOCK_SIZE = 4096  # the kernel's dax refuses other sizes, and mke2fs would choose 1 KiB for small pools
_JOURNAL_LARGEST = 128  # MiB
_JOURNAL_SMALL = 4  # MiB, but at most 1/16 of the pool
_JOURNAL_SHARE = 64  # a journal of 1/64 of the pool
_JOURNAL_FEWEST = 1024  # blocks, JBD2_MIN_JOURNAL_BLOCKS
_SMALL = 4096  # blocks: for smaller pools mke2fs chooses the journal's size, or none


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `make_pool`.

    Attributes:
        path: the pool.
        kind: ``file``, ``tmpfs``, ``fsdax``, ``block`` or ``devdax``, as ``daxfs info`` names it.
        size: bytes of the file or device that the file system may use.
        block_size: bytes.
        command: the mke2fs command that was run (for mapped devices: on a temporary image).
        output: of mke2fs.
        copied: bytes copied from the temporary image, 0 without one.
        zeroed: bytes zeroed in a mapping because holes of the image must read as zeros there.
        seconds: how long the whole call took.
        mode: permission bits of the file; 0 for a device, whose node mkfs does not change.
        lacking: bytes of a sparse file for which its file system has no room at present, or 0.
    """

    path: str
    kind: str
    size: int
    block_size: int
    command: tuple[str, ...]
    output: str
    copied: int
    zeroed: int
    seconds: float
    mode: int
    lacking: int = 0

    @property
    def readable(self) -> bool:
        """Whether users besides the owner may read the pool, and with it every file in it."""
        return bool(self.mode & 0o044)


@dataclass(frozen=True, slots=True)
class _Options:
    """The user's mke2fs options, as far as the defaults depend on them."""

    passed: tuple[str, ...]  # all options except the extended ones, in order
    extended: tuple[str, ...]  # words of -E
    given: frozenset[str]
    block_size: int
    journal: bool  # the file system will have a journal
    journal_words: tuple[str, ...]  # words of -J

    @property
    def features(self) -> str:
        """The words of -O."""
        return next((value for name, value in pairwise(self.passed) if name == "-O"), "")

    def passed_without(self, name: str) -> list[str]:
        """Return the options in order, without one and its value."""
        at = [place for place, word in enumerate(self.passed) if word == name]
        return [word for place, word in enumerate(self.passed) if place not in at and place - 1 not in at]

    @property
    def discards(self) -> bool:
        return "-K" not in self.given and "nodiscard" not in self.extended


def make_pool(
    path: str | os.PathLike[str],
    size: int | None = None,
    extra: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    keep_mode: bool = False,
    trust_owner: bool = False,
    sparse: bool = False,
    tier: Sequence[Tier] = (),
) -> Report:
    """Make an ext4 file system in a file or on a device.

    Args:
        path: the pool. A file that does not exist is created (mode 0600) if ``size`` is given.
        size: bytes. An existing file gets this length; of a device so much is used.
        extra: mke2fs options. They override the defaults; ``-F`` overwrites an existing file system, ``-n`` only
            shows what would be made.
        progress: called as ``progress(what, done_bytes, total_bytes)`` while a mapping is filled.
        keep_mode: an existing file keeps its mode; otherwise it gets 0600.
        trust_owner: accept a pool that users besides root and this user can change (`daxfs.pmem.ownership`).
        sparse: leave holes in a file; otherwise the whole file is allocated, so that no store into the pool can meet a
            full file system.
        tier: the members of storage that follow the memory (`daxfs.tools.tiermaking`).

    Raises:
        UserError: mke2fs is missing or refused; the pool is in use, has content, can be changed by others or can't be
            opened (PoolError); the file system of the file has no room for all of it. A file that was created for the
            pool is removed again.
    """
    started = time.monotonic()
    name = os.fspath(path)
    options = _parse(extra)
    mke2fs = find_tool("mke2fs")
    if "-n" in options.given:
        if tier:
            raise UserError("-n shows pools without --tier only", _FAILED)
        kind, length, command, output = _rehearse(mke2fs, name, size, options)
        return Report(name, kind, length, options.block_size, command, output, 0, 0, time.monotonic() - started, 0)
    with targets.file_of_size(name, size, trust_owner=trust_owner) as descriptor:
        target = kinds.identify(name)
        if size is not None and target.kind in (kinds.BLOCK, kinds.DEVDAX) and size > target.size:
            raise UserError(
                f"{name} has {format_size(target.size)}, less than the {format_size(size)} asked for", _FAILED
            )
        regular = stat.S_ISREG(target.status.st_mode)
        restrict = partial(targets.restrict, name, descriptor) if regular and not keep_mode else _leave
        if tier:
            if regular and not sparse:
                room.require(name, descriptor, target.exact_size)
            given = {"sparse": sparse, "keep_mode": keep_mode, "trust_owner": trust_owner}
            with tiermaking.all_opened(tier, name, force="-F" in options.given, **given) as storages:
                made = _make_tiered(mke2fs, target, size, options, restrict, progress, storages)
            if regular and not sparse:
                room.fill(name, descriptor, target.exact_size, target.kind)
        elif target.only_mapped:
            made = _make_mapped(mke2fs, target, size, options, restrict, progress)
        else:
            whole = target.exact_size if size is None else size
            if regular and not sparse:
                room.require(name, descriptor, whole)
            made = _make_direct(mke2fs, target, size, options, restrict)
            if regular and not sparse:
                room.fill(name, descriptor, whole, target.kind)
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) if regular else 0
        kind = mapped_kind(target, descriptor)
        lacking = room.lacking(descriptor, made[0]) if regular and sparse else 0
    length, command, output, copied, zeroed = made
    seconds = time.monotonic() - started
    return Report(name, kind, length, options.block_size, command, output, copied, zeroed, seconds, mode, lacking)


def _leave() -> None:
    """Keep the mode of the pool."""


_Made = tuple[int, tuple[str, ...], str, int, int]  # length, command, output, copied, zeroed


def _make_direct(
    mke2fs: str, target: kinds.Target, size: int | None, options: _Options, restrict: Callable[[], None]
) -> _Made:
    """Let mke2fs write the file or block device itself, while a lock keeps other daxfs processes out."""
    fresh = target.status.st_blocks == 0 and target.kind != kinds.BLOCK
    guard = exclusive.claim(target)
    try:
        exclusive.refuse_clients(guard, target.path)
        _refuse_content(target.path, options, lambda offset, length: os.pread(guard, length, offset))
        restrict()
        arguments = [target.path]
        length = target.size
        if target.kind == kinds.BLOCK:
            # mke2fs opens the device with O_EXCL, as the claim does: give up the claim and keep only the lock.
            os.close(guard)
            guard = os.open(target.path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(guard, fcntl.LOCK_EX)
            zero = False
            if size is not None:
                length = size
                arguments.append(f"{size // 1024}k")
        else:
            if size is not None and size != target.exact_size:
                _rehearse(mke2fs, target.path, size, options)  # wrong options must not change the file's size
                targets.resize(target.path, guard, size)
                length = size
            # mke2fs first discards (punches) the whole file, unless an option forbids it.
            zero = fresh or (options.discards and punch_hole(guard, -(-length // 65536) * 65536, 4096))
        command, output = _run(mke2fs, options, length, zero, arguments)
    finally:
        os.close(guard)
    return length, command, output, 0, 0


@contextmanager
def _image_for(
    target: kinds.Target, options: _Options, restrict: Callable[[], None], length: int
) -> Iterator[tuple[Pool, str]]:
    """Open a pool whose content may be replaced, and make an empty sparse image of ``length`` bytes for the body."""
    with open_pool(target.path) as pool, tempfile.TemporaryDirectory(prefix="daxfs-mkfs-") as folder:
        pool.refuse_clients()
        _refuse_content(target.path, options, lambda offset, count: bytes(pool.memory[offset : offset + count]))
        restrict()
        image = os.path.join(folder, "image")
        with open(image, "xb", buffering=0) as file:
            targets.resize(image, file.fileno(), length)
        yield pool, image


def _make_mapped(
    mke2fs: str,
    target: kinds.Target,
    size: int | None,
    options: _Options,
    restrict: Callable[[], None],
    progress: Progress | None,
) -> _Made:
    """Make a sparse image and copy it into a mapping of the pool, the only way to write such a pool."""
    length = target.size if size is None else size
    with _image_for(target, options, restrict, length) as (pool, image):
        command, output = _run(mke2fs, options, length, True, [image], name=target.path)
        copied, zeroed = copy_image(image, pool, progress)
    return length, command, output, copied, zeroed


def _make_tiered(
    mke2fs: str,
    target: kinds.Target,
    size: int | None,
    options: _Options,
    restrict: Callable[[], None],
    progress: Progress | None,
    storages: Sequence[Storage],
) -> _Made:
    """Make an image of memory and storage, copy it to the memory, where all of it lies, and join both."""
    group = tiermaking.group_bytes(options.passed, options.block_size)
    if target.kind not in (kinds.BLOCK, kinds.DEVDAX) and size is not None and size != target.exact_size:
        raise UserError(f"{target.path} has {format_size(target.exact_size)}; leave --size out, or remove it", _FAILED)
    memory = tiermaking.memory_of(target.path, target.size if size is None else size, group)
    length = tiermaking.place(storages, memory, group)
    words, extended = tiermaking.options(options.features, memory, length, group, reserved="-m" in options.given)
    passed = (*words, *options.passed_without("-O"))
    options = replace(options, passed=passed, extended=(*extended, *options.extended))
    with _image_for(target, options, restrict, length) as (pool, image):
        command, output = _run(mke2fs, options, memory, True, [image], name=target.path)
        tiermaking.refuse_metadata_on_storage(target.path, image, memory)
        copied, zeroed = copy_image(image, pool, progress)
        tiermaking.join(pool, storages)
    return length, command, output, copied, zeroed


def _rehearse(mke2fs: str, name: str, size: int | None, options: _Options) -> tuple[str, int, tuple[str, ...], str]:
    """Run mke2fs with ``-n`` on a sparse image of the same size, so that it can't change the pool."""
    try:
        target = kinds.identify(name)
        kind, length = target.kind, target.size if size is None else size
    except UserError:
        if size is None:
            raise
        kind, length = kinds.FILE, size
    with tempfile.TemporaryDirectory(prefix="daxfs-mkfs-") as folder:
        image = os.path.join(folder, "image")
        with open(image, "xb", buffering=0) as file:
            targets.resize(image, file.fileno(), length)
        if "-n" not in options.given:
            options = replace(options, passed=(*options.passed, "-n"))
        command, output = _run(mke2fs, options, length, True, [image], name=name)
    return kind, length, command, output


def _refuse_content(path: str, options: _Options, read: Callable[[int, int], bytes]) -> None:
    """Refuse to overwrite recognisable content, unless ``-F`` is given."""
    if "-F" not in options.given:
        targets.refuse_content(path, read, "add -F")


def _parse(extra: Sequence[str]) -> _Options:
    try:
        pairs, rest = getopt.gnu_getopt(list(extra), MKE2FS_OPTIONS)
    except getopt.GetoptError as error:
        raise UserError(f"mke2fs does not know this option: {error}; see: man mke2fs", _FAILED) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; give the size with --size", _FAILED)
    passed: list[str] = []
    extended: list[str] = []
    journal_words: list[str] = []
    features: list[str] = []
    values: dict[str, str] = {}
    for flag, value in pairs:
        values[flag] = value
        words = [word for word in value.split(",") if word]
        if flag in ("-E", "-R"):
            extended += words
            continue
        if flag == "-J":
            journal_words += words
        elif flag == "-O":
            features += words
        passed += [flag, value] if value else [flag]
    return _Options(
        tuple(passed),
        tuple(extended),
        frozenset(values),
        _block_size(values.get("-b", "")),
        _has_journal(values, features),
        tuple(journal_words),
    )


def _block_size(text: str) -> int:
    """Return the block size of ``-b``; mke2fs itself refuses a bad one (a negative one is a lower bound)."""
    match = re.fullmatch(r"-?([0-9]{1,6})([kK]?)", text)
    size = int(match[1]) * (1024 if match[2] else 1) if match else 0
    return size if 1024 <= size <= 65536 and not size & (size - 1) else _BLOCK_SIZE


def _has_journal(values: dict[str, str], features: list[str]) -> bool:
    journal = values.get("-t", "ext4") != "ext2" or "-j" in values
    for word in features:
        if word in ("none", "^has_journal", "journal_dev"):
            journal = False
        elif word in ("has_journal", "+has_journal"):
            journal = True
    return journal


def _run(
    mke2fs: str, options: _Options, size: int, zero: bool, arguments: list[str], *, name: str = ""
) -> tuple[tuple[str, ...], str]:
    command = (mke2fs, *_defaults(options, size, zero), *options.passed, *arguments)
    result = run_tool(command)
    if result.returncode:
        text = _complaint(result.stderr + "\n" + result.stdout).removeprefix(f"{arguments[0]}: ")
        pool = name or arguments[0]
        text = text.replace(arguments[0], pool)
        raise UserError(f"mke2fs could not make a file system on {pool}: {text}", _FAILED)
    return command, (result.stdout + result.stderr).strip()


def _defaults(options: _Options, size: int, zero: bool) -> list[str]:
    """Return the default options for mke2fs, which precede the user's own."""
    given, block_size = options.given, options.block_size
    arguments = [] if given & {"-q", "-v", "-n"} else ["-q"]
    if "-F" not in given:
        arguments.append("-F")  # `_refuse_content` has made the checks for which mke2fs would ask
    if "-t" not in given:
        arguments += ["-t", "ext4"]
    if "-e" not in given:
        arguments += ["-e", "remount-ro"]
    if "-b" not in given:
        arguments += ["-b", str(block_size)]
    blocks = size // block_size
    sized = any(word.startswith(("size=", "device=")) for word in options.journal_words)
    if options.journal and not sized and blocks >= _SMALL:
        # daxfs checkpoints with each commit, so the log only needs room for one transaction, and a share of the pool
        # is enough; mke2fs would take up to 1 GiB.
        pool = size >> 20
        least = max(-(-_JOURNAL_FEWEST * block_size // (1 << 20)), min(pool // 16, _JOURNAL_SMALL))
        arguments += ["-J", f"size={max(least, min(pool // _JOURNAL_SHARE, _JOURNAL_LARGEST))}"]
    return [*arguments, "-E", ",".join((*_extended(options, zero), *options.extended))]


def _extended(options: _Options, zero: bool) -> list[str]:
    stripe = str(kinds.HUGE_PAGE // options.block_size)  # 2 MiB, the range of one page table entry of a dax mapping
    # If the pool reads as zeros, inode tables and journal are zero already. Otherwise mke2fs writes them now: no kernel
    # thread will do it later, and stale blocks in a journal look like transactions.
    lazy = "1" if zero else "0"
    wanted = {"stride": stripe, "stripe_width": stripe, "lazy_itable_init": lazy, "lazy_journal_init": lazy}
    if os.geteuid() != 0:
        wanted["root_owner"] = f"{os.geteuid()}:{os.getegid()}"  # else this user could not write into the file system
    chosen = {word.partition("=")[0].replace("-", "_") for word in options.extended}
    return [f"{key}={value}" for key, value in wanted.items() if key not in chosen]


def _complaint(output: str) -> str:
    """Return the line of mke2fs's output that has the error."""
    lines = [line.strip() for line in output.splitlines()]
    lines = [line for line in lines if line and not re.match(r"mke2fs [0-9]|Warning|Usage", line)]
    first = next((line for line in lines if line.startswith("mke2fs: ")), lines[0] if lines else "it gave no reason")
    return first.removeprefix("mke2fs: ")
