"""A snapshot served as a file: what is mapped of it, and reads that fail for a while."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_memory import tmp_path

from daxfs.errors import FsError, MissingMemory
from daxfs.fuse import unnamed
from daxfs.fuse.kernel import imagefile
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange

__all__ = ["tmp_path"]

SIZE = 1 << 20


class Failing:
    """What a snapshot shows; reads fail as long as a file exists."""

    chunk_bits = 12

    def __init__(self, content: bytes, flag: Path) -> None:
        self.content = content
        self.flag = flag

    def read(self, offset: int, length: int) -> bytes:
        if self.flag.exists():
            raise FsError(errno.EINVAL, "not now")
        return self.content[offset : offset + length]

    def read_all(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return [self.read(begin, end - begin) for begin, end in ranges]


@contextmanager
def mapped(path: Path, past: Failing) -> Iterator[Pool]:
    """Serve it in another process, and map it."""
    with open_pool(path, read_only=True) as source:
        device, image = unnamed.mount(source.path)
        server = os.fork()
        if server == 0:
            try:
                os.close(image)
                imagefile.serve(source, past, "snapshot", device)
            finally:
                os._exit(0)
        os.close(device)
        try:
            with open_pool(f"/proc/self/fd/{image}", read_only=True, exclusively=False) as pool:
                yield pool
        finally:
            os.close(image)
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


@pytest.mark.parametrize("lasting", [True, False])
def test_a_page_that_failed_is_read_again_where_failures_do_not_last(tmp_path: Path, lasting: bool) -> None:
    path, flag = tmp_path / "pool", tmp_path / "flag"
    path.write_bytes(bytes(SIZE))
    past = Failing(os.urandom(SIZE), flag)
    with mapped(path, past) as pool:
        pool.faults.lasting = lasting
        flag.touch()
        for _ in range(2):
            with pytest.raises(MissingMemory), pool.faults.checked():
                bytes(pool.memory[8192:12288])
        flag.unlink()
        assert bool(pool.bad) is lasting
        if not lasting:
            with pool.faults.checked():
                assert bytes(pool.memory) == past.content
