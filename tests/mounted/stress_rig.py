"""Load that goes on until the daemon is gone: a directory of files for each worker, changed in every way there is.

A worker notes what fsync(2) has promised. `Worker.run` ends when a call fails because the mount is dead. A `Client` is
a process of its own that stores through `daxfs.direct`; it may be killed, too, and its notes outlive it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from actor_rig import COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, checked, libc

import daxfs.direct
from support import HANG_SECONDS

FILES = 12
SIZES = (10, 4096, 30_000, 200_000)
PIECE = 50_000
BLOCK = 4096
MODES = (0, KEEP_SIZE, ZERO_RANGE, PUNCH_HOLE | KEEP_SIZE, COLLAPSE_RANGE, INSERT_RANGE)
REFUSALS = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EINVAL, errno.ENOTEMPTY, errno.ENODATA),
    *(errno.EXDEV, errno.EISDIR, errno.ENOTDIR, errno.EOPNOTSUPP, errno.EMLINK),
)
"""What a call answers that found nothing to do; with any other error the daemon is gone."""


class Notes:
    """What was promised about files, by path below the root.

    Attributes:
        synced: the content that the last fsync has promised.
        unsure: files that were touched after that, which may be as they were then or not.
        syncs: how many promises were made.
    """

    def __init__(self) -> None:
        self.synced: dict[str, bytes] = {}
        self.unsure: set[str] = set()
        self.syncs = 0

    def touched(self, *names: str) -> None:
        """The files are about to be changed."""
        self.unsure.update(names)

    def promised(self, name: str, content: bytes) -> None:
        """An fsync of the file has returned."""
        self.synced[name] = content
        self.unsure.discard(name)
        self.syncs += 1


class WrittenNotes(Notes):
    """Notes in a file, for a process that may be killed: `read` returns them all."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def touched(self, *names: str) -> None:
        os.write(self._file.fileno(), pickle.dumps((names, None)))

    def promised(self, name: str, content: bytes) -> None:
        os.write(self._file.fileno(), pickle.dumps(((name,), content)))

    def read(self) -> None:
        """Take in what was written; the last note may be incomplete, and says nothing then."""
        self._file.seek(0)
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                names, content = pickle.load(self._file)
                if content is None:
                    super().touched(*names)
                else:
                    super().promised(*names, content)


