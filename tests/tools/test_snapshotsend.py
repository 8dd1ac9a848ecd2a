"""``daxfs snapshot send`` and ``receive``: the image is the snapshot, or is said not to be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from cli_rig import daxfs
from crash_rig import OPERATIONS, Picture, Workbench, image
from mount_rig import COMMAND, mounted
from snapshot_rig import tree
from tree_rig import QUIET

from daxfs.errors import UserError
from daxfs.ext4.superblock import SUPERBLOCK_OFFSET
from daxfs.fs import imaging
from daxfs.fs.filesystem import FileSystem
from daxfs.fs.types import Options
from daxfs.pmem import kinds
from daxfs.pmem.memory import MemoryPool
from daxfs.pmem.opening import open_pool
from daxfs.pmem.pool import Pool
from daxfs.snapshots import received, stream
from daxfs.tools import snapshotsend, snapshotsource
from support import fsck, run

MAGIC_AT = SUPERBLOCK_OFFSET + 0x38
STEPS = (
    (b"a", ("write new", "overwrite", "punch")),
    (b"b", ("unlink", "mkdir", "rename")),
    (b"c", ("overwrite and append", "write new in d", "unlink big")),
)


@pytest.fixture(params=["4k", "1k"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Picture]]:
    """A pool with three snapshots, and the tree of each."""
    path = tmp_path / "pool"
    path.write_bytes(image(request.param))
    pictures = {}
    with FileSystem.open(path, QUIET) as fs:
        fs.tree.write_bytes("base", b"base" * 20_000)
        for name, operations in STEPS:
            pictures[name.decode()] = tree(fs)
            fs.create_snapshot(name)
            for operation in operations:
                OPERATIONS[operation](Workbench(fs))
            fs.sync()
    return path, pictures


@pytest.fixture
def one(pool: tuple[Path, dict[str, Picture]]) -> Path:
    return pool[0]


def sent(pool: Path, name: str, since: str = "") -> Path:
    """The stream in a file."""
    file = pool.with_name(f"{name}-{since}.stream")
    snapshotsend.send(str(pool), name, str(file), since=since, force=True)
    return file


def get(target: Path, file: Path) -> None:
    snapshotsend.receive(str(target), str(file))


def holds(target: Path, pool: Path, name: str, picture: Picture | None = None) -> None:
    """Every chunk of the snapshot is in the image, which is a clean file system with its tree."""
    with snapshotsource.opened(str(pool)) as source:
        content = target.read_bytes()
        for offset, part in imaging.pieces(source.pool, source.past(snapshotsource.valid(source, name))):
            found = content[offset : offset + len(part)]
            assert found[received.END if not offset else 0 :] == part[received.END if not offset else 0 :]
    fsck(target)
    if picture is not None:
        with FileSystem.open(target, Options(read_only=True, atime="noatime")) as fs:
            assert tree(fs) == picture


def test_a_chain_of_streams_gives_each_snapshot(pool: tuple[Path, dict[str, Picture]]) -> None:
    path, pictures = pool
    target = path.with_name("image")
    for name, since in (("a", ""), ("b", "a"), ("c", "b")):
        get(target, sent(path, name, since))
        holds(target, path, name, pictures[name])
    other = path.with_name("other")
    for name, since in (("a", ""), ("c", "a")):
        get(other, sent(path, name, since))
    holds(other, path, "c", pictures["c"])


def test_a_stream_is_what_has_changed_and_little_more(one: Path) -> None:
    with open_pool(one, read_only=True) as opened:
        total = opened.size
    with snapshotsource.opened(str(one)) as source:
        a, b, _ = source.listing()
        pasts = [dict(imaging.pieces(source.pool, source.past(each))) for each in (a, b)]
        before, after = (bytearray(total) for _ in pasts)
        for made, parts in ((before, pasts[0]), (after, pasts[1])):
            for offset, part in parts.items():
                made[offset : offset + len(part)] = part
    changed = sum(before[at : at + 4096] != after[at : at + 4096] for at in range(0, total, 4096))
    written = sent(one, "b", "a").stat().st_size
    assert (changed << 12) * 0.9 < written < (changed + 12 << 12) * 1.01


def test_a_stream_that_ends_early_goes_on_where_it_stopped(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotsend, "NOTED_BYTES", 50_000)
    whole = sent(one, "b").read_bytes()
    part = one.with_name("part")
    target = one.with_name("image")
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is incomplete; go on with: .* --from [0-9]+$") as failed:
        get(target, part)
    with pytest.raises(UserError, match="the stream has no record"):
        rest(one, target, 0, whole[100_000:])
    offset = int(str(failed.value).rpartition(" ")[2])
    assert 0 < len(whole) // 2 - offset < 2 * stream.MOST_PAYLOAD
    assert "not an ext4 pool" in daxfs("info", target, code=65)
    snapshotsend.send(str(one), "b", str(part), start=offset, force=True)
    assert part.read_bytes() == whole[offset:]
    get(target, part)
    holds(target, one, "b")
    with pytest.raises(UserError, match="does not hold the beginning of this stream"):
        get(target, part)
    holds(target, one, "b")


def rest(pool: Path, target: Path, _offset: int, content: bytes) -> None:
    """Receive these bytes, which begin within the stream."""
    cut = pool.with_name("rest")
    at = content.index(stream.MAGIC)
    cut.write_bytes(content[at:])
    get(target, cut)


def test_what_the_image_no_longer_uses_is_given_back(tmp_path: Path) -> None:
    one, target = tmp_path / "pool", tmp_path / "image"
    one.write_bytes(image("4k"))
    with FileSystem.open(one, QUIET) as fs:
        fs.tree.write_bytes("large", b"\xee" * (1 << 20))
        fs.create_snapshot(b"d")
        fs.tree.unlink("large")
        fs.create_snapshot(b"e")
    get(target, sent(one, "d"))
    before = target.stat().st_blocks
    get(target, sent(one, "e", "d"))
    assert before - target.stat().st_blocks >= (1 << 19) // 512
    assert b"\xee" * 4096 not in target.read_bytes()
    holds(target, one, "e")


@pytest.mark.parametrize("kind", [kinds.TMPFS, kinds.DEVDAX])
def test_nothing_of_an_earlier_log_is_in_the_image(kind: str, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transactions have numbers that come again: a replay would take them for new ones."""
    target = one.with_name("image")
    get(target, sent(one, "a"))
    with FileSystem.open(target, QUIET) as fs:
        for number in range(20):
            fs.tree.write_bytes("mine", b"%d" % number)
            fs.sync()
        area = fs.volume.log_area
        assert area is not None
        places = [area.physical(at) << fs.volume.block_bits for at in range(4, area.blocks)]
        size = fs.volume.block_size
    kept = target.read_bytes()
    assert any(kept[place : place + size].strip(b"\0") for place in places)

    def opened(path: str) -> Pool:
        pool = open_pool(path)
        pool.kind = kind
        return pool

    monkeypatch.setattr(snapshotsend, "open_pool", opened)
    snapshotsend.receive(str(target), str(sent(one, "b")), force=True)
    kept = target.read_bytes()
    assert not any(kept[place : place + size].strip(b"\0") for place in places)
    holds(target, one, "b")


