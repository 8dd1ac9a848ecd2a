"""Whole blocks of a jbd2 log, for tests that write logs themselves."""

from __future__ import annotations

from collections.abc import Sequence

from daxfs.ext4 import jbd2


def header(blocktype: int, sequence: int) -> bytes:
    """The 12 bytes that begin a block of the log."""
    return b"".join(word.to_bytes(4, "big") for word in (jbd2.MAGIC, blocktype, sequence & 0xFFFFFFFF))


def descriptor(form: jbd2.Format, sequence: int, tags: Sequence[tuple[int, int, int]]) -> bytes:
    """A descriptor block with its checksum."""
    block = bytearray(form.block_size)
    jbd2.fill_descriptor(form, block, sequence, tags)
    return bytes(block)


def commit(form: jbd2.Format, sequence: int, seconds: int, nanoseconds: int, checksum: int | None = None) -> bytes:
    """A commit block with its checksum; ``checksum`` is the transaction's, of journals with COMPAT_CHECKSUM."""
    block = bytearray(form.block_size)
    jbd2.fill_commit(form, block, sequence, seconds, nanoseconds, checksum)
    return bytes(block)


def revoke(form: jbd2.Format, sequence: int, numbers: Sequence[int]) -> bytes:
    """A revoke block with its checksum."""
    block = bytearray(form.block_size)
    jbd2.fill_revoke(form, block, sequence, numbers)
    return bytes(block)
