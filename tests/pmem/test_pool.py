"""Opening, storing, sharing and closing pools, on real files and on a device that poses as devdax."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import numpy as np
import pytest
from in_memory import SHARED_MEMORY

from daxfs.errors import FsError, PoolError
from daxfs.pmem import exclusive, kinds, persist
from daxfs.pmem.fallocate import punch_hole
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from support import run

F_SEAL_FUTURE_WRITE = 0x10  # include/uapi/linux/fcntl.h
WAYS = ["libpmem", "msync", "volatile"]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    path.write_bytes(bytes(1 << 20))
    return path


def devdax_tree(root: Path, *, size: int, align: int | None) -> str:
    """A sysfs in which /dev/zero is a devdax device."""
    device = os.stat("/dev/zero").st_rdev
    folder = root / "dev" / "char" / f"{os.major(device)}:{os.minor(device)}"
    folder.mkdir(parents=True)
    (root / "bus" / "dax").mkdir(parents=True)
    (folder / "subsystem").symlink_to(root / "bus" / "dax")
    (folder / "size").write_text(f"{size}\n")
    if align is not None:
        (folder / "align").write_text(f"{align}\n")
    return str(root)


@pytest.mark.parametrize("way", WAYS)
def test_stores_reach_the_file(plain: Path, way: str) -> None:
    view = memoryview(bytearray(range(256)) * 64)
    with open_pool(plain, persistence=way) as pool:
        assert pool.persistence == way
        pool.write(100, b"small")
        pool.write(8192, bytes(range(256)) * 32)
        pool.write(32768, bytearray(b"x" * 8192))
        pool.write(65536, view)
        pool.write(131072, view.toreadonly())
        pool.write(pool.size - 4, b"last")
        pool.write(200000, b"12345678" * 1024)
        pool.zero(200001, 3)
        pool.store_word(300000, 0x01020304)
        pool.store_word(300008, 0x0102030405060708, 8)
        pool.flush(0, pool.size)
        pool.fence()
        pool.fence()
    data = plain.read_bytes()
    assert data[100:105] == b"small"
    assert data[8192:16384] == bytes(range(256)) * 32
    assert data[32768:40960] == b"x" * 8192
    assert data[65536:81920] == bytes(view)
    assert data[131072:147456] == bytes(view)
    assert data[-4:] == b"last"
    assert data[200000:200008] == b"1\x00\x00\x005678"
    assert data[300000:300016] == bytes.fromhex("04030201000000000807060504030201")


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_stored_outside(plain: Path, way: str) -> None:
    with open_pool(plain, persistence=way) as pool:
        size = pool.size
        for offset in (-8192, -8, -1, size - 1, size, size + 8192):
            for length in (2, 8192):
                with pytest.raises(ValueError, match=r"outside|structures"):
                    pool.write(offset, b"x" * length)
                with pytest.raises(ValueError, match="outside"):
                    pool.zero(offset, length)
                with pytest.raises(ValueError, match="outside"):
                    pool.discard(offset, length)
            with pytest.raises(ValueError, match="aligned word"):
                pool.store_word(offset, 1, 8)
        for offset, length in ((2, 4), (4, 8)):
            with pytest.raises(ValueError, match="aligned word"):
                pool.store_word(offset, 1, length)
        with pytest.raises(ValueError, match="outside"):
            pool.zero(4096, -4096)
        pool.fence()
        assert not any(pool.memory)


@pytest.mark.parametrize("way", WAYS)
def test_no_store_after_close(plain: Path, way: str) -> None:
    pool = open_pool(plain, persistence=way)
    write, zero, store_word = pool.write, pool.zero, pool.store_word
    pool.close()
    pool.close()
    for call in (lambda: write(0, b"x"), lambda: write(0, bytes(8192)), lambda: zero(0, 9), lambda: store_word(0, 1)):
        with pytest.raises(ValueError, match=r"released|outside"):
            call()


def test_msync_failure_stays(plain: Path) -> None:
    class Medium:
        def __init__(self) -> None:
            self.calls: list[tuple[int, int]] = []
            self.broken = False

        def flush(self, offset: int, length: int) -> None:
            self.calls.append((offset, length))
            if self.broken:
                raise OSError(errno.EIO, "bad medium")

    medium = Medium()
    memory = memoryview(bytearray(1 << 16))
    pool = Pool("x", "file", memory, persist.msync(memory, medium.flush))
    pool.fence()
    assert medium.calls == []
    pool.write(5000, b"x")
    pool.store_word(20000, 1)
    pool.fence()
    pool.fence()
    assert medium.calls == [(4096, 20004 - 4096)]
    pool.write(0, b"x")
    medium.broken = True
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            pool.fence()
        assert caught.value.errno == errno.EIO
    assert len(medium.calls) == 2
    assert plain.exists()


def test_kind_and_persistence_are_chosen(plain: Path) -> None:
    with open_pool(plain) as pool:
        assert (pool.kind, pool.persistence) in {("file", "msync"), ("tmpfs", "volatile")}
    with pytest.raises(PoolError, match="persistence=eadr is unknown"):
        open_pool(plain, persistence="eadr")
    assert persist.choose("p", "block", None) == "msync"
    assert persist.choose("p", "memory", None) == "volatile"
    assert persist.choose("p", "fsdax", None) in {"libpmem", "msync"}


def test_without_libpmem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert persist.load_libpmem("libnone.so.9") is None
    monkeypatch.setattr(persist, "load_libpmem", lambda: None)
    assert persist.choose("p", "fsdax", None) == "msync"
    assert persist.choose("p", "devdax", None, read_only=True) == "volatile"
    for kind, forced in (("devdax", None), ("file", "libpmem")):
        with pytest.raises(PoolError, match=r"libpmem.*apt install libpmem1"):
            persist.choose("p", kind, forced)
    sysfs = devdax_tree(tmp_path / "sys", size=4 << 20, align=2 << 20)
    with pytest.raises(PoolError, match="/dev/zero needs libpmem"):
        open_pool("/dev/zero", sysfs=sysfs)


def test_devdax(tmp_path: Path) -> None:
    sysfs = devdax_tree(tmp_path / "sys", size=(6 << 20) + 4096, align=2 << 20)
    with open_pool("/dev/zero", sysfs=sysfs) as pool:
        assert (pool.kind, pool.size, pool.file_size) == ("devdax", 6 << 20, (6 << 20) + 4096)
        assert (pool.align, pool.persistence) == (2 << 20, "libpmem")
        pool.write(0, b"x" * 5000)
        pool.fence()
        with pytest.raises(FsError) as caught:
            pool.discard(0, 4096)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert pool.memory[:5000] == b"x" * 5000
        with pytest.raises(PoolError, match="in use"):
            open_pool("/dev/zero", sysfs=sysfs)
    with pytest.raises(PoolError, match="can't msync"):
        open_pool("/dev/zero", sysfs=sysfs, persistence="msync")


def test_read_only(plain: Path) -> None:
    plain.chmod(0o400)
    with open_pool(plain, read_only=True) as pool, open_pool(plain, read_only=True) as second:
        assert pool.memory.readonly
        assert second.read_only
        for call in (lambda: pool.write(0, b"x"), lambda: pool.zero(0, 1), lambda: pool.store_word(0, 1)):
            with pytest.raises(FsError) as caught:
                call()
            assert caught.value.errno == errno.EROFS
        pool.flush(0, 10)
        pool.fence()
        with pytest.raises(PoolError, match="in use"):
            open_pool(plain)


def test_second_user_is_refused_by_name(plain: Path) -> None:
    code = (
        "import sys; from daxfs.pmem.opening import open_pool\n"
        "pool = open_pool(sys.argv[1]); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(plain)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(PoolError, match=rf"{plain} is in use: .*process {other.pid} "):
            open_pool(plain)
        with open_pool(plain, read_only=True, exclusively=False) as pool:
            assert pool.size == 1 << 20
        other.communicate(b"\n", timeout=20)
    open_pool(plain).close()


@pytest.mark.parametrize("size", [4096, 2 << 20])
def test_a_size_that_changes_before_the_claim(plain: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = exclusive.claim

    def resized(target: kinds.Target, **kwargs: bool) -> int:
        os.truncate(plain, size)
        return claim(target, **kwargs)

    monkeypatch.setattr(exclusive, "claim", resized)
    with open_pool(plain) as pool:
        assert pool.size == size


def test_a_file_that_is_replaced_before_the_claim(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = exclusive.claim

    def replaced(target: kinds.Target, **kwargs: bool) -> int:
        guard = claim(target, **kwargs)
        other = plain.with_name("other")
        other.write_bytes(bytes(1 << 20))
        other.replace(plain)
        return guard

    monkeypatch.setattr(exclusive, "claim", replaced)
    with pytest.raises(PoolError, match="replaced"):
        open_pool(plain)
    monkeypatch.undo()
    open_pool(plain).close()


def test_odd_sizes(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    for exact, size in ((8192 + 1024, 8192 + 1024), (8192 + 1500, 8192 + 1024), (4096, 4096)):
        path.write_bytes(b"z" * exact)
        with open_pool(path) as pool:
            assert (pool.size, pool.file_size, len(pool.memory)) == (size, exact, size)
            pool.write(size - 1, b"e")
            pool.fence()
        assert path.stat().st_size == exact
        assert path.read_bytes()[size - 1] == ord("e")


def test_views_outlive_the_pool(plain: Path) -> None:
    pool = open_pool(plain)
    pool.write(0, b"kept")
    piece, array = pool.memory[:4], np.frombuffer(pool.memory, np.uint8)
    pool.close()
    assert bytes(piece) == b"kept"
    assert array[3] == ord("t")
    with open_pool(plain) as again:  # close() has released the claim, but not the mapping
        assert again.memory[0] == ord("k")


def test_prefaulted_pages_cost_no_page_fault() -> None:
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        path = Path(folder, "pool")
        path.write_bytes(bytes(1 << 20))
        with open_pool(path) as pool:
            pool.prefault(4096 + 100, 200 << 12)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for at in range(1, 201):
                pool.write(at << 12, b"x")
            assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100
    MemoryPool(4096).prefault(0, 4096)


def test_discard(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_bytes(b"x" * (1 << 20))
    with open(path, "r+b") as file:
        assert punch_hole(file.fileno(), 0, 4096), f"{tmp_path} punches no holes; set TMPDIR to ext4 or tmpfs"
    with open_pool(path) as pool:
        taken = path.stat().st_blocks
        pool.discard(0, 0)
        assert path.stat().st_blocks == taken
        pool.discard(65536, 65536)
        assert path.stat().st_blocks == taken - 128
        assert bytes(pool.memory[65536:131072]) == bytes(65536)
        pool.discard(201_000, 10_000)  # pages that are discarded in part keep the rest
        assert bytes(pool.memory[200_000:211_001]) == b"x" * 1000 + bytes(10_000) + b"x"
        assert pool.memory[131072] == ord("x")
        pool.write(70_000, b"again")
        pool.fence()
    assert path.read_bytes()[70_000:70_006] == b"again\0"
    with open_pool(path, read_only=True) as pool, pytest.raises(FsError) as caught:
        pool.discard(0, 4096)
    assert caught.value.errno == errno.EROFS


def test_discard_of_a_block_device(tmp_path: Path) -> None:
    path = tmp_path / "backing"
    path.write_bytes(b"x" * (1 << 20))
    device = run("losetup", "--find", "--show", path).strip()
    try:
        with open_pool(device) as pool:
            assert pool.memory[100_000] == ord("x")
            pool.write(300_000, b"kept")
            pool.fence()
            taken = path.stat().st_blocks
            pool.discard(65536, 65536)
            assert path.stat().st_blocks == taken - 128
            assert bytes(pool.memory[65535:131073]) == b"x" + bytes(65536) + b"x"
            assert bytes(pool.memory[300_000:300_005]) == b"keptx"
            with pytest.raises(FsError) as caught:
                pool.discard(100, 100)
            assert caught.value.errno == errno.EINVAL
    finally:
        run("losetup", "-d", device)


def test_a_file_that_refuses() -> None:
    """A range of a memfd that is sealed against later writes can't be discarded."""
    descriptor = os.memfd_create("pool", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, b"x" * 65536)
        with open_pool(f"/proc/self/fd/{descriptor}") as pool:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
            with pytest.raises(FsError) as caught:
                pool.discard(0, 4096)
            assert caught.value.errno == errno.EPERM
            assert pool.memory[0] == ord("x")
    finally:
        os.close(descriptor)


