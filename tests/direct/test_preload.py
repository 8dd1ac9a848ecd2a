"""The preload library: each call does what it does without it, beside other processes, threads, forks and signals.

The process's own count of system calls (/proc/self/io) shows whether memory served a call.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_rig import NOBODY, SESSIONS, Mounted, mounted, mountpoint
from preload_rig import PROGRAMS, Agent, agent, below, compile_program, said

from support import HANG_SECONDS, fsck, mke2fs

STEPS = 1500
SECONDS = "3"
PART = 4096


@pytest.fixture(scope="session")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program with threads that disturb each other."""
    return compile_program("crowd", tmp_path_factory.mktemp("crowd") / "crowd")


@pytest.fixture(scope="session")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the program of signals, forks and closes, which makes the fortified calls."""
    return compile_program("signals", tmp_path_factory.mktemp("signals") / "signals", "-D_FORTIFY_SOURCE=2")


@pytest.fixture
def root(pool: Callable[..., Path]) -> Iterator[Path]:
    """The root directory of a mount."""
    with mounted(pool("-b", "4096", size="128M"), *SESSIONS["kernel"]) as mount:
        yield mount.place


@pytest.fixture
def worker(library: Path) -> Iterator[Agent]:
    """An agent below the library."""
    with agent(library) as made:
        yield made


def warm(worker: Agent, path: Path, flags: int = os.O_RDWR, length: int = 16 * PART) -> bytes:
    """Return the content of a file that the agent has open as `fd` and reads from memory."""
    content = os.urandom(length)
    path.write_bytes(content)
    worker("fd = os.open({path}, {flags})", path=str(path), flags=flags)
    got, calls = worker("direct(lambda: os.pread(fd, {length}, 0))", length=length)  # type: ignore[misc]
    assert (got, calls) == (content, 0)
    return content


@pytest.mark.parametrize("seed", range(6))
def test_every_call_answers_as_without_the_library(root: Path, library: Path, seed: int) -> None:
    answers = []
    for number, preloaded in enumerate((None, library)):
        place = [root / f"{name}{number}" for name in ("file", "other")]
        answers.append(said(preloaded, sys.executable, PROGRAMS / "calls.py", *place, str(seed), str(STEPS)))
    without, with_it = (answer.splitlines() for answer in answers)
    for step, (expected, got) in enumerate(zip(without, with_it, strict=True)):
        assert got == expected, f"step {step}"
    assert (root / "file0").read_bytes() == (root / "file1").read_bytes()
    assert (root / "other0").read_bytes() == (root / "other1").read_bytes()


def test_files_elsewhere_pass_through(library: Path, tmp_path: Path) -> None:
    place = [tmp_path / name for name in ("file", "other")]
    with_it = said(library, sys.executable, PROGRAMS / "calls.py", *place, "1", "300")
    for path in place:
        path.unlink()
    assert with_it == said(None, sys.executable, PROGRAMS / "calls.py", *place, "1", "300")


def test_reads_and_writes_are_served_from_memory(root: Path, worker: Agent) -> None:
    content = warm(worker, root / "file")
    written, calls = worker("direct(lambda: os.pwrite(fd, b'new', 5000))")  # type: ignore[misc]
    assert (written, calls) == (3, 0)
    expected = content[:5000] + b"new" + content[5003:]
    assert (root / "file").read_bytes() == expected
    worker("os.lseek(fd, 4990, 0)")
    got, calls = worker("direct(lambda: os.read(fd, 4))")  # type: ignore[misc]
    assert (got, calls) == (expected[5002:5006], 0)
    assert worker("os.lseek(fd, 0, 1)") == 5006


def test_the_environment_switches_it_off(root: Path, library: Path) -> None:
    (root / "file").write_bytes(b"x" * PART)
    with agent(library, DAXFS_DIRECT="0") as worker:
        worker("fd = os.open({path}, os.O_RDWR)", path=str(root / "file"))
        _, calls = worker("direct(lambda: os.pread(fd, 100, 0))")  # type: ignore[misc]
        assert calls == 1


def test_what_another_process_does_is_seen(root: Path, worker: Agent) -> None:
    content = bytearray(warm(worker, root / "file"))
    with (root / "file").open("r+b", buffering=0) as plain:
        for number in range(40):
            plain.seek(number * 1000)
            plain.write(b"plain")
            content.extend(bytes(max(0, number * 1000 - len(content))))
            content[number * 1000 : number * 1000 + 5] = b"plain"
            assert worker("os.pread(fd, 1 << 20, 0)") == bytes(content)
            size = (number * 7919) % (20 * PART)
            plain.truncate(size)
            del content[size:]
            content.extend(bytes(size - len(content)))
            assert worker("os.pread(fd, 1 << 20, 0)") == bytes(content)
            worker("os.pwrite(fd, b'agent', {at})", at=number * 900)
            content.extend(bytes(max(0, number * 900 - len(content))))
            content[number * 900 : number * 900 + 5] = b"agent"
            plain.seek(0)
            assert plain.read() == bytes(content)


def test_holes_made_and_filled_by_others_are_seen(root: Path, worker: Agent) -> None:
    path = root / "file"
    path.write_bytes(b"a" * 8 * PART)
    os.truncate(path, 32 * PART)
    worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
    got, calls = worker("direct(lambda: os.pread(fd, 4096, 20 * 4096))")  # type: ignore[misc]
    assert (got, calls) == (bytes(PART), 0)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"filled", 20 * PART)
    assert worker("os.pread(fd, 6, 20 * 4096)") == b"filled"
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(4 * PART), path], check=True)
    assert worker("os.pread(fd, 5 * 4096, 0)") == bytes(4 * PART) + b"a" * PART
    assert worker("os.pwrite(fd, b'own', 10 * 4096)") == 3
    assert os.pread(fd, 3, 10 * PART) == b"own"
    os.close(fd)


def test_allocated_space_is_written_directly(root: Path, worker: Agent) -> None:
    worker("fd = os.open({path}, os.O_RDWR | os.O_CREAT)", path=str(root / "file"))
    worker("os.posix_fallocate(fd, 0, 4 << 20)")
    done, calls = worker("direct(lambda: os.pwrite(fd, bytes(range(256)), 3 << 20))")  # type: ignore[misc]
    assert (done, calls) == (256, 0)
    assert (root / "file").read_bytes() == bytes(3 << 20) + bytes(range(256)) + bytes((1 << 20) - 256)


def test_appends_of_two_processes_are_all_there(root: Path, worker: Agent) -> None:
    warm(worker, root / "file", os.O_RDWR | os.O_APPEND, PART)
    with (root / "file").open("ab", buffering=0) as plain:
        for number in range(50):
            worker("os.write(fd, {text})", text=b"agent %03d" % number)
            plain.write(b"plain %03d" % number)
    expected = b"".join(b"agent %03dplain %03d" % (number, number) for number in range(50))
    assert worker("os.pread(fd, 1 << 20, 4096)") == expected


def test_times_move_with_fsync_and_with_close(root: Path, worker: Agent) -> None:
    warm(worker, root / "file")
    for end in ("os.fsync(fd)", "os.close(fd)"):
        worker("direct(lambda: os.pwrite(fd, b'x', 0))")
        os.utime(root / "file", (1, 1))
        worker("os.pwrite(fd, b'x', 0)")
        worker(end)
        assert os.stat(root / "file").st_mtime > 1e9, end


def test_set_id_bits_go_with_the_first_store(root: Path, worker: Agent) -> None:
    path = root / "file"
    path.write_bytes(b"x" * PART)
    os.chown(path, NOBODY, NOBODY)
    worker("os.setegid({user}); os.seteuid({user})", user=NOBODY)
    path.chmod(0o4755)
    worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
    for _ in range(5):
        worker("os.pwrite(fd, b'y', 1)")
    assert path.stat().st_mode & 0o7777 == 0o755


def test_who_may_not_open_the_pool_goes_through_the_kernel(pool: Callable[..., Path], library: Path) -> None:
    made = pool("-b", "4096")
    made.chmod(0o600)
    with mounted(made, *SESSIONS["kernel"], "allow_other") as mount, agent(library) as worker:
        path = mount.place / "file"
        path.write_bytes(b"x" * PART)
        path.chmod(0o666)
        worker("os.setegid({user}); os.seteuid({user})", user=NOBODY)
        worker("fd = os.open({path}, os.O_RDWR)", path=str(path))
        assert [worker("os.pread(fd, 4096, 0)") for _ in range(3)] == [b"x" * PART] * 3
        worker("os.seteuid(0)")  # only so may it count
        _, calls = worker("direct(lambda: os.pread(fd, 4096, 0))")  # type: ignore[misc]
        assert calls == 1


def test_duplicates_share_position_and_flags(root: Path, worker: Agent) -> None:
    content = warm(worker, root / "file")
    worker("two = os.dup(fd); os.lseek(fd, 0, 0)")
    assert worker("os.read(fd, 100) + os.read(two, 100)") == content[:200]
    worker("fcntl.fcntl(two, fcntl.F_SETFL, os.O_APPEND)")
    worker("os.write(fd, b'end')")
    assert (root / "file").read_bytes() == content + b"end"
    worker("os.close(fd)")
    got, calls = worker("direct(lambda: os.pread(two, 50, 10))")  # type: ignore[misc]
    assert (got, calls) == (content[10:60], 0)


def test_a_child_reads_and_writes_as_its_parent_does(root: Path, worker: Agent) -> None:
    content = warm(worker, root / "file")
    worker("os.lseek(fd, 0, 0)")
    worker(
        """child = os.fork()
