"""A request in the session's buffer. Every read from it is checked against its length."""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, TypeVar

from daxfs.errors import FsError
from daxfs.fs.types import Caller
from daxfs.fuse import logs
from daxfs.fuse.kernel import abi, nodeid
from daxfs.fuse.kernel.abi import BODY
from daxfs.fuse.kernel.layout import Layout

if TYPE_CHECKING:
    from daxfs.fs.pins import Pins

_HEADER = abi.IN_HEADER.index
_LENGTH, _OPCODE, _NODE, _EXTENSIONS = _HEADER.len, _HEADER.opcode, _HEADER.nodeid, _HEADER.total_extlen
_UNIQUE = _HEADER.unique
_UID, _GID, _PID = _HEADER.uid, _HEADER.gid, _HEADER.pid
EXTENSION_UNIT = 8
"""The unit of ``total_extlen``, in bytes."""
ARGUMENTS = abi.WRITE_IN.size
"""The bytes of the arguments that can be read in place: all arguments of READ and WRITE."""

Fields = TypeVar("Fields", bound=tuple[int, ...])


def cut_short() -> FsError:
    """Return the refusal of a request that is shorter than its arguments require."""
    return FsError(errno.EINVAL, "the request is cut short")


def fixed(layout: Struct, given: memoryview) -> tuple[int, ...]:
    """Unpack the argument of an ioctl; EINVAL if it is too short."""
    if len(given) < layout.size:
        raise FsError(errno.EINVAL, "the argument is cut short")
    found: tuple[int, ...] = layout.unpack_from(given)
    return found


class Request:
    """The request that is being answered. A session has one object, which `dispatch.answer` fills for each request.

    The header's fields are read on access: the fastest requests need few of them.

    Attributes:
        buffer: the message, its header first.
        end: the offset where the arguments end; extensions follow, up to the message's length.
        undo: reverts the operation if the kernel does not accept the answer because the caller was killed; or None.
        refused: called once if the request is refused for good, not if it is postponed (`scheduling`); or None.
        known: the inodes that the kernel has looked up and not forgotten.
        longs: the header and the first arguments in words of 8 bytes, indexed by `Layout.index`.
        words: the header and the first arguments in words of 4 bytes.
        halves: the header and the first arguments in words of 2 bytes.
    """

    __slots__ = ("buffer", "end", "halves", "known", "longs", "refused", "undo", "words")

    def __init__(self, buffer: memoryview, known: Pins) -> None:
        self.buffer = buffer
        self.known = known
        begin = buffer[: BODY + ARGUMENTS]
        self.longs, self.words, self.halves = begin.cast("Q"), begin.cast("I"), begin.cast("H")
        self.end = 0
        self.undo: Callable[[], None] | None = None
        self.refused: Callable[[], object] | None = None

    def leave_out_extensions(self) -> None:
        """Set `end` to the offset where the extensions begin."""
        self.end = self.length - EXTENSION_UNIT * self.halves[_EXTENSIONS]
        if self.end < BODY:
            raise cut_short()

    def refuse(self) -> None:
        """Do what the request has left for the case that it is refused for good."""
        after, self.refused = self.refused, None
        if after is not None:
            after()

    def take_back(self) -> None:
        """Revert the operation, since its answer could not be delivered. A refusal is only logged."""
        if self.undo is not None:
            try:
                self.undo()
            except FsError as error:
                logs.unanswered(f"taking back opcode {self.opcode}", error)

    @property
    def length(self) -> int:
        """The length of the message in bytes."""
        return self.words[_LENGTH]

    @property
    def opcode(self) -> int:
        """The operation that is asked for (`Opcode`)."""
        return self.words[_OPCODE]

    @property
    def unique(self) -> int:
        """The number of the request, for its answer."""
        return self.longs[_UNIQUE]

    @property
    def node(self) -> int:
        """The FUSE node id that the operation is about."""
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
        """The caller's process in the daemon's pid namespace; 0 if it is not visible there."""
        return self.words[_PID]

    @property
    def ino(self) -> int:
        """The inode number of the request's node; ESTALE as `ino_of`."""
        return self.ino_of(self.longs[_NODE])

    def ino_of(self, node: int) -> int:
        """Convert a FUSE node id to an inode number; ESTALE if the kernel has not looked it up, or it is old."""
        ino = nodeid.resolve(node, self.known)
        if ino is None:
            raise FsError(errno.ESTALE, f"node {node:#x}")
        return ino

    def arguments(self, layout: Layout[Fields]) -> Fields:
        """Return the fixed arguments, which begin after the header."""
        if BODY + layout.size > self.end:
            raise cut_short()
        return layout.read(self.buffer, BODY)

    def data(self, at: int, size: int) -> memoryview:
        """Return ``size`` bytes at offset ``at`` of the message."""
        if at + size > self.end:
            raise cut_short()
        return self.buffer[at : at + size]

    def name(self, at: int = BODY) -> bytes:
        """Return the zero-terminated string at offset ``at`` of the message, without its zero byte."""
        text, zero, _ = bytes(self.buffer[at : self.end]).partition(b"\0")
        if not zero:
            raise FsError(errno.EINVAL, "a name has no end")
        return text

    def names(self, at: int = BODY) -> tuple[bytes, bytes]:
        """Return two consecutive zero-terminated strings from offset ``at`` of the message."""
        first = self.name(at)
        return first, self.name(at + len(first) + 1)

    def caller(self, umask: int = 0) -> Caller:
        """Return the caller, with the supplementary group that decided the kernel's permission check, if any."""
        groups = self.groups() if self.length != self.end else frozenset()
        return Caller(self.uid, self.gid, self.pid, umask, groups)

    def groups(self) -> frozenset[int]:
        """Return the groups of the extension FUSE_EXT_GROUPS; at most one in practice."""
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