def test_a_size_that_no_image_can_have_leaves_no_file(one: Path) -> None:
    target, file = one.with_name("image"), one.with_name("hostile")
    for size, code in ((1 << 64) - 4096, 65), ((1 << 63) - 4096, 1), (1 << 62, 1):
        begin = stream.Begin(12, size, 4096, bytes(range(16)), stream.NO_BASE)
        file.write_bytes(b"".join(stream.written(begin, [(0, bytes(4096))])))
        said = daxfs("snapshot", "receive", target, file, code=code)
        assert said.count("\n") == 1
        assert not target.exists()


def test_an_interrupted_increment_is_neither_base_nor_result(one: Path) -> None:
    target, part = one.with_name("image"), one.with_name("part")
    get(target, sent(one, "a"))
    increment = sent(one, "b", "a")
    part.write_bytes(increment.read_bytes()[:-60])
    with pytest.raises(UserError, match="is incomplete"):
        get(target, part)
    assert "not an ext4 pool" in daxfs("info", target, code=65)
    with pytest.raises(UserError, match="holds a part of another stream"):
        get(target, sent(one, "c", "a"))
    get(target, increment)
    holds(target, one, "b")


def test_at_each_store_the_image_is_the_base_or_the_result_or_no_file_system(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotsend, "NOTED_BYTES", 20_000)
    target = one.with_name("image")
    get(target, sent(one, "a"))
    increment = sent(one, "b", "a")
    base = target.read_bytes()
    pool = MemoryPool(bytearray(base))
    store, clear = pool.write, pool.zero
    states: set[bytes] = set()

    def noticed() -> None:
        if pool.memory[MAGIC_AT : MAGIC_AT + 2] == b"\x53\xef":
            states.add(bytes(pool.memory[:512]) + bytes(pool.memory[received.END :]))

    pool.write = lambda offset, data: (store(offset, data), noticed())[0]
    pool.zero = lambda offset, length: (clear(offset, length), noticed())[0]
    monkeypatch.setattr(snapshotsend, "open_pool", lambda _path: nullcontext(pool))
    get(target, increment)
    result = bytes(pool.memory[:512]) + bytes(pool.memory[received.END :])
    assert states == {base[:512] + base[received.END :], result}
    found = received.found(pool)
    assert found is not None
    assert found.state == received.WHOLE


