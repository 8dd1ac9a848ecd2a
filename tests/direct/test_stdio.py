"""Streams of the C library below the preload library: mixed with reads, writes and mappings of the same descriptor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mount_rig import SESSIONS, Mounted, mounted
from preloaded_actors import run_python

from support import mke2fs

HELPERS = """
import ctypes, mmap, os, random, sys
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
for name in ("fopen", "fdopen", "freopen", "tmpfile"):
    getattr(libc, name).restype = ctypes.c_void_p
libc.fdopen.argtypes = (ctypes.c_int, ctypes.c_char_p)
libc.freopen.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
libc.fread.argtypes = libc.fwrite.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
for name in ("fclose", "__fpurge", "fflush", "fileno", "ftell"):
    getattr(libc, name).argtypes = (ctypes.c_void_p,)
libc.fseek.argtypes = (ctypes.c_void_p, ctypes.c_long, ctypes.c_int)
def fopen(name, mode):
    stream = libc.fopen(name.encode(), mode.encode())
    assert stream
    return stream
def fread(stream, size):
    memory = ctypes.create_string_buffer(size)
    got = libc.fread(memory, 1, size, stream)
    return memory.raw[:got]
def fwrite(stream, content):
    assert libc.fwrite(content, 1, len(content), stream) == len(content)
def warm(fd):
    for _ in range(4):
        assert os.pread(fd, 100000, 0)
"""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mount for this module."""
    image = mke2fs(tmp_path_factory.mktemp("stdio") / "pool", "-b", "4096")
    with mounted(image, *SESSIONS["kernel"]) as mount:
        yield mount


def test_streams_and_calls_in_turn(mount: Mounted) -> None:
    """Each side hands over as POSIX requires: flushed, and with the position set."""
    run_python(
        HELPERS
        + """
chance = random.Random(5)
stream = fopen("mixed", "w+")
fd = libc.fileno(stream)
model = bytearray(300000)
fwrite(stream, bytes(model))
assert libc.fflush(stream) == 0
for turn in range(2000):
    at, size = chance.randrange(200000), chance.choice((1, 10, 5000, 70000))
    content = bytes([chance.randrange(256)]) * size
    way = chance.randrange(6)
    if way == 0:
        assert libc.fseek(stream, at, 0) == 0
        fwrite(stream, content)
        assert libc.fflush(stream) == 0
    elif way == 1:
        os.pwrite(fd, content, at)
    elif way == 2:
        os.lseek(fd, at, 0)
        assert os.write(fd, content) == size
        assert os.lseek(fd, 0, 1) == at + size
    if way < 3:
        model[at : at + size] = content
    elif way == 3:
        libc.__fpurge(stream)
        assert libc.fseek(stream, at, 0) == 0
        assert fread(stream, size) == model[at : at + size]
        assert libc.ftell(stream) == at + size and libc.fflush(stream) == 0
        assert os.lseek(fd, 0, 1) == at + size
    elif way == 4:
        assert os.pread(fd, size, at) == model[at : at + size]
    else:
        os.lseek(fd, at, 0)
        assert os.read(fd, size) == model[at : at + size]
assert libc.fclose(stream) == 0
assert open("mixed", "rb").read() == model
""",
        mount.place,
    )


def test_a_number_that_a_stream_closed_is_another_file(mount: Mounted) -> None:
    run_python(
        HELPERS
        + """
for name in "ab":
    open(name, "wb").write(name.encode() * 200000)
fd = os.open("a", os.O_RDWR)
warm(fd)
libc.fclose(libc.fdopen(fd, b"r+"))
stream = fopen("b", "r+")
assert libc.fileno(stream) == fd
assert os.pread(fd, 5, 0) == b"bbbbb"
warm(fd)
stream = libc.freopen(b"a", b"r+", stream)
assert os.pread(libc.fileno(stream), 5, 0) == b"aaaaa"
number = libc.fileno(stream)
libc.fclose(stream)
pattern = ctypes.create_string_buffer(b"tempXXXXXX")
assert libc.mkstemp(pattern) == number
os.write(number, b"temporary")
assert os.pread(number, 20, 0) == b"temporary"
assert open(pattern.value, "rb").read() == b"temporary"
""",
        mount.place,
    )


def test_a_stream_is_mapped(mount: Mounted) -> None:
    """The mapping is pool memory although the C library opened the descriptor."""
    run_python(
        HELPERS
        + """
open("mapped", "wb").write(b"m" * 200000)
stream = fopen("mapped", "r+")
with mmap.mmap(libc.fileno(stream), 200000) as memory:
    assert any(line.rstrip().endswith(sys.argv[2]) and " rw-s " in line and " 00000000 " not in line
               for line in open("/proc/self/maps"))
    memory[10:15] = b"store"
    assert fread(stream, 15) == b"m" * 10 + b"store"
    assert libc.fseek(stream, 20, 0) == 0
    fwrite(stream, b"stream")
    libc.fflush(stream)
    assert memory[20:26] == b"stream"
    other = fopen("mapped", "w")
    fwrite(other, b"cut")
    libc.fclose(other)
    assert memory[:5] == b"cut" + bytes(2)
""",
        mount.place,
        mount.pool.resolve(),
    )
