"""What programs do with mappings in a pool that can be mapped in units of 2 MiB only; also for devices.

`PROGRAMS` run below the library after `test_preload_maps.HELPERS`; the functions use `daxfs.direct`.
"""

from __future__ import annotations

import os
from pathlib import Path

from mount_rig import Mounted

from daxfs import direct
from daxfs.pmem.address import address_of

MIB, UNIT = 1 << 20, 2 << 20
SIZES = (700_000, MIB, UNIT, 3 * MIB, 5 * MIB, 9 * MIB + 1)

PROGRAMS = {
    "sizes": """
UNIT = 2 * MIB
for size in (700_000, MIB, UNIT, 3 * MIB, 4 * MIB, 5 * MIB, 9 * MIB + 1):
    content = os.urandom(size)
    fd = make(f"size{size}", size, content)
    for prot in (R, RW):
        at = map(fd, size, prot=prot)
        assert get(at, size) == content
        assert direct(at) == (size >= UNIT), size
        assert not direct(at + size - 1) or not size % UNIT
        if prot == RW:
            for place in {0, size // 2, size - 5}:
                put(at + place, b"store")
                assert os.pread(fd, 5, place) == b"store"
                os.pwrite(fd, b"wrote", place)
                assert get(at + place, 5) == b"wrote"
            checked(libc.msync(at, size, 4))
            os.fsync(fd)
        unmap(at, size)
    os.close(fd)
""",
    "two mappings": """
size = 5 * MIB
fd = make("two", size)
whole = map(fd, size)
assert direct(whole) and direct(whole + 4 * MIB - 1)
put(whole + PAGE, b"before")
part = map(fd, PAGE, PAGE)
assert get(part, 6) == b"before", get(part, 6)
assert not direct(part) and not direct(whole + PAGE) and direct(whole + 2 * MIB)
put(part, b"first")
assert get(whole + PAGE, 5) == b"first" == os.pread(fd, 5, PAGE)
put(whole + PAGE, b"later")
assert get(part, 5) == b"later" == os.pread(fd, 5, PAGE)
os.pwrite(fd, b"other", PAGE)
assert get(part, 5) == b"other" == get(whole + PAGE, 5)
other = os.open("two", os.O_RDWR)
third = map(other, size)
put(third + PAGE, b"third")
put(third + 3 * MIB, b"third")
assert get(whole + PAGE, 5) == get(part, 5) == get(whole + 3 * MIB, 5) == os.pread(other, 5, 3 * MIB) == b"third"
for at, length in ((whole, size), (part, PAGE), (third, size)):
    unmap(at, length)
os.pwrite(fd, b"y" * 10, 0), os.pread(fd, 10, 0), os.pread(fd, 10, 0), os.pread(other, 10, 0)
os.close(other)
whole = map(fd, size)
assert direct(whole), "what was split stays so as long as it is mapped"
assert get(whole + PAGE, 5) == b"third"
""",
    "one page": """
UNIT = 2 * MIB
for closed in (False, True):
    content = os.urandom(3 * UNIT)
    fd = make(f"page{closed}", 3 * UNIT, content)
    at = map(fd, 3 * UNIT)
    assert all(direct(at + n * UNIT) for n in range(3))
    put(at + 100, b"stored")
    content = content[:100] + b"stored" + content[106:]
    if closed:
        os.close(fd)
    unmap(at + PAGE, PAGE)
    assert dies(lambda: get(at + PAGE, 1)) == "SIGSEGV"
    assert get(at, PAGE) == content[:PAGE]
    assert get(at + 2 * PAGE, 3 * UNIT - 2 * PAGE) == content[2 * PAGE:]
    assert not direct(at) and direct(at + UNIT)
    checked(libc.mprotect(at + UNIT + PAGE, PAGE, R))
    assert dies(lambda: put(at + UNIT + PAGE, b"x")) == "SIGSEGV"
    put(at + UNIT, b"one"), put(at + UNIT + 2 * PAGE, b"two")
    checked(libc.mprotect(at + UNIT + PAGE, PAGE, RW))
    put(at + UNIT + PAGE, b"three")
    assert direct(at + 2 * UNIT)
    checked(libc.mprotect(at + 2 * UNIT, UNIT, R))
    assert direct(at + 2 * UNIT)
    assert dies(lambda: put(at + 2 * UNIT, b"x")) == "SIGSEGV"
    checked(libc.msync(at, PAGE, 4)), checked(libc.msync(at + 2 * PAGE, 3 * UNIT - 2 * PAGE, 4))
    unmap(at, 3 * UNIT)
    fd = os.open(f"page{closed}", os.O_RDWR)
    for place, text in ((0, content[:PAGE]), (UNIT, b"one"), (UNIT + PAGE, b"three"), (UNIT + 2 * PAGE, b"two")):
        assert os.pread(fd, len(text), place) == text
    os.close(fd)
assert not [name for name in os.listdir("/proc/self/fd") if int(name) >= 256], "a descriptor is left"
""",
    "mremap": """
UNIT = 2 * MIB
content = os.urandom(4 * UNIT)
fd = make("remap", 4 * UNIT, content)
at = map(fd, 3 * UNIT)
assert checked(libc.mremap(at, 3 * UNIT, 2 * UNIT + PAGE, 0, None)) == at
assert get(at, 2 * UNIT + PAGE) == content[:2 * UNIT + PAGE] and direct(at + UNIT)
assert dies(lambda: get(at + 2 * UNIT + PAGE, 1)) == "SIGSEGV"
at = checked(libc.mremap(at, 2 * UNIT + PAGE, 4 * UNIT, 1, None))
assert get(at, 4 * UNIT) == content
room = map(-1, 6 * UNIT, prot=0, flags=PRIVATE | ANONYMOUS)
to = room + -room % UNIT + PAGE
at = checked(libc.mremap(at, 4 * UNIT, 4 * UNIT, 3, to))
assert at == to and get(at, 4 * UNIT) == content
put(at, b"moved")
assert os.pread(fd, 5, 0) == b"moved"
unmap(at, 4 * UNIT)
""",
    "fixed, private, executable": """
UNIT = 2 * MIB
content = os.urandom(2 * UNIT)
fd = make("kinds", 2 * UNIT, content)
shared = map(fd, 2 * UNIT)
assert direct(shared)
private = map(fd, 2 * UNIT, flags=PRIVATE)
assert get(private, 2 * UNIT) == content
put(private, b"mine")
assert get(shared, 4) == content[:4]
unmap(private, 2 * UNIT)
room = map(-1, 4 * UNIT, prot=0, flags=PRIVATE | ANONYMOUS)
aligned = room + -room % UNIT
for at in (aligned, aligned + PAGE):
    assert map(fd, UNIT, flags=SHARED | FIXED, at=at) == at
    put(at, b"fixed%d" % (at % UNIT))
    assert get(shared, 6) == get(at, 6) == b"fixed%d" % (at % UNIT) == os.pread(fd, 6, 0)[:6] or at % UNIT
    assert get(shared, 6) == get(at, 6)
map(-1, PAGE, flags=PRIVATE | ANONYMOUS | FIXED, at=shared + UNIT + PAGE)
assert get(shared + UNIT + PAGE, PAGE) == bytes(PAGE)
assert get(shared + UNIT, PAGE) == content[UNIT:UNIT + PAGE]
code = map(fd, UNIT, UNIT, prot=RW | 4)
put(code + 9 * PAGE, b"code")
assert get(shared + UNIT + 9 * PAGE, 4) == b"code"
""",
    "fork": """
UNIT = 2 * MIB
fd = make("fork", 2 * UNIT)
at = map(fd, 2 * UNIT)
child = os.fork()
if not child:
    unmap(at + PAGE, PAGE)
    put(at, b"child")
    checked(libc.msync(at, PAGE, 4))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
checked(libc.msync(at, 2 * UNIT, 4))
assert get(at, 5) == b"child" == os.pread(fd, 5, 0)
assert get(at + PAGE, 1) == b"x"
""",
}


