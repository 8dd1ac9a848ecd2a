"""Programs that drop rights: a pool that they could no longer map is unmapped, and files continue through the kernel.

Mappings of files that the program made itself stay. The test reads in /proc whether the pool is mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lease_actor import holders
from mount_rig import NOBODY, Mounted, mounted_by_root
from preload_rig import Agent, agent

PART = 4096
SIZE = 16 * PART
PREPARE = "libc = ctypes.CDLL(None, use_errno=True)"
WARM = """
fd = os.open({path}, os.O_RDWR)
for _ in range(4):
    os.pread(fd, 65536, 0)
    os.pwrite(fd, b'warm', 0)
"""
DROP_CAPABILITIES = """
head = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(*[0] * 6)
{how}
"""
DROPS = {
    "setuid": "os.setuid({user})",
    "seteuid": "os.seteuid({user})",
    "setreuid": "os.setreuid({user}, {user})",
    "setresuid": "os.setresuid({user}, {user}, {user})",
    "setfsuid": "libc.setfsuid({user})",
    "syscall setresuid": "libc.syscall(117, {user}, {user}, {user})",
    "syscall setfsuid": "libc.syscall(122, {user})",
}


@pytest.fixture
def mount(pool: Callable[..., Path]) -> Iterator[Mounted]:
    """A mount whose pool root alone may open."""
    with mounted_by_root(pool("-b", "4096")) as mount:
        yield mount


@pytest.fixture
def worker(library: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(library) as made:
        made(PREPARE)
        yield made


def maps(worker: Agent, mount: Mounted) -> list[str]:
    """Return the lines of the pool in the agent's table of mappings."""
    table = Path(f"/proc/{worker.process.pid}/maps").read_text().splitlines()
    return [line for line in table if str(mount.pool) in line]


def opened(worker: Agent, mount: Mounted) -> tuple[Path, bytes]:
    """Have the agent open a file and map the pool."""
    path = mount.place / "file"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    path.chmod(0o666)
    worker(WARM, path=str(path))
    assert maps(worker, mount)
    assert holders(mount.place) == 1
    return path, b"warm" + content[4:]


def goes_on(worker: Agent, path: Path, content: bytes) -> None:
    """Check that the agent reads and writes the same bytes."""
    assert worker("os.pread(fd, 65536, 0)") == content
    assert worker("os.pwrite(fd, b'after', 5000)") == 5
    assert path.read_bytes() == content[:5000] + b"after" + content[5005:]
    worker("os.fsync(fd)")
    assert worker("os.pread(fd, 65536, 0)") == path.read_bytes()


@pytest.mark.parametrize("how", DROPS)
def test_another_user_has_no_pool(mount: Mounted, worker: Agent, how: str) -> None:
    path, content = opened(worker, mount)
    os.utime(path, (1, 1))
    worker("os.pwrite(fd, b'warm', 0)")
    worker(DROPS[how], user=NOBODY)
    assert maps(worker, mount) == []
    assert holders(mount.place) == 0
    assert path.stat().st_mtime > 1e9, "its stores were reported"
    goes_on(worker, path, content)
    assert maps(worker, mount) == []
    worker("os.close(fd)")


@pytest.mark.parametrize("how", ["libc.setegid", "libc.setregid", "libc.setresgid", "libc.setfsgid", "os.setgid"])
def test_another_group_has_no_pool(mount: Mounted, worker: Agent, how: str) -> None:
    mount.pool.chmod(0o660)
    worker(f"libc.setgroups(0, None); libc.setresgid({NOBODY}, 0, {NOBODY}); os.seteuid({NOBODY})")
    path, content = opened(worker, mount)
    numbers = {"libc.setregid": 2, "libc.setresgid": 3}.get(how, 1)
    worker(f"{how}({', '.join([str(NOBODY)] * numbers)})")
    assert maps(worker, mount) == []
    assert holders(mount.place) == 0
    goes_on(worker, path, content)


@pytest.mark.parametrize("how", ["libc.setgroups(0, None)", "os.initgroups('nobody', 65534)"])
def test_no_supplementary_group_no_pool(mount: Mounted, worker: Agent, how: str) -> None:
    """The program has only the capability to change groups, as daemons have it for a moment."""
    os.chown(mount.pool, 4711, 4712)
    mount.pool.chmod(0o060)
    keep = 1 << 6  # CAP_SETGID
    worker(f"os.setgroups([4712]); data = (ctypes.c_uint32 * 6)({keep}, {keep}, 0, 0, 0, 0)")
    worker("head = (ctypes.c_uint32 * 2)(0x20080522, 0); assert libc.capset(head, data) == 0")
    path, content = opened(worker, mount)
    worker(how)
    assert maps(worker, mount) == []
    goes_on(worker, path, content)