if child == 0:
    good = os.read(fd, 10) == {start} and os.pwrite(fd, b'child', 100) == 5 and os.pread(fd, 5, 100) == b'child'
    os.ftruncate(fd, 8 * 4096)
    os.close(fd)
    os._exit(0 if good else 1)
status = os.waitpid(child, 0)[1]""",
        start=content[:10],
    )
    assert worker("status") == 0
    assert worker("os.lseek(fd, 0, 1)") == 10
    assert worker("os.pread(fd, 1 << 20, 0)") == content[:100] + b"child" + content[105 : 8 * PART]


def test_standard_streams_that_are_replaced(root: Path, library: Path) -> None:
    """dup2 and exec: the shell's redirections, a program that copies, and one that reads what came."""
    script = "echo one > a; echo two >> a; cat a a > b; wc -l < b; exec cat b"
    assert said(library, "bash", "-c", f"cd {root}; {script}") == "4\none\ntwo\none\ntwo\n"


def test_another_pool_under_the_same_device_number(tmp_path: Path, worker: Agent) -> None:
    """The kernel gives the number of a mount that is gone to the next one."""
    contents = []
    for number in range(3):
        made = mke2fs(tmp_path / f"pool{number}", "-b", "4096")
        with mounted(made, *SESSIONS["kernel"]) as mount:
            contents.append(os.urandom(64 * PART))
            (mount.place / "file").write_bytes(contents[-1])
            worker("fd = os.open({path}, os.O_RDWR)", path=str(mount.place / "file"))
            for _ in range(3):
                assert worker("os.pread(fd, 1 << 20, 0)") == contents[-1]
            worker("os.pwrite(fd, b'written', 0)")
            assert (mount.place / "file").read_bytes() == b"written" + contents[-1][7:]
            worker("os.close(fd)")