def test_bad_paths(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    small = tmp_path / "small"
    small.write_bytes(b"x")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, text in (
        (tmp_path / "none", "does not exist; make it with: daxfs mkfs"),
        (tmp_path, "is a directory"),
        (empty, "is empty"),
        (small, "too few for a pool"),
        (fifo, "neither a file nor a device"),
        (Path("/dev/null"), "no /dev/dax device"),
        (empty / "below", "Not a directory"),
    ):
        with pytest.raises(PoolError, match=text) as caught:
            open_pool(path)
        assert caught.value.code == 32
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="read-only"):
        open_pool(small, exclusively=False)


def test_memory_pool() -> None:
    with MemoryPool(1 << 20) as pool:
        assert (pool.kind, pool.persistence, pool.size) == ("memory", "volatile", 1 << 20)
        pool.write(4096, b"abc")
        pool.fence()
        image = pool.image()
    with MemoryPool(image, read_only=True) as pool:
        assert bytes(pool.memory[4096:4099]) == b"abc"
        assert pool.memory.readonly
    place = bytearray(5000)
    pool = MemoryPool(place)
    pool.write(0, b"in place")
    assert pool.size == 4096
    assert place.startswith(b"in place")
    pool.close()
    place.append(1)  # succeeds only if no view is left
    with pytest.raises(ValueError, match="too small"):
        MemoryPool(100)


def test_write_is_cheap() -> None:
    pool = MemoryPool(1 << 20)
    block = bytes(4096)
    best = min(timeit.repeat(lambda: pool.write(8192, block), number=2000, repeat=20)) / 2000
    assert best < 1e-6, f"a 4 KiB write takes {best * 1e6:.2f} us"
    assert mmap.PAGESIZE >= 4096