@pytest.mark.parametrize("how", ["libc.capset(head, data)", "libc.syscall(126, head, data)"])
def test_without_capabilities_no_pool_of_another_user(mount: Mounted, worker: Agent, how: str) -> None:
    os.chown(mount.pool, 4711, 4711)
    path, content = opened(worker, mount)
    worker(DROP_CAPABILITIES.replace("{how}", how))
    assert maps(worker, mount) == []
    assert holders(mount.place) == 0
    goes_on(worker, path, content)


def test_who_may_still_open_the_pool_keeps_it(mount: Mounted, worker: Agent) -> None:
    mount.pool.chmod(0o666)
    path, content = opened(worker, mount)
    worker("os.setuid({user})", user=NOBODY)
    assert maps(worker, mount)
    assert holders(mount.place) == 1
    goes_on(worker, path, content)


def test_a_pool_that_may_be_read_only_is_mapped_so(mount: Mounted, worker: Agent) -> None:
    mount.pool.chmod(0o644)
    path, content = opened(worker, mount)
    worker("os.setuid({user})", user=NOBODY)
    assert maps(worker, mount) == []
    for _ in range(300):
        assert worker("os.pread(fd, 65536, 0)") == content
    found = maps(worker, mount)
    assert {line.split()[1] for line in found} == {"r--s", "---s"}
    goes_on(worker, path, content)


def test_rights_that_come_back_give_memory_to_files_opened_then(mount: Mounted, worker: Agent) -> None:
    path, content = opened(worker, mount)
    worker("os.seteuid({user})", user=NOBODY)
    goes_on(worker, path, content)
    worker("os.seteuid(0); os.close(fd)")
    worker(WARM, path=str(path))
    assert worker("direct(lambda: os.pread(fd, 4096, 0))[1]") == 0
    assert maps(worker, mount)


def test_rights_that_change_and_nothing_is_open(worker: Agent) -> None:
    worker("os.seteuid({user}); os.seteuid(0); os.setuid({user})", user=NOBODY)


@pytest.mark.parametrize("sharing", ["mmap.MAP_SHARED", "mmap.MAP_PRIVATE"])
def test_mappings_of_files_stay(mount: Mounted, worker: Agent, sharing: str) -> None:
    path, content = opened(worker, mount)
    worker("import mmap; place = mmap.mmap(fd, 65536, " + sharing + ")")
    before = len(maps(worker, mount))
    worker("os.setuid({user})", user=NOBODY)
    lines = maps(worker, mount)
    size = mount.pool.stat().st_size
    spans = [line.split()[0].split("-") for line in lines if not line.split()[1].startswith("---")]
    assert spans, "the file's own"
    assert before > len(spans)
    assert all(int(end, 16) - int(start, 16) < size for start, end in spans)
    assert worker("place[:]") == content
    worker("place[100:105] = b'still'; place.flush(); os.fsync(fd)")
    if sharing == "mmap.MAP_SHARED":
        content = content[:100] + b"still" + content[105:]
    assert path.read_bytes() == content
    goes_on(worker, path, content)
    worker("place.close(); os.close(fd)")
    assert maps(worker, mount) == []
    assert holders(mount.place) == 0


def test_threads_go_on_while_rights_go(mount: Mounted, worker: Agent) -> None:
    path, content = opened(worker, mount)
    worker(
        "import threading\n"
        "wrong, done = [], []\n"
        "def work():\n"
        "    while not done:\n"
        "        if os.pread(fd, 8192, 8192) != {part} or os.pwrite(fd, {part}, 8192) != 8192: wrong.append(1)\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "for turn in range(30): os.seteuid({user}); os.seteuid(0); os.close(os.open({path}, os.O_RDONLY))\n"
        "os.setuid({user})\n"
        "done.append(1)\n"
        "[thread.join() for thread in threads]",
        part=content[8192:16384],
        user=NOBODY,
        path=str(path),
    )
    assert worker("wrong") == []
    assert maps(worker, mount) == []
    assert path.read_bytes() == content
