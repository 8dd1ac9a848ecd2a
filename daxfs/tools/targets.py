"""What has to be done with a pool before it is made or overwritten: create its file, and refuse what must not go on.

``mkfs`` and ``import`` use this module. It claims nothing and stores no content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from daxfs.errors import PoolError, UserError
from daxfs.pmem import kinds, ownership
from daxfs.tools.sizes import format_size

_FAILED = 1  # the exit code of mke2fs

_SIGNATURES = (  # byte offset, magic, what it is
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "an LVM physical volume"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"PMEMOBJ", "a PMDK object pool"),
    (0, b"PMEMBLK", "a PMDK block pool"),
    (0, b"PMEMLOG", "a PMDK log pool"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (510, b"\x55\xaa", "a boot sector or partition table"),
)


@contextlib.contextmanager
def file_of_size(path: str, size: int | None, *, trust_owner: bool) -> Iterator[int]:
    """Open the pool. A file that does not exist is created, and removed again if the work in the body fails.

    Raises:
        UserError: there is no file and no size for one, or no folder for it; the file can't have the size; others can
            change it; or it can't be opened (PoolError).
    """
    made = not os.path.lexists(path)
    if made and size is None:
        raise UserError(f"{path} does not exist; give its size to create it: daxfs mkfs {path} --size 1G", _FAILED)
    try:
        if not (made or os.path.isfile(path)):
            kinds.identify(path)  # opening some devices has effects
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if made else 0), 0o600)
    except FileNotFoundError:
        text = f"the folder of {path} does not exist; make it, or name another place"
        raise PoolError(text, kinds.MOUNT_FAILED) from None
    except OSError as error:
        raise kinds.pool_error(path, error) from None
    empty = False
    try:
        status = os.fstat(descriptor)
        if not trust_owner:
            ownership.refuse(os.path.join(os.getcwd(), path), status, "to make it there in any case: --trust-owner")
        empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
        if empty and size is not None:
            resize(path, descriptor, size)
        yield descriptor
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.unlink(path)
        elif empty:
            os.ftruncate(descriptor, 0)
        raise
    finally:
        os.close(descriptor)


def resize(path: str, descriptor: int, size: int) -> None:
    """Give an open file a size.

    Raises:
        UserError: the file can't have it.
    """
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL, errno.ENOSPC):
            text = f"{path} can't have {format_size(size)}: {os.strerror(error.errno)}; its file system allows less"
            raise UserError(text, _FAILED) from None
        raise kinds.pool_error(path, error) from None


def sync_folder(path: str) -> None:
    """Make the name of a new file durable."""
    descriptor = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restrict(path: str, descriptor: int) -> None:
    """Give the pool mode 0600, because it contains the files of all users."""
    try:
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        raise UserError(
            f"{path} can't get mode 0600: {error.strerror}; to keep its mode: --keep-mode", _FAILED
        ) from None


def refuse_content(path: str, read: Callable[[int, int], bytes], mend: str) -> None:
    """Refuse to overwrite recognisable content.

    Args:
        path: for the message.
        read: returns a number of bytes at an offset of the pool; fewer where it ends.
        mend: says how to overwrite it in any case.

    Raises:
        UserError: there is such content.
    """
    for offset, magic, what in _SIGNATURES:
        if read(offset, len(magic)) == magic:
            raise UserError(f"{path} holds {what}; to overwrite it {mend}", _FAILED)