def test_the_daemon_may_die(pool: Callable[..., Path], library: Path) -> None:
    made = pool("-b", "4096")
    with mountpoint() as place:
        mount = Mounted(made, place, SESSIONS["kernel"])
        with agent(library) as worker:
            warm(worker, place / "file")
            mount.daemon.kill()
            mount.daemon.wait(HANG_SECONDS)
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                worker("os.ftruncate(fd, 0)")
            worker("os.pread(fd, 100, 0)")
        mount.down()
    with mounted(made, *SESSIONS["kernel"]):
        pass
    fsck(made)


@pytest.mark.parametrize("kind", ["signals", "forks", "closes", "streams"])
def test_what_comes_in_between(root: Path, library: Path, signals: Path, kind: str) -> None:
    assert said(library, signals, kind, root / "file") == "good\n"


@pytest.mark.parametrize("who", ["one process", "two processes"])
def test_threads_while_the_file_is_cut(root: Path, library: Path, crowd: Path, who: str) -> None:
    """No thread reads or overwrites another file's blocks, although blocks are freed and reused all the time."""
    file, kept = root / "file", root / "kept"
    file.write_bytes(bytes(512 * PART))
    commands: list[tuple[Path | None, tuple[str, ...]]] = [
        (library, ("work", str(file), "0x1111000000", SECONDS)),
        (library if who == "two processes" else None, ("keep", str(kept), "0x2222000000", SECONDS)),
        (None, ("cut", str(file), SECONDS)),
    ]
    if who == "two processes":
        commands.append((library, ("work", str(file), "0x1111000000", SECONDS)))
    running = [
        subprocess.Popen(
            [crowd, *command], env=below(preloaded), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for preloaded, command in commands
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 0


def test_stores_past_the_caches_are_copies(tmp_path: Path) -> None:
    assert said(None, compile_program("copies", tmp_path / "copies")) == "good\n"