def python_maps(mount: Mounted, size: int) -> None:
    """Two mappings, the file's own reads and writes, and the kernel's show the same bytes."""
    content = os.urandom(size)
    path = mount.place / f"python{size}"
    path.write_bytes(content)
    with direct.map(path, access="rw") as mapping, direct.map(path) as readable, direct.open(path, "r+b") as file:
        assert mapping.direct
        assert mapping.view == content == readable.view
        for place in (0, size // 2, size - 5):
            mapping.view[place : place + 5] = b"store"
            assert readable.view[place : place + 5] == file.pread(place, 5) == b"store"
            file.pwrite(place, b"wrote")
            assert mapping.view[place : place + 5] == readable.view[place : place + 5] == b"wrote"
        mapping.flush()
        mapping.flush(size - 5, 5)
    assert path.read_bytes()[-5:] == b"wrote"


def python_maps_parts(mount: Mounted) -> None:
    """A mapping of a part shows the memory of the whole."""
    path = mount.place / "parts"
    path.write_bytes(os.urandom(3 * UNIT + MIB))
    with direct.map(path, access="rw") as whole:
        for offset, length in ((5, 10), (UNIT - 1, 2), (MIB, 2 * UNIT), (3 * UNIT - 1, 2), (3 * UNIT, MIB)):
            with direct.map(path, offset, length, access="rw") as part:
                assert part.view == whole.view[offset : offset + length]
                part.view[:2] = b"in"
                assert whole.view[offset : offset + 2] == b"in"
                whole.view[offset : offset + 2] = b"by"
                assert part.view[:2] == b"by"
                part.flush()
                assert shown_directly(mount, part.view) == shown_directly(mount, whole.view[offset : offset + 1])
                assert shown_directly(mount, part.view) or offset == 3 * UNIT


def shown_directly(mount: Mounted, view: memoryview) -> bool:
    """Return whether the first byte is mapped from the pool."""
    address = address_of(view)
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return line.endswith(f" {mount.pool.resolve()}")
    raise AssertionError("not mapped")
