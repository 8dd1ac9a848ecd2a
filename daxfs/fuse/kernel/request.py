"""One request as it lies in the session's buffer. Everything that is read from it is checked against its length."""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from struct import Struct
from typing import TypeVar

from daxfs.errors import FsError
from daxfs.fs.types import ROOT_INO, Caller
from daxfs.fuse import logs
from daxfs.fuse.kernel import abi
from daxfs.fuse.kernel.abi import BODY, ROOT_ID
from daxfs.fuse.kernel.layout import Layout

_HEADER = abi.IN_HEADER.index
_LENGTH, _OPCODE, _NODE, _EXTENSIONS = _HEADER.len, _HEADER.opcode, _HEADER.nodeid, _HEADER.total_extlen
_UID, _GID, _PID = _HEADER.uid, _HEADER.gid, _HEADER.pid
EXTENSION_UNIT = 8
"""Extensions are counted in units of so many bytes."""
ARGUMENTS = abi.WRITE_IN.size
"""So much of the arguments can be read in place: all of the requests that carry data."""

Fields = TypeVar("Fields", bound=tuple[int, ...])


def cut_short() -> FsError:
    """The refusal of a request that ends before what its arguments say."""
    return FsError(errno.EINVAL, "the request is cut short")


def fixed(layout: Struct, given: memoryview) -> tuple[int, ...]:
    """The argument of an ioctl."""
    if len(given) < layout.size:
        raise FsError(errno.EINVAL, "the argument is cut short")
    found: tuple[int, ...] = layout.unpack_from(given)
    return found


class Request:
    """The request that is being answered; one object serves all, filled anew each time (`dispatch.answer`).

    The header's fields are read when they are asked for: the quickest requests need few of them.

    Attributes:
        buffer: the message, its header first.
        end: where its arguments end (extensions follow, up to its length).
        undo: what takes the operation back if the kernel does not want the answer any more (its caller was killed).
        known: the inode numbers that the kernel has been told and has not forgotten.
        longs: the header and the first arguments in words of 8 bytes, by `Layout.index`.
        words: the same in words of 4 bytes.
        halves: the same in words of 2 bytes.
    """

    __slots__ = ("buffer", "end", "halves", "known", "longs", "undo", "words")

    def __init__(self, buffer: memoryview, known: Container[int]) -> None:
        self.buffer = buffer
        self.known = known
        begin = buffer[: BODY + ARGUMENTS]
        self.longs, self.words, self.halves = begin.cast("Q"), begin.cast("I"), begin.cast("H")
        self.end = 0
        self.undo: Callable[[], None] | None = None

    def leave_out_extensions(self) -> None:
        """Let the arguments end where the extensions begin."""
        self.end = self.length - EXTENSION_UNIT * self.halves[_EXTENSIONS]
        if self.end < BODY:
            raise cut_short()

    def take_back(self) -> None:
        """The answer could not be delivered. A refusal is only logged, since nobody asked."""
        if self.undo is not None:
            try:
                self.undo()
            except FsError as error:
                logs.unanswered(f"taking back opcode {self.opcode}", error)

    @property
    def length(self) -> int:
        """Bytes of the message."""
        return self.words[_LENGTH]

    @property
    def opcode(self) -> int:
        """What is asked."""
        return self.words[_OPCODE]

    @property
    def node(self) -> int:
        """Of which node."""
        return self.longs[_NODE]

    @property
    def uid(self) -> int:
        """The caller's file-system user."""
        return self.words[_UID]

    @property
    def gid(self) -> int:
        """The caller's file-system group."""
        return self.words[_GID]

    @property
    def pid(self) -> int:
        """The caller's process, in the daemon's pid namespace; 0: not to be seen there."""
        return self.words[_PID]

    @property
    def ino(self) -> int:
        """The inode number of the request's node."""
        return self.ino_of(self.node)

    def ino_of(self, node: int) -> int:
        """The inode number of a FUSE node id (ESTALE: not one that the kernel knows from us)."""
        if node in self.known and node != ROOT_INO:
            return node
        if node == ROOT_ID:
            return ROOT_INO
        raise FsError(errno.ESTALE, f"node {node}")

    def arguments(self, layout: Layout[Fields]) -> Fields:
        """The fixed arguments."""
        if BODY + layout.size > self.end:
            raise cut_short()
        return layout.read(self.buffer, BODY)

    def data(self, at: int, size: int) -> memoryview:
        """``size`` bytes at offset ``at`` of the message."""
        if at + size > self.end:
            raise cut_short()
        return self.buffer[at : at + size]

    def name(self, at: int = BODY) -> bytes:
        """The zero-terminated string at offset ``at`` of the message."""
        text, zero, _ = bytes(self.buffer[at : self.end]).partition(b"\0")
        if not zero:
            raise FsError(errno.EINVAL, "a name has no end")
        return text

    def names(self, at: int = BODY) -> tuple[bytes, bytes]:
        """Two of them in a row."""
        first = self.name(at)
        return first, self.name(at + len(first) + 1)

    def caller(self, umask: int = 0) -> Caller:
        """Who asks, with the supplementary group that the kernel found to matter."""
        groups = self.groups() if self.length != self.end else frozenset()
        return Caller(self.uid, self.gid, self.pid, umask, groups)

    def groups(self) -> frozenset[int]:
        """The groups of the extension FUSE_EXT_GROUPS; at most one in practice."""
        at = self.end
        while at + abi.EXT_HEADER.size <= self.length:
            size, kind = abi.EXT_HEADER.unpack_from(self.buffer, at)
            if size < abi.EXT_HEADER.size or at + size > self.length:
                raise FsError(errno.EINVAL, "an extension is cut short")
            if kind == abi.EXT_GROUPS and size >= abi.EXT_HEADER.size + abi.SUPP_GROUPS.size:
                begin = at + abi.EXT_HEADER.size + abi.SUPP_GROUPS.size
                (count,) = abi.SUPP_GROUPS.unpack_from(self.buffer, begin - abi.SUPP_GROUPS.size)
                if begin + 4 * count > at + size:
                    raise FsError(errno.EINVAL, "an extension is cut short")
                return frozenset(self.buffer[begin : begin + 4 * count].cast("I"))
            at += size
        return frozenset()
