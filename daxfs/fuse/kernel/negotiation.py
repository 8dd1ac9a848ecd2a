"""Negotiate the protocol version and the capabilities of a session in INIT. docs/FUSE.md has each flag's reason.

`agree` takes the kernel's offer and returns the answer. A flag that the kernel does not offer is left out;
`Agreement.missing` describes for the log what the mount can't do without it.
"""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daxfs.errors import FsError
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.abi import BODY, Init

if TYPE_CHECKING:
    from daxfs.fuse.kernel.request import Request

MAX_PAGES_LIMIT = Path("/proc/sys/fs/fuse/max_pages_limit")
PAGES_WITHOUT_LIMIT = 256
"""The limit of a kernel that has no such sysctl: requests of 1 MiB."""
MOST_PAGES = 4096
"""The limit of daxfs: requests of 16 MiB. More is not faster, and the session has a buffer of that size."""
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48
NANOSECOND = 1
SYNCFS_MINOR = 46
"""The protocol that assigns bit 43 to HAS_SYNCFS. Patched 7.45 kernels use it for other features (famfs, iomap)."""

WANTED = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.EXPORT_SUPPORT
    | Init.BIG_WRITES
    | Init.DONT_MASK
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.PARALLEL_DIROPS
    | Init.POSIX_ACL
    | Init.ABORT_ERROR
    | Init.MAX_PAGES
    | Init.NO_OPENDIR_SUPPORT
    | Init.EXPLICIT_INVAL_DATA
    | Init.HANDLE_KILLPRIV_V2
    | Init.SETXATTR_EXT
    | Init.INIT_EXT
    | Init.CREATE_SUPP_GROUP
    | Init.DIRECT_IO_ALLOW_MMAP
    | Init.HAS_SYNCFS
)
"""The flags that every mount accepts; `wanted` adds flags that depend on the mount options."""

LOSSES = {
    Init.DIRECT_IO_ALLOW_MMAP: "no shared mappings of files that bypass the page cache (Linux 6.6)",
    Init.HANDLE_KILLPRIV_V2: "set-id bits are cleared by the opener's rights, not the writer's (Linux 5.12)",
    Init.SETXATTR_EXT: "an ACL set by a user outside the group keeps the set-group-id bit (Linux 5.13)",
    Init.CREATE_SUPP_GROUP: "supplementary groups are unknown when files are created (Linux 6.3)",
    Init.POSIX_ACL: "no POSIX ACLs",
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """The result of INIT for one connection.

    Attributes:
        minor: of the protocol, the smaller of both sides.
        flags: that both sides have.
        max_write: the most bytes of data that one request carries.
    """

    minor: int
    flags: Init
    max_write: int

    def has(self, flag: Init) -> bool:
        """Return whether both sides have ``flag``."""
        return bool(int.__and__(self.flags, flag))  # Flag's own & takes a microsecond, and some requests test a flag.

    def missing(self) -> list[str]:
        """Return a line for each feature that does not work with this kernel."""
        return [text for flag, text in LOSSES.items() if not self.flags & flag]


def most_pages() -> int:
    """Return the most pages of data in one request that the system and daxfs allow."""
    try:
        allowed = int(MAX_PAGES_LIMIT.read_text())
    except (OSError, ValueError):
        allowed = PAGES_WITHOUT_LIMIT
    return max(1, min(allowed, MOST_PAGES))


def buffer_size() -> int:
    """Return the size of the largest request in bytes: header, arguments and data."""
    return max(abi.MIN_READ_BUFFER, most_pages() * mmap.PAGESIZE + mmap.PAGESIZE)


def wanted(*, cache_links: bool, cache_data: bool) -> Init:
    """Return the flags that a mount accepts if the kernel offers them.

    Args:
        cache_links: the kernel may cache the targets of symbolic links.
        cache_data: files may be read and written through the kernel's page cache. An asynchronous direct write to such
            a file drops its pages before the request is sent and not when it is answered (``generic_file_direct_write``
            in mm/filemap.c, ``fuse_aio_complete`` in fs/fuse/file.c), so a page read in between would stay old. Without
            ASYNC_DIO the kernel waits for the answer and then drops the pages.
    """
    flags = WANTED
    if cache_links:
        flags |= Init.CACHE_SYMLINKS
    return flags if cache_data else flags | Init.ASYNC_DIO


def answer_init(request: Request, wanted: Init) -> tuple[Agreement, bytes]:
    """Answer an INIT, as `agree`: the flags that it offers are in two words, of which older kernels send the first."""
    given = request.arguments(abi.INIT_IN)
    offered, more = given.flags, BODY + abi.INIT_IN.size
    if offered & Init.INIT_EXT and more + abi.INIT_IN_EXT.size <= request.end:
        offered |= abi.INIT_IN_EXT.read(request.buffer, more).flags2 << 32
    return agree(given.major, given.minor, given.max_readahead, offered, wanted)


def agree(major: int, minor: int, readahead: int, offered: int, wanted: Init) -> tuple[Agreement, bytes]:
    """Return the answer to the kernel's offer.

    Args:
        major: of the kernel.
        minor: of the kernel.
        readahead: the kernel's proposal in bytes.
        offered: the kernel's flags, both words joined.
        wanted: the flags to accept if they are offered.

    Returns:
        The agreement and the body of the answer.

    Raises:
        FsError: EPROTO, a protocol older than 7.31 (Linux 5.4).
    """
    if major > abi.MAJOR:  # The kernel repeats INIT with the major version of this answer.
        return Agreement(0, Init(0), 0), abi.INIT_OUT.pack(abi.MAJOR, abi.MINOR, *[0] * 10)
    if major < abi.MAJOR or minor < abi.OLDEST_MINOR:
        raise FsError(errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}, daxfs needs 7.{abi.OLDEST_MINOR}")
    flags = Init(offered) & wanted
    if minor < SYNCFS_MINOR:
        flags &= ~Init.HAS_SYNCFS
    if not flags & Init.INIT_EXT:
        flags &= Init(0xFFFFFFFF)
    pages = most_pages() if flags & Init.MAX_PAGES else 32
    agreed = Agreement(min(minor, abi.MINOR), flags, pages * mmap.PAGESIZE)
    answer = abi.INIT_OUT.pack(
        abi.MAJOR,
        agreed.minor,
        readahead,
        int(flags) & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        agreed.max_write,
        NANOSECOND,
        pages,
        0,
        int(flags) >> 32,
        0,
    )
    return agreed, answer