def changed_bytes(pool: Path, target: Path) -> Path:
    content = bytearray(sent(pool, "b", "a").read_bytes())
    content[len(content) // 2] ^= 4
    return written(target, content)


def reordered(pool: Path, target: Path) -> Path:
    content = sent(pool, "b", "a").read_bytes()
    second = content.index(stream.MAGIC, 32)
    third = content.index(stream.MAGIC, second + 4)
    fourth = content.index(stream.MAGIC, third + 4)
    return written(target, content[:second] + content[third:fourth] + content[second:third] + content[fourth:])


def cut(pool: Path, target: Path) -> Path:
    return written(target, sent(pool, "b", "a").read_bytes()[:-1])


def written(target: Path, content: bytes) -> Path:
    file = target.with_name("bad")
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("damage", [changed_bytes, reordered, cut])
def test_a_damaged_stream_is_one_line_and_leaves_no_result(one: Path, damage: Callable[[Path, Path], Path]) -> None:
    target = one.with_name("image")
    get(target, sent(one, "a"))
    said = daxfs("snapshot", "receive", target, damage(one, target), code=65)
    assert "is incomplete; go on with" in said
    assert said.count("\n") == 1
    assert "not an ext4 pool" in daxfs("info", target, code=65)
    get(target, sent(one, "b", "a"))
    holds(target, one, "b")


def test_what_does_not_suit_is_refused_and_unchanged(one: Path) -> None:
    target, other = one.with_name("image"), one.with_name("none")
    get(target, sent(one, "a"))
    first, increment = sent(one, "a"), sent(one, "c", "b")
    noise = written(target, b"noise" * 100)
    before = target.read_bytes()
    for code, arguments, words in (
        (65, (target, noise), "no stream of daxfs"),
        (65, (target, "/dev/null"), "no stream of daxfs"),
        (65, (other, noise), "no stream of daxfs"),
        (66, (target, one.with_name("gone")), "No such file"),
        (1, (target, increment), "does not hold the snapshot that the stream goes on from"),
        (1, (target, first), "add --force"),
        (1, (other, increment), "the stream needs a base"),
        (1, (one, increment), "does not hold the snapshot"),
    ):
        said = daxfs("snapshot", "receive", *arguments, code=code)
        assert words in said
        assert said.count("\n") == 1
    assert target.read_bytes() == before
    assert not other.exists()
    for code, arguments, words in (
        (1, (one, "d"), "there is no snapshot of this name"),
        (1, (one, "a", other, "--since", "d"), "there is no snapshot of this name"),
        (1, (one, "a", other, "--since", "b"), "is not newer"),
        (1, (one, "a", other, "--since", "a"), "is not newer"),
        (1, (one, "a", first), "exists; to replace it add --force"),
        (64, (one, "a", other, "--from", "1" + "0" * 12), "fewer than"),
    ):
        assert words in daxfs("snapshot", "send", *arguments, code=code)
        assert not other.exists()


def test_a_base_that_was_changed_since_is_refused(one: Path) -> None:
    target = one.with_name("image")
    get(target, sent(one, "a"))
    with FileSystem.open(target, QUIET) as fs:
        fs.tree.write_bytes("mine", b"x")
    before = target.read_bytes()
    with pytest.raises(UserError, match="was changed since it was received"):
        get(target, sent(one, "b", "a"))
    assert target.read_bytes() == before


def test_a_pipe_between_a_busy_mount_and_a_file(one: Path) -> None:
    target = one.with_name("image")
    with mounted(one) as mount:
        (mount.place / "new").write_bytes(b"x" * 100_000)
        stream_of_it = one.with_name("stream")
        snapshotsend.send(str(mount.place), "a", str(stream_of_it))
        assert "is in use" in daxfs("snapshot", "receive", one, stream_of_it, "--force", code=32)
        command = " ".join(COMMAND)
        run("sh", "-c", f"{command} snapshot send {mount.place} a | {command} snapshot receive {target}")
        run("sh", "-c", f"{command} snapshot send {mount.place} c --since a | {command} snapshot receive {target}")
        holds(target, mount.place, "c")
