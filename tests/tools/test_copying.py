"""daxfs export and import: byte-identical sparse copies of whole pools, whole or not there."""

from __future__ import annotations

import os
import pty
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_rig import daxfs
from fake_devdax import disguise
from mount_rig import COMMAND
from poison_rig import Poison

from daxfs.errors import BadMemory, MissingMemory, UserError
from daxfs.fs.filesystem import FileSystem
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.runs import ByteRange
from daxfs.tools import exporting, importing, pieces
from daxfs.tools.exporting import export
from daxfs.tools.importing import import_pool
from support import fsck, mke2fs, run, tmpfs

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A pool with some content, deleted content, and holes."""
    path = mke2fs(tmp_path / "source", "-b", "4096", size="16M")
    with FileSystem.open(path) as fs:
        for name in ("file", "deleted"):
            fs.tree.write_bytes(f"/{name}", random.Random(name).randbytes(2_000_000))
        fs.tree.unlink("/deleted")
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def one_line(said: str) -> str:
    assert said.startswith("daxfs: ")
    assert said.count("\n") == 1
    return said


def test_export_is_byte_identical_and_sparse(source: Path, tmp_path: Path) -> None:
    before = allocated(source)
    said = daxfs("export", source, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert allocated(tmp_path / "copy") <= before + MIB
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    assert "16 MiB" in said
    fsck(tmp_path / "copy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "source"]


def test_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    source = mke2fs(tmp_path / "source", size="16M")
    source.write_bytes(source.read_bytes())
    assert allocated(source) >= SIZE
    daxfs("export", source, tmp_path / "copy")
    assert allocated(tmp_path / "copy") < 8 * MIB


def test_export_does_not_fill_the_holes_of_a_pool(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "tmpfs"
    place.mkdir()
    with tmpfs(place, "size=16m"):
        run("cp", "--sparse=always", source, place / "pool")
        before = allocated(place / "pool")
        daxfs("export", place / "pool", tmp_path / "copy")
        assert allocated(place / "pool") == before
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_from_device_to_device_and_back(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = source.read_bytes()
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"\xa5" * (SIZE + 4096))
        disguise(monkeypatch, tmp_path / name)
    first, second = tmp_path / "first", tmp_path / "second"
    daxfs("import", source, first)
    daxfs("import", first, second)
    daxfs("export", second, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert allocated(tmp_path / "copy") < 10 * MIB
    assert first.read_bytes()[SIZE:] == b"\xa5" * 4096


def test_block_devices(source: Path, tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xa5" * (SIZE + 4 * MIB))
    device = run("losetup", "-f", "--show", backing, limit=20).strip()
    try:
        said = daxfs("import", source, device)
        assert "16 MiB copied to block" in said
        assert "has 20 MiB; the file system in it keeps its size" in said
        daxfs("check", "-fn", device)
        daxfs("export", device, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == source.read_bytes() + b"\xa5" * (4 * MIB)
        assert "is a device; a copy on it is made by: daxfs import" in daxfs("export", source, device, code=1)
    finally:
        run("losetup", "-d", device, limit=20)


def test_import_makes_a_file(source: Path, tmp_path: Path) -> None:
    for name, options in (("whole", ()), ("sparse", ("--sparse",))):
        daxfs("import", source, tmp_path / name, *options)
        assert (tmp_path / name).read_bytes() == source.read_bytes()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert allocated(tmp_path / "whole") >= SIZE
    assert allocated(tmp_path / "sparse") <= allocated(source) + MIB


def test_import_into_an_old_pool_leaves_nothing_of_it(source: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.write_bytes(b"\xa5" * SIZE)
    pool.chmod(0o644)
    daxfs("import", source, pool, "--keep-mode")
    assert pool.read_bytes() == source.read_bytes()
    assert pool.stat().st_mode & 0o777 == 0o644
    assert "holds an ext2, ext3 or ext4 file system; to overwrite it add --force" in one_line(
        daxfs("import", source, pool, code=1)
    )
    assert pool.stat().st_mode & 0o777 == 0o644, "a refusal changes nothing"
    daxfs("import", source, pool, "--force")
    assert pool.stat().st_mode & 0o777 == 0o600


def piped(*arguments: str | Path, **streams: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


def test_pipes(source: Path, tmp_path: Path) -> None:
    done = piped("export", source, "-", capture_output=True)
    assert (done.returncode, done.stdout == source.read_bytes(), done.stderr) == (0, True, b"")
    done = piped("import", "-", tmp_path / "pool", "--sparse", input=done.stdout, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "pool").read_bytes() == source.read_bytes()
    assert allocated(tmp_path / "pool") < 10 * MIB
    os.mkfifo(tmp_path / "fifo")
    reader = threading.Thread(target=piped, args=("import", tmp_path / "fifo", tmp_path / "other"))
    reader.start()
    daxfs("export", source, tmp_path / "fifo")
    reader.join()
    assert (tmp_path / "other").read_bytes() == source.read_bytes()


def test_a_reader_that_leaves_is_an_error_of_an_export(source: Path) -> None:
    command = f"{' '.join(COMMAND)} export {source} - | head -c 5000 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert one_line(done.stderr) == "daxfs: the reader of the export has ended before the end of the pool\n"


def test_terminals_are_refused_and_show_progress(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        for arguments in (("export", source, "-"), ("import", "-", tmp_path / "pool")):
            done = piped(*arguments, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
            assert done.returncode == 64
            assert b"terminal" in done.stderr
        assert piped("export", source, tmp_path / "copy", stdout=subprocess.DEVNULL, stderr=theirs).returncode == 0
        assert b"exporting" in os.read(ours, 10000)
    finally:
        os.close(ours)
        os.close(theirs)


def test_export_replaces_nothing_by_accident(source: Path, tmp_path: Path) -> None:
    copy, link = tmp_path / "copy", tmp_path / "link"
    copy.write_bytes(b"precious")
    link.symlink_to(copy)
    for file in (copy, link):
        assert "exists; to replace it add --force" in one_line(daxfs("export", source, file, code=1))
    assert copy.read_bytes() == b"precious"
    daxfs("export", source, link, "--force")
    assert link.is_symlink()
    assert copy.read_bytes() == source.read_bytes()
    assert "is the pool itself" in one_line(daxfs("export", source, source, "--force", code=1))
    assert "is the pool itself" in one_line(daxfs("import", source, source, "--force", code=1))
    assert "is a directory" in one_line(daxfs("export", source, tmp_path, code=1))
    one_line(daxfs("export", tmp_path / "none", tmp_path / "other", code=32))
    one_line(daxfs("import", tmp_path / "none", tmp_path / "other", code=66))
    one_line(daxfs("export", source, tmp_path / "no" / "where", code=1))
    place = tmp_path / "no" / "where"
    said = f"daxfs: the folder of {place} does not exist; make it, or name another place\n"
    assert one_line(daxfs("import", source, place, code=32)) == said
    assert one_line(daxfs("mkfs", place, "--size", "16M", code=32)) == said
    assert not (tmp_path / "other").exists()


def test_a_file_that_comes_meanwhile_is_not_replaced(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with pytest.raises(UserError, match="exists by now"):
        export(str(source), str(copy), progress=lambda *_: copy.write_bytes(b"precious") and None)
    assert copy.read_bytes() == b"precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["copy", "source"]


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_export_that_is_cut_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(str(source), str(tmp_path / "copy"), progress=stop)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_import_that_is_cut_leaves_no_file_system(source: Path, tmp_path: Path) -> None:
    pool = mke2fs(tmp_path / "pool", size="16M")
    with pytest.raises(KeyboardInterrupt):
        import_pool(str(source), str(pool), importing.Options(force=True), stop)
    assert not any(pool.read_bytes()[: pieces.HEAD])
    with pytest.raises(KeyboardInterrupt):
        import_pool(str(source), str(tmp_path / "new"), progress=stop)
    assert not (tmp_path / "new").exists()


def test_the_superblock_is_stored_last(source: Path) -> None:
    steps: list[str] = []

    class Watched(MemoryPool):
        def data_ranges(self) -> Iterator[tuple[int, int]]:
            steps.append("begin" if not any(self.memory[: pieces.HEAD]) else "valid")
            return super().data_ranges()

    content = source.read_bytes()
    pool = Watched(content)
    store = pool.fence

    def fence() -> None:
        steps.append("whole" if pool.memory == content else "headless" if pool.memory[4096:] == content[4096:] else "?")
        store()

    pool.fence = fence
    with open_pool(source, read_only=True) as original:
        pieces.into_pool(pool, content[: pieces.HEAD], pieces.of_pool(original))
    assert steps == ["headless", "begin", "headless", "whole"]


@pytest.mark.parametrize("busy", ["source", "target"])
def test_a_pool_in_use_is_refused(source: Path, tmp_path: Path, busy: str) -> None:
    target = mke2fs(tmp_path / "target", size="16M")
    target.chmod(0o640)
    before = target.read_bytes()
    with open_pool(source if busy == "source" else target):
        if busy == "source":
            assert "in use" in one_line(daxfs("export", source, tmp_path / "copy", code=32))
        assert "in use" in one_line(daxfs("import", source, target, "--force", code=32))
    assert target.read_bytes() == before
    assert target.stat().st_mode & 0o777 == 0o640
    assert not (tmp_path / "copy").exists()


def test_what_does_not_fit_is_refused(source: Path, tmp_path: Path) -> None:
    small, cut, other = tmp_path / "small", tmp_path / "cut", tmp_path / "other"
    small.write_bytes(b"\xa5" * (8 * MIB))
    cut.write_bytes(source.read_bytes()[: 10 * MIB])
    other.write_bytes(b"\x5a" * (8 * MIB))
    assert "has 8 MiB, less than the 16 MiB of" in one_line(daxfs("import", source, small, code=1))
    assert "it was cut short" in one_line(daxfs("import", cut, tmp_path / "pool", code=1))
    assert "holds no ext4 file system" in one_line(daxfs("import", other, tmp_path / "pool", code=1))
    done = piped("import", "-", small, input=source.read_bytes(), capture_output=True)
    assert (done.returncode, b"less than the 16 MiB of standard input" in done.stderr) == (1, True)
    assert not small.read_bytes().strip(b"\xa5")
    assert not (tmp_path / "pool").exists()
    done = piped("import", "-", tmp_path / "pool", input=cut.read_bytes(), capture_output=True)
    assert (done.returncode, b"ended after 10485760 of 16777216 bytes" in done.stderr) == (1, True)
    assert not (tmp_path / "pool").exists()
    done = piped("import", "-", tmp_path / "pool", "--force", input=other.read_bytes(), capture_output=True)
    assert (done.returncode, b"does not say how large it is" in done.stderr) == (1, True)
    assert not (tmp_path / "pool").exists()
    done = piped("import", "-", small, "--force", input=other.read_bytes(), capture_output=True)
    assert (done.returncode, small.read_bytes() == other.read_bytes()) == (0, True)
    daxfs("import", other, tmp_path / "pool", "--force")
    assert (tmp_path / "pool").read_bytes() == other.read_bytes()


def test_no_room(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "tmpfs"
    place.mkdir()
    with tmpfs(place, "size=2m"):
        one_line(daxfs("export", source, place / "copy", code=1))
        one_line(daxfs("import", source, place / "pool", code=1))
        assert "no room" in one_line(daxfs("import", source, place / "pool", "--sparse", code=1))
        assert list(place.iterdir()) == []


@contextmanager
def poisoned(path: str, **options: bool) -> Iterator[Pool]:
    with open_pool(path, **options) as pool:
        if not pool.read_only:
            yield pool
            return
        poison = Poison(pool)
        poison.add(next(iter(pool.data_ranges()))[1] - 1)
        yield pool
        poison.close()


def test_missing_memory_is_one_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "open_pool", poisoned)
    monkeypatch.setattr(importing, "open_pool", poisoned)
    with pytest.raises(MissingMemory):
        export(str(source), str(tmp_path / "copy"))
    with pytest.raises(MissingMemory):
        import_pool(str(source), str(tmp_path / "pool"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_rescue_copies_all_but_what_is_missing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bytearray(source.read_bytes())
    filled = [page for page in range(MIB, SIZE, 4096) if any(expected[page : page + 4096])]
    pages = [filled[-20], filled[-19], filled[-16]]
    assert pages[1] - pages[0] == 4096
    assert pages[2] - pages[1] == 3 * 4096
    for page in pages:
        expected[page : page + 4096] = bytes(4096)

    @contextmanager
    def partly_bad(path: str, **options: bool) -> Iterator[Pool]:
        with open_pool(path, **options) as pool:
            poison = Poison(pool)
            poison.add(pages[0])
            poison.add(pages[2])
            pool.bad.add(pages[1], pages[1] + 1)
            yield pool
            poison.close()

    source.write_bytes(source.read_bytes())  # without holes
    monkeypatch.setattr(exporting, "open_pool", partly_bad)
    copy = tmp_path / "copy"
    daxfs("export", source, copy, code=1)
    assert not copy.exists()
    said = one_line(daxfs("export", "--rescue", source, copy, code=1))
    assert f"12288 bytes from offset {pages[0]} on, in 2 ranges, are missing and zero in the copy" in said
    assert copy.read_bytes() == expected


def test_what_was_cut_off_is_no_hole(source: Path) -> None:
    with open_pool(source, read_only=True) as pool:
        os.truncate(source, 8 * MIB)
        with pytest.raises(MissingMemory, match=f"was cut to {8 * MIB} bytes"):
            list(pieces.of_pool(pool))
        lost: list[ByteRange] = []
        assert sum(piece.length for piece in pieces.of_pool(pool, lost)) == SIZE
        assert lost == [(8 * MIB, SIZE)]


def test_errors_name_the_file_of_an_export(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "absent" / "copy"
    assert one_line(daxfs("export", source, place, code=1)) == f"daxfs: {place}: No such file or directory\n"
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, "export", str(source), "-"]
        failed = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert failed.stderr == b"daxfs: standard output: No space left on device\n"
    small = tmp_path / "small"
    small.mkdir()
    with tmpfs(small, "size=64k"):
        said = one_line(daxfs("export", source, small / "copy", code=1))
        assert said == f"daxfs: {small}/copy: No space left on device\n"


def test_bad_memory_is_one_error(source: Path) -> None:
    with open_pool(source, read_only=True) as pool:
        pool.bad.add(4096, 4097)
        with pytest.raises(BadMemory, match=r"bad memory at offset 4096; see: daxfs badblocks .*/source"):
            list(pieces.of_pool(pool))


def test_a_pool_that_others_can_change_is_refused(source: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.write_bytes(bytes(SIZE))
    pool.chmod(0o666)
    one_line(daxfs("import", source, pool, code=32))
    daxfs("import", source, pool, "--trust-owner")


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_anything(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randrange(1, 40) * (64 << 10) + chance.choice((0, 1024, 5 << 10))
    content = bytearray(size)
    for _ in range(chance.randrange(8)):
        begin = chance.randrange(size)
        length = min(chance.choice((1, 4096, 65536, 300_000)), size - begin)
        content[begin : begin + length] = chance.randbytes(length)
    original = MemoryPool(bytes(content))
    target = MemoryPool(chance.randbytes(size))
    pieces.into_pool(target, bytes(content[: pieces.HEAD]), pieces.of_pool(original))
    assert target.memory == content
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        pieces.into_file(file.fileno(), pieces.of_pool(original))
        file.truncate(size)
        assert (tmp_path / "file").read_bytes() == content
        ends = [0]
        for piece in pieces.of_pool(original):
            assert piece.offset == ends[-1]
            assert piece.length > 0
            ends.append(piece.offset + piece.length)
        assert ends[-1] == size
        file.seek(pieces.HEAD)
        other = MemoryPool(chance.randbytes(size))
        pieces.into_pool(other, bytes(content[: pieces.HEAD]), pieces.of_stream(file.read, pieces.HEAD))
        assert other.memory == content
    read, write = os.pipe()
    os.set_blocking(write, True)
    writer = threading.Thread(target=_send, args=(write, original))
    writer.start()
    with os.fdopen(read, "rb") as stream:
        assert stream.read() == content
    writer.join()


def _send(descriptor: int, pool: Pool) -> None:
    pieces.into_stream(descriptor, pieces.of_pool(pool))
    os.close(descriptor)
