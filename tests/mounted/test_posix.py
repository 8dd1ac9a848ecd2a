"""What POSIX and Linux promise of a file system, asked through the mountpoint of every kind of session."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_memory import tmp_path
from mount_rig import NOBODY, SESSIONS, Mounted, as_user, mounted

from support import HANG_SECONDS, tool

__all__ = ["tmp_path"]

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100
CLOCK_REALTIME_COARSE = 5
"""What FUSE in the kernel calls now (include/uapi/linux/time.h); Python has no name for it."""


def refused(number: int) -> pytest.RaisesExc[OSError]:
    """Expect an OSError with this errno."""
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def renameat2(old: Path, new: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# Data


def test_random_writes_read_back(root: Path) -> None:
    """A file is what was written to it, at any offset and size, through holes and growth."""
    chance = random.Random(5)
    model = bytearray()
    with open(root / "file", "w+b", buffering=0) as file:
        for _ in range(150):
            offset, size = chance.randrange(600_000), chance.choice([1, 7, 511, 4096, 5000, 70_000])
            content = chance.randbytes(size)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + size] = content
            assert os.pwrite(file.fileno(), content, offset) == size
            if chance.random() < 0.1:
                cut = chance.randrange(700_000)
                model[cut:] = bytes(max(0, cut - len(model)))
                os.ftruncate(file.fileno(), cut)
            offset = chance.randrange(700_000)
            assert os.pread(file.fileno(), 10_000, offset) == model[offset : offset + 10_000]
        assert os.fstat(file.fileno()).st_size == len(model)
    assert (root / "file").read_bytes() == model


def test_large_requests(root: Path) -> None:
    content = random.Random(6).randbytes(3 << 20)
    (root / "file").write_bytes(content)
    assert (root / "file").read_bytes() == content
    with open(root / "file", "rb", buffering=0) as file:
        assert file.read(5 << 20) == content
        assert os.pread(file.fileno(), 100, 3 << 20) == b""


def test_append_truncate_exclusive(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"12345")
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as two:
        one.write(b"one")
        two.write(b"two")
        one.write(b"!")
    assert path.read_bytes() == b"12345onetwo!"
    with refused(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    assert path.stat().st_blocks == 0


def test_truncate_and_holes(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5000)
    os.truncate(path, 20_000)
    assert path.read_bytes() == b"x" * 5000 + bytes(15_000)
    os.truncate(path, 1 << 40)
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks <= 32
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", 1 << 39)
        assert os.pread(file.fileno(), 5, (1 << 39) - 1) == b"\0end\0"


def test_size_limit(root: Path) -> None:
    path = root / "file"
    path.touch()
    with refused(errno.EFBIG):
        os.truncate(path, 1 << 50)
    with open(path, "r+b", buffering=0) as file, refused(errno.EFBIG):
        os.pwrite(file.fileno(), b"x", 1 << 50)
    assert path.stat().st_size == 0


def test_durability_calls(root: Path) -> None:
    with open(root / "file", "wb", buffering=0) as file:
        file.write(b"data")
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    os.sync()


def test_attributes_follow_data(root: Path) -> None:
    """The kernel caches attributes for long; what a write changes must show at once."""
    path = root / "file"
    path.touch()
    os.utime(path, ns=(10**18, 10**18))
    before = path.stat()
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x" * 5000)
        after = os.fstat(file.fileno())
        assert (after.st_size, after.st_blocks) == (5000, 16)
        assert after.st_mtime_ns > before.st_mtime_ns
        assert after.st_ctime_ns >= before.st_ctime_ns
        os.ftruncate(file.fileno(), 10)
        assert path.stat().st_size == 10
        assert path.stat().st_blocks == 8


def test_open_unlinked_file_lives_until_closed(root: Path) -> None:
    path = root / "file"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * (8 << 20))
        os.fsync(file.fileno())
        full = os.statvfs(root).f_bfree
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.pwrite(file.fileno(), b"y", 0)
        assert os.pread(file.fileno(), 2, 0) == b"yx"
    end = time.monotonic() + HANG_SECONDS
    while os.statvfs(root).f_bfree < full + 2048:  # close(2) does not wait for FUSE's RELEASE
        assert time.monotonic() < end
        time.sleep(0.01)


def test_mode_zero_file_of_ones_own(root: Path) -> None:
    """A descriptor keeps its rights whatever becomes of the mode."""

    def action() -> None:
        fd = os.open(root / "own", os.O_RDWR | os.O_CREAT, 0)
        os.write(fd, b"12345")
        os.ftruncate(fd, 3)
        assert os.pread(fd, 9, 0) == b"123"

    assert as_user(action) == 0
    assert mode(root / "own") == 0
    assert as_user(lambda: os.open(root / "own", os.O_RDONLY)) == errno.EACCES


# Names


def test_name_lengths(root: Path) -> None:
    longest = root / ("n" * 255)
    longest.touch()
    assert longest.exists()
    for operation in (Path.touch, Path.mkdir, Path.lstat):
        with refused(errno.ENAMETOOLONG):
            operation(root / ("n" * 256))
    odd = os.fsencode(root) + b"/\xff\xfe \n\x01"
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
    assert b"\xff\xfe \n\x01" in os.listdir(os.fsencode(root))


def test_a_name_appears_after_it_was_missed(root: Path) -> None:
    """The kernel remembers that a name was not there; making it must undo that."""
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("x"), os.mkfifo):
        path = root / "missed"
        assert not path.exists()
        make(path)
        path.lstat()
        path.rmdir() if path.is_dir() else path.unlink()
        assert not os.path.lexists(path)


def test_links(root: Path) -> None:
    path, other = root / "file", root / "other"
    path.write_bytes(b"data")
    os.link(path, other)
    assert path.stat().st_nlink == other.stat().st_nlink == 2
    assert path.stat().st_ino == other.stat().st_ino
    path.unlink()
    assert other.stat().st_nlink == 1
    assert other.read_bytes() == b"data"
    with refused(errno.EPERM):
        os.link(root, root / "dir")
    with refused(errno.EEXIST):
        os.link(other, root / "lost+found")


def test_symlinks(root: Path) -> None:
    for length in (1, 59, 60, 61, 300, 4000):
        link = root / f"l{length}"
        link.symlink_to("t" * length)
        assert os.readlink(link) == "t" * length
        assert link.lstat().st_size == length
        assert mode(link) == 0o777
    (root / "loop").symlink_to("loop")
    with refused(errno.ELOOP):
        (root / "loop").stat()


def test_directories(root: Path) -> None:
    parent = root / "d"
    parent.mkdir(0o750)
    assert parent.stat().st_nlink == 2
    (parent / "sub").mkdir()
    (parent / "file").touch()
    assert parent.stat().st_nlink == 3
    with refused(errno.ENOTEMPTY):
        parent.rmdir()
    with refused(errno.ENOTDIR):
        (parent / "file").rmdir()
    with refused(errno.EISDIR):
        (parent / "sub").unlink()
    (parent / "sub").rmdir()
    assert parent.stat().st_nlink == 2
    (parent / "file").unlink()
    parent.rmdir()
    assert os.listdir(root) == ["lost+found"]


def test_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(root / "sock"))
    kinds = {name: stat.S_IFMT((root / name).lstat().st_mode) for name in ("fifo", "char", "block", "sock")}
    assert kinds == {"fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK, "sock": stat.S_IFSOCK}
    assert (root / "char").stat().st_rdev == os.makedev(1, 3)
    assert (root / "block").stat().st_rdev == os.makedev(259, 70_000)
    with open(root / "char", "r+b", buffering=0) as null:
        assert null.read(1) == b""


def test_rename(root: Path) -> None:
    (root / "a").write_bytes(b"a")
    (root / "b").write_bytes(b"b")
    inode = (root / "a").stat().st_ino
    os.rename(root / "a", root / "b")
    assert (root / "b").stat().st_ino == inode
    assert not (root / "a").exists()
    (root / "d1" / "deep").mkdir(parents=True)
    (root / "d2").mkdir()
    os.rename(root / "d1" / "deep", root / "d2" / "deep")
    assert ((root / "d1").stat().st_nlink, (root / "d2").stat().st_nlink) == (2, 3)
    assert (root / "d2" / "deep" / "..").stat().st_ino == (root / "d2").stat().st_ino
    with refused(errno.EINVAL):
        os.rename(root / "d2", root / "d2" / "deep" / "d2")
    with refused(errno.ENOTEMPTY):
        os.rename(root / "d1", root / "d2")
    with refused(errno.EISDIR):
        os.rename(root / "b", root / "d1")
    with refused(errno.ENOTDIR):
        os.rename(root / "d1", root / "b")
    os.rename(root / "d2" / "deep", root / "d1")
    assert (root / "d2").stat().st_nlink == 2


def test_rename_flags(root: Path) -> None:
    (root / "file").write_bytes(b"f")
    (root / "dir").mkdir()
    with refused(errno.EEXIST):
        renameat2(root / "file", root / "dir", RENAME_NOREPLACE)
    renameat2(root / "file", root / "dir", RENAME_EXCHANGE)
    assert (root / "dir").read_bytes() == b"f"
    assert (root / "file").is_dir()
    renameat2(root / "dir", root / "new", RENAME_NOREPLACE)
    with refused(errno.ENOENT):
        renameat2(root / "new", root / "gone", RENAME_EXCHANGE)


def test_listing_is_complete_while_names_come_and_go(root: Path) -> None:
    """Names that were there all the time are listed once, whatever happens to the others."""
    count = 3000
    for number in range(count):
        os.close(os.open(root / f"stay{number}", os.O_CREAT | os.O_WRONLY))
    seen: list[str] = []
    with os.scandir(root) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0 and number < count:
                (root / f"come{number}").touch()
            if number % 500 == 0:
                assert entry.inode() == (root / entry.name).lstat().st_ino
            if entry.name.startswith("come"):
                (root / entry.name).unlink()
    stayed = [name for name in seen if name.startswith("stay")]
    assert len(stayed) == len(set(stayed)) == count
    for name in os.listdir(root):
        if name != "lost+found":
            (root / name).unlink()
    assert os.listdir(root) == ["lost+found"]


# Attributes


@pytest.mark.parametrize("when", [(1 - 2**31) * 10**9, -1, 0, 1, 2**31 * 10**9 + 999_999_999, 2**33 * 10**9 + 7])
def test_times(root: Path, when: int) -> None:
    path = root / "file"
    path.touch()
    os.utime(path, ns=(when, when + 1))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (when, when + 1)
    path.chmod(0o600)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (when, when + 1)


def test_times_now_and_omit(root: Path) -> None:
    path = root / "file"
    path.touch()
    os.utime(path, ns=(5, 5))
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    subprocess.run([tool("touch"), "-m", path], check=True, timeout=HANG_SECONDS)
    assert path.stat().st_atime_ns == 5
    assert path.stat().st_mtime_ns >= before
    assert path.stat().st_ctime_ns >= before


def test_parents_times_follow_their_names(root: Path) -> None:
    directory = root / "d"
    directory.mkdir()
    for change in (
        (directory / "a").touch,
        lambda: os.link(directory / "a", directory / "b"),
        lambda: os.rename(directory / "a", directory / "c"),
        (directory / "c").unlink,
        lambda: (directory / "s").symlink_to("x"),
    ):
        os.utime(directory, ns=(5, 5))
        change()
        assert directory.stat().st_mtime_ns > 5


def test_rights_of_others(root: Path) -> None:
    secret, shared = root / "secret", root / "shared"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    shared.mkdir()
    shared.chmod(0o755)
    assert as_user(secret.read_bytes) == errno.EACCES
    assert as_user((shared / "new").touch) == errno.EACCES
    assert as_user(lambda: secret.chmod(0o777)) == errno.EPERM
    assert as_user(lambda: os.chown(secret, NOBODY, NOBODY)) == errno.EPERM
    assert as_user(lambda: os.truncate(secret, 0)) == errno.EACCES
    assert as_user(lambda: os.utime(secret)) == errno.EACCES
    shared.chmod(0o1777)
    (shared / "roots").touch()
    assert as_user((shared / "roots").unlink) == errno.EPERM
    assert as_user((shared / "own").touch) == 0
    assert ((shared / "own").stat().st_uid, (shared / "own").stat().st_gid) == (NOBODY, NOBODY)


def test_supplementary_groups(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"x")
    os.chown(path, 0, 4242)
    path.chmod(0o640)
    assert as_user(path.read_bytes, groups=(4242,)) == 0
    assert as_user(path.read_bytes) == errno.EACCES


def test_setgid_directory_gives_its_group(root: Path) -> None:
    directory = root / "d"
    directory.mkdir()
    os.chown(directory, 0, 4242)
    directory.chmod(0o2777)
    assert as_user((directory / "file").touch) == 0
    assert as_user((directory / "sub").mkdir) == 0
    assert (directory / "file").stat().st_gid == 4242
    assert (directory / "sub").stat().st_gid == 4242
    assert mode(directory / "sub") & stat.S_ISGID
    assert not mode(directory / "file") & stat.S_ISGID


def _write(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "change",
    [_write, lambda path: os.truncate(path, 1), lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))],
    ids=["write", "truncate", "open"],
)
def test_set_id_bits_go_when_the_content_changes(root: Path, change: Callable[[Path], object]) -> None:
    path = root / "tool"
    path.write_bytes(b"program")
    path.chmod(0o6777)
    assert as_user(lambda: change(path)) == 0
    assert mode(path) == 0o777


def test_set_id_bits_go_with_the_owner(root: Path) -> None:
    path = root / "tool"
    path.touch()
    os.chown(path, NOBODY, 4242)
    path.chmod(0o6755)
    assert as_user(lambda: os.chown(path, NOBODY, NOBODY), groups=(4242,)) == 0
    assert mode(path) == 0o755


def test_umask(root: Path) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(root / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(root / "dir", 0o777)
        os.mkfifo(root / "fifo", 0o666)
    finally:
        os.umask(old)
    assert (mode(root / "file"), mode(root / "dir"), mode(root / "fifo")) == (0o640, 0o750, 0o640)


# Extended attributes and ACLs


def test_extended_attributes(root: Path) -> None:
    path = root / "file"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "trusted.b", b"2" * 1000)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.a") == b"1"
    assert os.getxattr(path, "trusted.b") == b"2" * 1000
    assert sorted(os.listxattr(path)) == ["trusted.b", "user.a", "user.empty"]
    with refused(errno.EEXIST):
        os.setxattr(path, "user.a", b"x", os.XATTR_CREATE)
    with refused(errno.ENODATA):
        os.setxattr(path, "user.none", b"x", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"new", os.XATTR_REPLACE)
    os.removexattr(path, "trusted.b")
    with refused(errno.ENODATA):
        os.getxattr(path, "trusted.b")
    with refused(errno.ENODATA):
        os.removexattr(path, "trusted.b")
    with refused(errno.ENOSPC):
        os.setxattr(path, "user.large", b"x" * 60_000)
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty"]


def test_user_attributes_stand_on_files_and_directories_only(root: Path) -> None:
    (root / "link").symlink_to("x")
    os.mkfifo(root / "fifo")
    for name in ("link", "fifo"):
        with refused(errno.EPERM):
            os.setxattr(root / name, "user.a", b"1", follow_symlinks=False)
        os.setxattr(root / name, "trusted.a", b"1", follow_symlinks=False)
        assert os.getxattr(root / name, "trusted.a", follow_symlinks=False) == b"1"


def setfacl(*arguments: str | Path) -> None:
    subprocess.run([tool("setfacl"), *arguments], check=True, timeout=HANG_SECONDS)


def test_an_acl_is_enforced(root: Path) -> None:
    path = root / "file"
    path.write_bytes(b"x")
    path.chmod(0o600)
    assert as_user(path.read_bytes) == errno.EACCES
    setfacl("-m", f"u:{NOBODY}:r", path)
    assert mode(path) == 0o640
    assert as_user(path.read_bytes) == 0
    assert as_user(lambda: _write(path)) == errno.EACCES
    path.chmod(0o600)
    assert as_user(path.read_bytes) == errno.EACCES
    setfacl("-b", path)
    assert mode(path) == 0o600
    assert os.listxattr(path) == []


def test_a_default_acl_replaces_the_umask(root: Path) -> None:
    directory = root / "d"
    directory.mkdir()
    setfacl("-d", "-m", f"u::rwx,g::rwx,o::-,u:{NOBODY}:rw", directory)
    old = os.umask(0o077)
    try:
        (directory / "file").touch()
        (directory / "sub").mkdir()
    finally:
        os.umask(old)
    assert mode(directory / "file") == 0o660
    assert mode(directory / "sub") == 0o770
    assert "system.posix_acl_access" in os.listxattr(directory / "file")
    assert "system.posix_acl_default" in os.listxattr(directory / "sub")
    directory.chmod(0o711)
    assert as_user(lambda: _write_new(directory / "file")) == 0


def _write_new(path: Path) -> None:
    path.write_bytes(b"by nobody")


# The whole


def test_space(root: Path) -> None:
    before = os.statvfs(root)
    assert before.f_namemax == 255
    assert before.f_bavail <= before.f_bfree <= before.f_blocks
    (root / "file").write_bytes(bytes(8 << 20))
    after = os.statvfs(root)
    assert (before.f_bfree - after.f_bfree) * after.f_frsize in range(8 << 20, 9 << 20)
    assert after.f_ffree == before.f_ffree - 1
    assert after.f_files == before.f_files


def test_a_full_pool_refuses_and_recovers(session: str, pool: Callable[..., Path]) -> None:
    with mounted(pool("-b", "4096", "-m", "0", size="16M"), *SESSIONS[session]) as mount:
        chunk = random.Random(1).randbytes(1 << 20)
        written = 0
        with open(mount.place / "file", "wb", buffering=0) as file, refused(errno.ENOSPC):
            while True:
                written += file.write(chunk)
        assert (mount.place / "file").stat().st_size == written
        with open(mount.place / "file", "rb") as file:
            for start in range(0, written, 1 << 20):
                assert file.read(1 << 20) == chunk[: min(1 << 20, written - start)]
        (mount.place / "file").unlink()
        deadline = time.monotonic() + HANG_SECONDS
        while session == "pyfuse3" and os.statvfs(mount.place).f_bfree << 12 < 4 * len(chunk):
            assert time.monotonic() < deadline, "the kernel reports the last close a moment later, but not never"
        (mount.place / "file").write_bytes(chunk * 4)


def test_read_only(session: str, pool: Callable[..., Path]) -> None:
    path = pool()
    with mounted(path, *SESSIONS[session]) as mount:
        (mount.place / "file").write_bytes(b"data")
    before = path.read_bytes()
    with mounted(path, "ro", *SESSIONS[session]) as mount:
        assert (mount.place / "file").read_bytes() == b"data"
        with refused(errno.EROFS):
            (mount.place / "new").touch()
        with refused(errno.EROFS):
            (mount.place / "file").chmod(0)
        with refused(errno.EROFS):
            os.open(mount.place / "file", os.O_RDWR)
    assert path.read_bytes() == before


def test_everything_is_there_after_a_remount(session: str, pool: Callable[..., Path]) -> None:
    path = pool()

    def picture(place: Path) -> dict[str, tuple[int, ...]]:
        found = {}
        for name in sorted(os.listdir(place)):
            status = (place / name).lstat()
            found[name] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found

    with mounted(path, *SESSIONS[session]) as mount:
        for number in range(200):
            (mount.place / f"file{number}").write_bytes(b"x" * number)
        (mount.place / "dir").mkdir()
        (mount.place / "link").symlink_to("dir")
        before = picture(mount.place)
    with mounted(path, *SESSIONS[session]) as mount:
        assert picture(mount.place) == before
        assert (mount.place / "file199").read_bytes() == b"x" * 199


def test_programs_run_from_the_mount(root: Path) -> None:
    """Exec and private maps go through the page cache also where files are direct."""
    program = root / "true"
    program.write_bytes(Path(tool("true")).read_bytes())
    program.chmod(0o755)
    assert subprocess.run([program], timeout=HANG_SECONDS, check=False).returncode == 0
    assert as_user(lambda: os.execv(program, ["true"])) == 0


def test_file_handles_outlive_the_kernels_caches(mount: Mounted) -> None:
    """What an NFS server does: name_to_handle_at, drop everything, open_by_handle_at."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = mount.place / "file"
    path.write_bytes(b"data")
    handle = ctypes.create_string_buffer(8 + 128)
    ctypes.c_uint32.from_buffer(handle).value = 128
    mount_id = ctypes.c_int()
    assert libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount_id), 0) == 0
    Path("/proc/sys/vm/drop_caches").write_text("2")
    root = os.open(mount.place, os.O_RDONLY)
    try:
        fd = libc.open_by_handle_at(root, handle, os.O_RDONLY)
        assert fd >= 0, os.strerror(ctypes.get_errno())
        assert os.read(fd, 10) == b"data"
        os.close(fd)
        path.unlink()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert libc.open_by_handle_at(root, handle, os.O_RDONLY) < 0
        assert ctypes.get_errno() == errno.ESTALE
    finally:
        os.close(root)
