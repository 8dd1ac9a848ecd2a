"""A null file system: one file that is served from memory, with the least Python code per request.

It shows the least time that a FUSE server in Python needs, as a reference for daxfs's session. It speaks to /dev/fuse
as that session does, with the same handshake and the same waiting, and does nothing else: no core, no table of
handlers, no checks, no time limits. Reads return anonymous memory that was written once. Writes are discarded, or with
``--store`` copied into that memory. It is a benchmark and not a file system.

Usage: null_server.py MOUNTPOINT [--store]; as root; it ends when it is unmounted.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from time import perf_counter

from daxfs.fs.types import ROOT_INO, Attributes
from daxfs.fuse import mounts
from daxfs.fuse.kernel import abi, encoding, negotiation
from daxfs.fuse.kernel.abi import BODY, Opcode
from daxfs.fuse.kernel.cpu_latency import CpuLatencyRequest
from daxfs.fuse.kernel.device import LINGER_MILLISECONDS, Device
from daxfs.fuse.kernel.polling import AdaptivePolling
from daxfs.fuse.mountoptions import MountOptions

SIZE = 256 << 20
FILE_INO = 12
BLOCK_SIZE = 4096
NAME = b"fio.dat"
READ = int(Opcode.READ)
WRITE = int(Opcode.WRITE)
WRITE_DATA = BODY + abi.WRITE_IN.size
REQUESTS_A_TURN = 500


def attributes(ino: int) -> Attributes:
    """Return the attributes of the root directory or of the file."""
    mode = stat.S_IFDIR | 0o755 if ino == ROOT_INO else stat.S_IFREG | 0o644
    size = BLOCK_SIZE if ino == ROOT_INO else SIZE
    return Attributes(ino, mode, 1, 0, 0, 0, size, size // 512, 0, 0, 0, crtime_ns=0, generation=1, flags=0)


def attr_out(node: int) -> bytes:
    """Answer GETATTR and SETATTR."""
    return encoding.attr_out(attributes(ROOT_INO if node == abi.ROOT_ID else FILE_INO), BLOCK_SIZE)


def lookup(request: memoryview) -> bytes:
    """Answer LOOKUP: the file has a name, every other name is absent."""
    if bytes(request[BODY:]).rstrip(b"\0") != NAME:
        return encoding.ABSENT
    return encoding.entry_out(attributes(FILE_INO), BLOCK_SIZE)


def init(request: memoryview) -> bytes:
    """Answer INIT as the session does, so that requests have the same size."""
    major, minor, readahead, offered = abi.INIT_IN.read(request, BODY)
    (more,) = abi.INIT_IN_EXT.read(request, BODY + abi.INIT_IN.size)
    wanted = negotiation.wanted(cache_links=True, cache_data=False)
    return negotiation.agree(major, minor, readahead, offered | more << 32, wanted)[1]


def rare(opcode: int, node: int, request: memoryview) -> bytes | int | None:
    """Answer a request that is neither READ nor WRITE: return the body, an errno, or None for no answer."""
    if opcode == Opcode.INIT:
        return init(request)
    if opcode == Opcode.LOOKUP:
        return lookup(request)
    if opcode in (Opcode.GETATTR, Opcode.SETATTR):
        return attr_out(node)
    if opcode == Opcode.OPEN:
        return abi.OPEN_OUT.pack(1, abi.FOPEN_DIRECT_IO | abi.FOPEN_PARALLEL_DIRECT_WRITES, 0)
    if opcode in (Opcode.RELEASE, Opcode.FSYNC, Opcode.DESTROY):
        return b""
    if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
        return None
    return errno.ENOSYS


def serve(device: Device, cpu_latency: CpuLatencyRequest, memory: memoryview, store: bool) -> None:
    """Answer requests until unmounted: READ and WRITE here, others by `rare`."""
    descriptor, buffer, buffers = device.descriptor, device.buffer, device.buffers
    poll, spin = device.poll, device.spin
    readv, writev, out = os.readv, os.writev, abi.OUT_HEADER.size
    in_header, out_header = abi.IN_HEADER.struct.unpack_from, abi.OUT_HEADER.pack
    read_in, written = abi.READ_IN.struct.unpack_from, abi.WRITE_OUT.pack
    polling = AdaptivePolling(choice=device.spin_seconds > 0)
    served = 0
    begin = perf_counter()
    while True:
        if served >= REQUESTS_A_TURN:
            polling.learn(served / (perf_counter() - begin))
            served = 0
            begin = perf_counter()
        if not (polling.spinning and spin()) and not poll(LINGER_MILLISECONDS):
            cpu_latency.release()
            poll(None)
            cpu_latency.hold()
            served = 0
            begin = perf_counter()
        served += 1
        try:
            length = readv(descriptor, buffers)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                continue
            raise
        _, opcode, unique, node, _, _, _, _, _ = in_header(buffer)
        if opcode == READ:
            _, offset, size, _, _, _, _ = read_in(buffer, BODY)
            writev(descriptor, (out_header(out + size, 0, unique), memory[offset : offset + size]))
        elif opcode == WRITE:
            _, offset, size, _, _, _, _ = read_in(buffer, BODY)
            if store:
                memory[offset : offset + size] = buffer[WRITE_DATA : WRITE_DATA + size]
            writev(descriptor, (out_header(out + 8, 0, unique), written(size)))
        else:
            said = rare(opcode, node, buffer[:length])
            if isinstance(said, int):
                writev(descriptor, (out_header(out, -said, unique),))
            elif said is not None:
                writev(descriptor, (out_header(out + len(said), 0, unique), said))


def main() -> int:
    """Mount, serve until unmounted, return the exit code."""
    mountpoint = os.path.realpath(sys.argv[1])
    options = MountOptions()
    memory = mmap.mmap(-1, SIZE)
    for offset in range(0, SIZE, 1 << 20):
        memory[offset : offset + (1 << 20)] = b"\xa5" * (1 << 20)
    descriptor = mounts.mount_device("null", mountpoint, 0, ["default_permissions", "allow_other"])
    device = Device(descriptor, negotiation.buffer_size(), options.poll_seconds)
    try:
        serve(device, CpuLatencyRequest(options.wake_microseconds), memoryview(memory), "--store" in sys.argv)
    finally:
        device.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