class Worker:
    """Works in a directory of its own, which it makes."""

    def __init__(self, root: Path, name: str, seed: int, notes: Notes) -> None:
        self.root, self.name, self.notes = root, name, notes
        self.chance = random.Random(f"{seed} {name}")
        self.failed: BaseException | None = None
        self.steps: list[Callable[[str], None]] = [
            *(self.write,) * 8,
            *(self.unlink, self.rename, self.truncate, self.allocate, self.link, self.symlink),
            *(self.attribute, self.directories, self.nameless, self.append),
        ]

    def run(self) -> None:
        """Work until the daemon is gone; ``failed`` is what else has ended the work."""
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.root / self.name)
            while True:
                step = self.chance.choice(self.steps)
                try:
                    step(self._choice())
                except OSError as error:
                    if error.errno not in REFUSALS:
                        raise
        except OSError:
            pass  # ENOTCONN, ECONNABORTED
        except BaseException as error:  # the test reports it
            self.failed = error

    def _choice(self) -> str:
        return f"{self.name}/{self.chance.randrange(FILES)}"

    # Steps: each is given the name of a file, which need not exist

    def write(self, name: str) -> None:
        """New content all over, in pieces; made durable each second time."""
        self.notes.touched(name)
        content = self.chance.randbytes(self.chance.choice(SIZES))
        synced = self.store(name, content, self.chance.randrange(3))
        if synced:
            self.notes.promised(name, content)

    def store(self, name: str, content: bytes, sync: int) -> bool:
        """Write a file; return whether it is durable."""
        descriptor = os.open(self.root / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, 0)
            for at in range(0, len(content), PIECE):
                part = content[at : at + PIECE]
                if os.pwrite(descriptor, part, at) < len(part):
                    raise OSError(errno.ENOSPC, "a short write")
            if sync:
                (os.fsync if sync == 1 else os.fdatasync)(descriptor)
        finally:
            os.close(descriptor)
        return bool(sync)

    def append(self, name: str) -> None:
        self.notes.touched(name)
        with (self.root / name).open("ab", buffering=0) as file:
            file.write(self.chance.randbytes(700))

    def unlink(self, name: str) -> None:
        self.notes.touched(name)
        os.unlink(self.root / name)

    def rename(self, name: str) -> None:
        other = self._choice()
        self.notes.touched(name, other)
        os.rename(self.root / name, self.root / other)

    def truncate(self, name: str) -> None:
        self.notes.touched(name)
        os.truncate(self.root / name, self.chance.randrange(60_000))

    def allocate(self, name: str) -> None:
        """Any mode of fallocate(2)."""
        self.notes.touched(name)
        descriptor = os.open(self.root / name, os.O_RDWR)
        try:
            offset, length = (self.chance.randrange(1, 8) * BLOCK for _ in range(2))
            checked(libc.fallocate(descriptor, self.chance.choice(MODES), offset, length))
        finally:
            os.close(descriptor)

    def link(self, name: str) -> None:
        """A second name, or the end of one: through it nothing is written."""
        second = self.root / f"{name}-link"
        try:
            os.link(self.root / name, second)
        except FileExistsError:
            os.unlink(second)

    def symlink(self, name: str) -> None:
        path = self.root / f"{name}-symlink"
        try:
            os.symlink("t" * self.chance.choice((10, 200)), path)
        except FileExistsError:
            os.unlink(path)

    def attribute(self, name: str) -> None:
        path, attribute = self.root / name, f"user.{self.chance.randrange(3)}"
        if self.chance.randrange(3):
            os.setxattr(path, attribute, bytes(self.chance.choice((5, 300, 2000))))
        else:
            os.removexattr(path, attribute)
        os.chmod(path, self.chance.choice((0o600, 0o644)))

    def directories(self, name: str) -> None:
        for number in range(10):
            (self.root / f"{name}-{number}.d").mkdir(exist_ok=True)
        os.rename(self.root / f"{name}-0.d", self.root / f"{name}-1.d" / "moved")
        os.rmdir(self.root / f"{name}-1.d" / "moved")
        for number in range(1, 10):
            (self.root / f"{name}-{number}.d").rmdir()

    def nameless(self, name: str) -> None:
        """A file without a name gets one in the place of the last such file."""
        path = self.root / f"{name}-named"
        descriptor = os.open(self.root / self.name, os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            os.write(descriptor, self.chance.randbytes(3000))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.link(f"/proc/self/fd/{descriptor}", path)
        finally:
            os.close(descriptor)


class WorkerThread(threading.Thread):
    """A worker of this process."""

    def __init__(self, root: Path, name: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.notes = Notes()
        self.worker = Worker(root, name, seed, self.notes)

    def run(self) -> None:
        self.worker.run()

    def end(self) -> None:
        """The daemon is gone: every request was answered, by the kernel if need be."""
        self.join(HANG_SECONDS)
        assert not self.is_alive(), "a request was never answered"
        assert self.worker.failed is None, self.worker.failed


class DirectWorker(Worker):
    """Writes through `daxfs.direct`."""

    def store(self, name: str, content: bytes, sync: int) -> bool:
        with daxfs.direct.open(self.root / name, "w+b") as file:
            for at in range(0, len(content), PIECE):
                part = content[at : at + PIECE]
                if file.pwrite(at, part) < len(part):
                    raise OSError(errno.ENOSPC, "a short write")
            if sync:
                file.flush()
        return bool(sync)


class Client:
    """A process with a `DirectWorker`, in a fork of this one."""

    def __init__(self, root: Path, name: str, seed: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by end)
        self.notes: WrittenNotes = WrittenNotes(self._file)
        self._root, self._name, self._seed = root, name, seed

    def start(self) -> None:
        """Begin to work."""
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                worker = DirectWorker(self._root, self._name, self._seed, self.notes)
                worker.run()
                code = 0 if worker.failed is None else 2
            finally:
                os._exit(code)

    def kill(self) -> None:
        """End it without its knowledge."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """It has come to an end, or comes to one at the next request to a daemon that is gone."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), f"the client ended with {code}"
        self.notes.read()
        self._file.close()
