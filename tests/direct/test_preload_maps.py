"""Mappings below the preload library: which memory they show, how long they live, what happens to the file meanwhile.

Each test runs a small program below the library, where `direct(address)` returns whether an address shows the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import SESSIONS, Mounted, mounted
from preloaded_actors import run_python

HELPERS = """
import ctypes, mmap, os, signal, sys
PAGE, MIB = 4096, 1 << 20
SHARED, PRIVATE, FIXED, ANONYMOUS, POPULATE = 1, 2, 16, 32, 0x8000
R, W, RW = 1, 2, 3
libc = ctypes.CDLL(None, use_errno=True)
size_t, number, pointer = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
libc.mmap.restype = libc.mremap.restype = pointer
libc.mmap.argtypes = (pointer, size_t, number, number, number, ctypes.c_int64)
libc.munmap.argtypes = (pointer, size_t)
libc.mremap.argtypes = (pointer, size_t, size_t, number, pointer)
libc.mprotect.argtypes = libc.msync.argtypes = libc.madvise.argtypes = (pointer, size_t, number)
def checked(result):
    if result in (-1, (1 << 64) - 1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def map(fd, length, offset=0, prot=RW, flags=SHARED, at=None):
    return checked(libc.mmap(at, length, prot, flags, fd, offset))
def unmap(address, length):
    checked(libc.munmap(address, length))
def maps():
    for line in open("/proc/self/maps"):
        place, rights, offset, _, _, *name = line.split(None, 5)
        low, high = (int(end, 16) for end in place.split("-"))
        yield low, high, rights, int(offset, 16), "".join(name).strip()
def direct(address):
    return any(low <= address < high and name == POOL for low, high, _, _, name in maps())
def named(name):
    return sum(found == name for *_, found in maps())
def get(address, length):
    return ctypes.string_at(address, length)
def put(address, content):
    ctypes.memmove(address, content, len(content))
def dies(action):
    child = os.fork()
    if not child:
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return signal.Signals(-code).name if code else ""
def make(name, size, content=b""):
    fd = os.open(name, os.O_RDWR | os.O_CREAT)
    os.write(fd, content or b"x" * size)
    os.ftruncate(fd, size)
    return fd
ROOT, POOL = sys.argv[1:3]
os.chdir(ROOT)
"""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for this module: the programs use files of their own names."""
    from support import mke2fs

    image = mke2fs(tmp_path_factory.mktemp("map") / "pool", "-b", "4096", size="256M")
    with mounted(image, *SESSIONS["kernel"]) as mount:
        yield mount


@pytest.fixture
def run(mount: Mounted) -> Callable[..., str]:
    """Run a script on the mount, below the library."""
    return lambda script, *more, **others: run_python(
        HELPERS + script, mount.place, mount.pool.resolve(), *more, **others
    )


def test_a_mapping_is_the_pool_and_the_file(run: Callable[..., str]) -> None:
    run("""
fd = make("one", 5 * MIB + 100)
for flags, prot in ((SHARED, RW), (SHARED, R), (PRIVATE, RW), (PRIVATE, R), (SHARED | POPULATE, RW)):
    at = map(fd, 5 * MIB + 100, prot=prot, flags=flags)
    assert direct(at) and direct(at + 5 * MIB), (flags, prot)
    assert get(at + 5 * MIB, 101) == b"x" * 100 + b"\\0"
    unmap(at, 5 * MIB + 100)
at = map(fd, 2 * MIB, 3 * MIB)
put(at, b"stored")
assert os.pread(fd, 7, 3 * MIB) == b"storedx"
os.pwrite(fd, b"written", 4 * MIB)
assert get(at + MIB, 8) == b"writtenx"
unmap(at, 2 * MIB)
assert named(os.path.realpath("one")) == 0, "no anchor is left"
""")


def test_what_is_not_for_memory_is_mapped_as_ever(run: Callable[..., str]) -> None:
    run("""
fd = make("plain", MIB)
at = map(fd, MIB, prot=R | 4, flags=PRIVATE)
assert not direct(at) and get(at, 2) == b"xx"
only = os.open("plain", os.O_RDONLY)
for arguments in ((only, MIB, 0, RW, SHARED), (os.open("plain", os.O_WRONLY), MIB), (fd, MIB, 100), (fd, 0)):
    try:
        map(*arguments)
    except OSError as error:
        assert error.errno in (13, 22), error
    else:
        assert False, arguments
at = map(only, MIB, prot=R)
assert direct(at)
assert libc.mprotect(at, PAGE, RW) == -1 and ctypes.get_errno() == 13
""")


def test_large_files_lie_right_for_huge_pages(run: Callable[..., str]) -> None:
    run("""
fd = make("large", 16 * MIB)
at = map(fd, 16 * MIB)
for low, high, _, offset, name in maps():
    if name == POOL and at <= low < at + 16 * MIB and high - low >= 4 * MIB:
        assert (low - offset) % (2 * MIB) == 0
        break
else:
    assert False, "no large piece"
""")


@pytest.mark.parametrize("fill", [True, False])
def test_holes(run: Callable[..., str], fill: bool) -> None:
    """Small holes get blocks if the mapping may store; others are the kernel's, and all ways show the same bytes."""
    run(
        """
fill = sys.argv[3] == "True"
fd = make("sparse" + sys.argv[3], (8 if fill else 80) * MIB, b"begin")
at = map(fd, 8 * MIB if fill else 80 * MIB)
assert direct(at) and direct(at + MIB) == fill
assert get(at + MIB, 3) == bytes(3)
put(at + MIB, b"stored")
os.pwrite(fd, b"written", 2 * MIB)
assert os.pread(fd, 6, MIB) == b"stored"
assert get(at + 2 * MIB, 7) == b"written"
os.pwrite(fd, b"again", MIB)
assert get(at + MIB, 6) == b"againd"
assert libc.msync(at, 8 * MIB, 4) == 0
assert os.fstat(fd).st_blocks * 512 < 9 * MIB
""",
        str(fill),
    )


def test_it_outlives_its_descriptors(run: Callable[..., str]) -> None:
    """Blocks that a file gave up belong to no other file while they are mapped, whatever descriptors are closed."""
    run("""
libc.closefrom.argtypes = (number,)
kept = []
for number, close in enumerate((os.close, libc.closefrom)):
    fd = make(f"kept{number}", 4 * MIB)
    at = map(fd, 4 * MIB)
    close(fd)
    os.unlink(f"kept{number}")
    put(at, b"mine")
    kept.append(at)
other = make("other", 64 * MIB, b"o" * (64 * MIB))
os.fsync(other)
for at in kept:
    assert direct(at) and get(at, 5) == b"minex" and get(at + 4 * MIB - 3, 3) == b"xxx"
    unmap(at, 4 * MIB)
assert os.pread(other, 64 * MIB, 0) == b"o" * (64 * MIB)
os.unlink("other")
""")


def test_partial_unmaps(run: Callable[..., str]) -> None:
    run("""
fd = make("partial", 8 * MIB)
at = map(fd, 8 * MIB)
anchors = named(os.path.realpath("partial"))
unmap(at + 2 * MIB, MIB)
unmap(at, PAGE)
assert dies(lambda: get(at, 1)) == dies(lambda: get(at + 2 * MIB, 1)) == "SIGSEGV"
put(at + PAGE, b"front")
put(at + 3 * MIB, b"back")
os.ftruncate(fd, 3 * MIB)
assert dies(lambda: get(at + 3 * MIB, 1)) == "SIGBUS"
assert dies(lambda: get(at + 2 * MIB, 1)) == "SIGSEGV", "nothing is mapped where the program has unmapped"
os.ftruncate(fd, 8 * MIB)
assert get(at + 3 * MIB, 4) == bytes(4) and get(at + PAGE, 5) == b"front"
unmap(at, 8 * MIB)
assert named(os.path.realpath("partial")) == 0 and anchors == 1
""")


def test_mapping_over_a_mapping(run: Callable[..., str]) -> None:
    run("""
fd, other = make("below", 4 * MIB), make("above", 4 * MIB, b"a" * (4 * MIB))
at = map(fd, 4 * MIB)
assert map(other, MIB, MIB, flags=SHARED | FIXED, at=at + MIB) == at + MIB
assert map(-1, MIB, flags=PRIVATE | ANONYMOUS | FIXED, at=at + 2 * MIB) == at + 2 * MIB
assert [get(at + part * MIB, 1) for part in range(4)] == [b"x", b"a", b"\\0", b"x"]
put(at + 2 * MIB, b"anonymous")
os.ftruncate(fd, 0)
assert [get(at + part * MIB, 1) for part in (1, 2)] == [b"a", b"a"]
assert dies(lambda: get(at, 1)) == dies(lambda: get(at + 3 * MIB, 1)) == "SIGBUS"
os.ftruncate(other, MIB)
assert dies(lambda: get(at + MIB, 1)) == "SIGBUS" and get(at + 2 * MIB, 9) == b"anonymous"
""")


def test_moving_and_growing(run: Callable[..., str]) -> None:
    run("""
fd = make("grow", 16 * MIB)
for size in (1, 16):
    os.pwrite(fd, b"%2d" % size, (size - 1) * MIB)
at = map(fd, MIB)
libc.mmap(at + MIB, PAGE, RW, PRIVATE | ANONYMOUS | 0x100000, -1, 0)  # MAP_FIXED_NOREPLACE: no room after it
try:
    checked(libc.mremap(at, MIB, 2 * MIB, 0, None))
except OSError as error:
    assert error.errno == 12
else:
    assert False, "there was no room"
new = checked(libc.mremap(at, MIB, 16 * MIB, 1, None))
assert new != at
assert get(new, 2) == b" 1" and get(new + 15 * MIB, 2) == b"16"
assert direct(new) and direct(new + 15 * MIB)
assert dies(lambda: get(at, 1)) == "SIGSEGV"
assert checked(libc.mremap(new, 16 * MIB, MIB, 0, None)) == new
assert dies(lambda: get(new + MIB, 1)) == "SIGSEGV"
assert checked(libc.mremap(new, MIB, 4 * MIB, 0, None)) == new and get(new + 4 * MIB - 1, 1) == b"x"
place = map(-1, 32 * MIB, flags=PRIVATE | ANONYMOUS)
assert checked(libc.mremap(new, 4 * MIB, 20 * MIB, 3, place)) == place
assert get(place, 2) == b" 1" and dies(lambda: get(place + 16 * MIB, 1)) == "SIGBUS"
put(place, b"moved")
assert os.pread(fd, 5, 0) == b"moved"
own = map(fd, MIB, flags=PRIVATE)
put(own, b"own")
assert checked(libc.mremap(own, MIB, 2 * PAGE, 1, None)) == own and get(own, 3) == b"own"
""")


def test_a_growing_file(run: Callable[..., str]) -> None:
    run("""
fd = make("growing", PAGE)
at = map(fd, 4 * MIB)
assert dies(lambda: get(at + PAGE, 1)) == "SIGBUS"
for size in (2 * PAGE, MIB, 4 * MIB):
    os.ftruncate(fd, size)
    put(at + size - 3, b"end")
    assert os.pread(fd, 4, size - 3) == b"end"
    os.pwrite(fd, b"END", size - 3)
    assert get(at + size - 3, 3) == b"END"
os.lseek(fd, 0, 2)
for part in range(300):
    os.write(fd, b"%03d" % part)
assert os.pread(fd, 3, 4 * MIB + 897) == b"299"
""")


def test_a_cut_without_a_descriptor(run: Callable[..., str]) -> None:
    """Pieces past EOF give SIGBUS although no descriptor is left to map them anew."""
    run("""
fd = make("cut", 4 * MIB)
at, own = map(fd, 4 * MIB), map(fd, 4 * MIB, flags=PRIVATE)
put(own, b"own")
os.close(fd)
os.truncate("cut", MIB + 10)
for place in (at, own):
    assert get(place + MIB, 12) == b"x" * 10 + bytes(2)
    assert dies(lambda: get(place + MIB + PAGE, 1)) == dies(lambda: get(place + 4 * MIB - 1, 1)) == "SIGBUS"
assert get(own, 4) == b"ownx"
""")


def test_forks_share_it(run: Callable[..., str]) -> None:
    run("""
fd = make("forked", 4 * MIB)
at = map(fd, 4 * MIB)
child = os.fork()
if not child:
    put(at, b"child")
    os.close(fd)
    os.unlink("forked")
    again = make("forked2", MIB)
    assert direct(map(again, MIB))
    unmap(at + MIB, MIB)
    put(at + 2 * MIB, b"after all")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert get(at, 5) == b"child" and get(at + 2 * MIB, 9) == b"after all" and get(at + MIB, 1) == b"x"
# The child has what the parent gives back: nobody may get it while the child lives.
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.write(ready[1], b".")
    os.read(go[0], 1)
    os._exit(get(at, 5) != b"child" or get(at + 3 * MIB, 5) != b"xxxxx")
os.read(ready[0], 1)
unmap(at, 4 * MIB)
os.ftruncate(fd, 0)
os.pread(fd, 10, 0)
os.pwrite(fd, b"n" * MIB, 0)
for _ in range(3):
    os.pread(fd, MIB, 0)
filler = make("filler", 32 * MIB, b"f" * (32 * MIB))
os.fsync(filler)
os.write(go[1], b".")
assert os.waitpid(child, 0)[1] == 0
os.unlink("filler")
""")


def test_exec_and_threads(run: Callable[..., str]) -> None:
    run("""
import subprocess, threading
fd = make("threads", 4 * MIB)
at = map(fd, 4 * MIB)
assert subprocess.run(["cat", "threads"], capture_output=True).stdout == b"x" * (4 * MIB)
wrong = []
def work(part):
    for turn in range(200):
        here = map(fd, MIB, part * MIB)
        put(here + turn, b"%c" % (65 + part))
        if os.pread(fd, 1, part * MIB + turn) != b"%c" % (65 + part):
            wrong.append((part, turn))
        unmap(here, MIB)
threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads):
    assert dies(lambda: get(at, MIB)) == ""
for thread in threads: thread.join()
assert not wrong, wrong[:5]
assert get(at + 3 * MIB, 200) == b"D" * 200
""")


def test_madvise(run: Callable[..., str]) -> None:
    """MADV_REMOVE makes a hole in the file, not in the pool."""
    run("""
fd = make("advice", 4 * MIB)
at = map(fd, 4 * MIB)
assert libc.madvise(at, 4 * MIB, 4) == 0 and get(at, 1) == b"x"
before = os.fstat(fd).st_blocks
assert libc.madvise(at + MIB, MIB, 9) == 0
assert os.fstat(fd).st_blocks < before
assert get(at + MIB, MIB) == bytes(MIB) == os.pread(fd, MIB, MIB)
assert get(at + MIB - 1, 1) == get(at + 2 * MIB, 1) == b"x"
put(at + MIB, b"new")
assert os.pread(fd, 3, MIB) == b"new"
assert libc.madvise(at, 4 * MIB, 14) == 0
""")


def test_processes_share_it(run: Callable[..., str], mount: Mounted) -> None:
    """Each process sees what the others store, below the library and without it."""
    run("""
fd = make("shared", MIB)
at = map(fd, MIB)
put(at + 100, b"from below")
assert libc.msync(at, MIB, 4) == 0
put(at + 200, b"not synchronised")
""")
    content = (mount.place / "shared").read_bytes()
    assert content[100:110] == b"from below"
    assert content[200:216] == b"not synchronised"


def test_times_move(run: Callable[..., str]) -> None:
    run("""
fd = make("times", MIB)
os.close(fd)
os.utime("times", (1, 1))
fd = os.open("times", os.O_RDWR)
unmap(map(fd, MIB, prot=R), MIB)
os.close(fd)
assert os.stat("times").st_mtime == 1, "it was only read"
fd = os.open("times", os.O_RDWR)
at = map(fd, MIB)
put(at, b"stored")
assert libc.msync(at, PAGE, 4) == 0
assert os.stat("times").st_mtime > 1
os.utime("times", (1, 1))
put(at, b"again")
unmap(at, MIB)
os.close(fd)
assert os.stat("times").st_mtime > 1
""")


def test_small_blocks_may_lie_across_pages(pool: Callable[..., Path]) -> None:
    """The kernel maps such a file, and all reads and writes of it go through the kernel too."""
    image = pool("-b", "1024")
    with mounted(image, *SESSIONS["kernel"]) as mount:
        run_python(
            HELPERS
            + """
odd = make("odd", 1024)
fd = make("small", MIB + 1024)
at = map(fd, MIB + 1024)
for turn in range(20):
    put(at + turn * 1000, b"%04d" % turn)
    assert os.pread(fd, 4, turn * 1000) == b"%04d" % turn
    os.pwrite(fd, b"%04d" % (turn + 1), turn * 1000)
    assert get(at + turn * 1000, 4) == b"%04d" % (turn + 1)
child = os.fork()
if not child:
    other = os.open("small", os.O_RDWR)
    for turn in range(20):
        assert os.pread(other, 4, turn * 1000) == b"%04d" % (turn + 1)
        os.pwrite(other, b"%04d" % (turn + 7), turn * 1000)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for turn in range(20):
    assert get(at + turn * 1000, 4) == b"%04d" % (turn + 7)
assert os.pread(fd, MIB, 100000) == get(at + 100000, MIB + 1024 - 100000)
""",
            mount.place,
            image.resolve(),
        )


def test_mappings_of_a_file_show_one_memory(run: Callable[..., str]) -> None:
    """Where one mapping has to go through the kernel, the others do."""
    run("""
fd = make("same", MIB)
at = map(fd, MIB)
put(at + 5 * PAGE, b"first")
code = map(fd, 4 * PAGE, 4 * PAGE, prot=RW | 4)
assert direct(at) and not direct(at + 5 * PAGE) and get(code + PAGE, 5) == b"first"
put(code + PAGE, b"later")
assert get(at + 5 * PAGE, 5) == b"later" == os.pread(fd, 5, 5 * PAGE)
put(at + 5 * PAGE, b"again")
os.pwrite(fd, b"other", 6 * PAGE)
assert get(code + PAGE, 5) == b"again" == os.pread(fd, 5, 5 * PAGE) and get(code + 2 * PAGE, 5) == b"other"
unmap(code, 4 * PAGE), unmap(at, MIB)
for _ in range(3):
    os.pread(fd, 10, 0)
at = map(fd, MIB)
assert direct(at + 5 * PAGE) and get(at + 5 * PAGE, 5) == b"again"
""")


def test_a_pool_that_is_out_of_reach(mount: Mounted, run: Callable[..., str]) -> None:
    """A process that can't open the pool maps through the kernel."""
    mount.place.chmod(0o777)
    mount.pool.chmod(0o600)
    run("""
os.setgroups([]), os.setgid(65534), os.setuid(65534)
fd = make("nobody", MIB)
at = map(fd, MIB)
put(at, b"stored")
assert not direct(at) and os.pread(fd, 6, 0) == b"stored"
""")


def test_switched_off(run: Callable[..., str]) -> None:
    run('assert not direct(map(make("off", MIB), MIB))', DAXFS_DIRECT="0")
