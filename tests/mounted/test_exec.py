"""Programs and libraries that lie on the mount: run, loaded, replaced and protected while they run, as on ext4."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernel_rig import kernel_mount
from mount_rig import NOBODY, Mounted, as_user

from support import HANG_SECONDS, tool

PYTHON = Path(sys.executable).resolve()
LIBRARY = Path(sysconfig.get_path("stdlib"))
PACKAGES = ("collections", "ctypes", "encodings", "importlib", "json", "lib-dynload", "re")


@pytest.fixture
def sides(mount: Mounted, pool: Callable[..., Path]) -> Iterator[tuple[Path, Path]]:
    """A mount of daxfs and one of the kernel."""
    with kernel_mount(pool("-b", "4096")) as place:
        for root in (mount.place, place):
            root.chmod(0o755)
        yield mount.place, place


def said(*command: str | Path, **more: str) -> str:
    """A program's output."""
    environment = {**os.environ, **more}
    done = subprocess.run(
        list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def outcome(action: Callable[[], object]) -> str:
    """What an attempt ends in: an errno's name, or "" if it goes well."""
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


@contextlib.contextmanager
def running(program: Path) -> Iterator[Callable[[bytes], bytes]]:
    """A copy of cat(1) that runs: hand it bytes, get them back."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        source, target = child.stdout, child.stdin

        def echo(content: bytes) -> bytes:
            target.write(content)
            return source.read(len(content))

        echo(b"it runs")
        yield echo
        target.close()
        assert child.wait(HANG_SECONDS) == 0


def test_programs_run(root: Path) -> None:
    shutil.copy(tool("cat"), root / "program")
    (root / "data").write_bytes(b"content\n")
    assert said(root / "program", root / "data") == "content\n"
    script = root / "script"
    script.write_text(f"#!{root / 'program'}\nI am read by the program above.\n")
    script.chmod(0o755)
    assert said(script) == script.read_text()
    script.write_text("#!/bin/sh\necho $((6 * 7))\n")
    assert said(script) == "42\n"
    script.chmod(0o644)
    assert outcome(lambda: said(script)) == "EACCES"
    (root / "empty").touch(mode=0o755)
    assert outcome(lambda: said(root / "empty")) == "ENOEXEC"


def test_python_runs_from_the_mount(root: Path) -> None:
    """The interpreter, its library and compiled modules; it writes its byte code beside them."""
    version = f"python{sysconfig.get_python_version()}"
    modules = root / "lib" / version
    for name in PACKAGES:
        shutil.copytree(LIBRARY / name, modules / name, ignore=shutil.ignore_patterns("__pycache__", "test*", "_test*"))
    for module in LIBRARY.glob("*.py"):
        shutil.copy(module, modules)
    for library in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy(library, root / "lib", follow_symlinks=False)
    (root / "bin").mkdir()
    shutil.copy(PYTHON, root / "bin" / version)
    code = "import _ctypes, json, sys; print(json.dumps([sys.executable, _ctypes.__file__, json.__file__]))"
    environment = {"PYTHONHOME": str(root), "LD_LIBRARY_PATH": str(root / "lib"), "PYTHONDONTWRITEBYTECODE": ""}
    for _ in range(2):
        files = said(root / "bin" / version, "-S", "-c", code, **environment)
        assert files.count(f'"{root}/') == 3
    assert list(modules.glob("json/__pycache__/*.pyc"))


def test_shared_libraries_load(root: Path) -> None:
    """By the loader, from LD_LIBRARY_PATH, and by dlopen(3); two processes share the pages."""
    loaded = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libm.so" in line]
    shutil.copy(loaded[0], root / "libmath.so.1")
    code = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).cos; f.restype = ctypes.c_double"
    code += "; print(f(ctypes.c_double(0)), any(sys.argv[2] in line for line in open('/proc/self/maps')))"
    for name in ("libmath.so.1", str(root / "libmath.so.1")):
        assert said(PYTHON, "-c", code, name, root, LD_LIBRARY_PATH=str(root)) == "1.0 True\n"
    # A new version is renamed over the old one, as installers do: processes that run the old one keep it.
    shutil.copy(root / "libmath.so.1", root / "new")
    with running_python(root / "libmath.so.1") as cosine:
        assert cosine() == "1.0"
        os.rename(root / "new", root / "libmath.so.1")
        assert cosine() == "1.0"


@contextlib.contextmanager
def running_python(library: Path) -> Iterator[Callable[[], str]]:
    """A process that has loaded a library, and calls it when asked."""
    code = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).cos; f.restype = ctypes.c_double\n"
    code += "for _ in sys.stdin: print(f(ctypes.c_double(0)), flush=True)"
    command = [PYTHON, "-c", code, library]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        source, target = child.stdout, child.stdin

        def cosine() -> str:
            target.write("\n")
            return source.readline().strip()

        yield cosine
        target.close()
        assert child.wait(HANG_SECONDS) == 0


def test_a_running_program_is_protected(sides: tuple[Path, Path]) -> None:
    def attempts(root: Path) -> list[str]:
        program = root / "program"
        shutil.copy(tool("cat"), program)
        found = []
        with running(program) as echo:
            found += [
                outcome(lambda: os.close(os.open(program, os.O_WRONLY))),
                outcome(lambda: os.close(os.open(program, os.O_RDWR))),
                outcome(lambda: os.close(os.open(program, os.O_WRONLY | os.O_TRUNC))),
                outcome(lambda: os.close(os.open(program, os.O_RDONLY))),
                outcome(lambda: os.truncate(program, 0)),
                outcome(lambda: program.chmod(0o700)),
                outcome(lambda: os.setxattr(program, "user.a", b"value")),
                outcome(lambda: os.link(program, root / "link")),
                outcome(lambda: os.rename(program, root / "renamed")),
                outcome(lambda: os.unlink(root / "renamed")),
                outcome(lambda: os.unlink(root / "link")),
            ]
            # Its pages come from a file without a name, when memory has been given back too.
            Path("/proc/sys/vm/drop_caches").write_text("3")
            assert echo(b"still here") == b"still here"
        shutil.copy(tool("cat"), program)
        with running(program) as echo:
            shutil.copy(tool("true"), root / "new")
            found.append(outcome(lambda: os.rename(root / "new", program)))
            assert echo(b"the old one") == b"the old one"
        found.append(said(program))
        with open(program, "r+b"):
            found.append(outcome(lambda: said(program)))
        found.append(outcome(lambda: said(program)))
        return found

    ours, theirs = map(attempts, sides)
    assert ours == theirs
    assert "ETXTBSY" in ours


def test_a_program_changes_between_its_runs(root: Path) -> None:
    """What runs is what was written last, however it was written."""
    script = root / "script"
    script.write_text("#!/bin/sh\necho 0\n")
    script.chmod(0o755)
    for number in range(1, 10):
        with open(script, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"%d" % number, 15)
        assert said(script) == f"{number}\n"
    shutil.copy(tool("true"), root / "program")
    said(root / "program")
    with open(root / "program", "r+b", buffering=0) as file:
        file.write(b"#!/bin/sh\nexit 0\n")
        file.truncate()
    said(root / "program")


def test_set_id_programs(sides: tuple[Path, Path]) -> None:
    """A process that runs them gets the owner's rights; a write clears the bits, which the next run sees."""

    def attempts(root: Path) -> list[str]:
        program = root / "program"
        shutil.copy(tool("id"), program)
        os.chown(program, 1001, 1002)
        program.chmod(0o6777)
        (root / "out").touch(mode=0o666)
        (root / "out").chmod(0o666)

        def identity() -> None:
            with open(root / "out", "wb") as out:
                subprocess.run([program], stdout=out, stdin=subprocess.DEVNULL, timeout=HANG_SECONDS, check=True)

        def append() -> None:
            with open(program, "ab") as file:
                file.write(b"\0")

        found = []
        for change in (lambda: None, append, lambda: program.chmod(0o2755), lambda: os.chown(program, 0, 0)):
            if change is append:
                assert as_user(append) == 0
            else:
                change()
            assert as_user(identity) == 0
            found.append((root / "out").read_text())
        return found

    ours, theirs = map(attempts, sides)
    assert ours == theirs
    assert "euid=1001" in ours[0]
    assert "egid=1002" in ours[0]
    assert all(f"uid={NOBODY}" in text for text in ours)
    assert "euid" not in ours[1]


@pytest.mark.parametrize("session", ["kernel"], indirect=True)
@pytest.mark.parametrize("how", ["truncate", "fallocate", "copy"])
def test_a_set_id_program_of_somebody_else(mount: Mounted, how: str) -> None:
    """Whoever replaces its content, in whatever way, does not run that with the rights of its owner."""
    mount.place.chmod(0o755)
    program, identity, out = (mount.place / name for name in ("program", "id", "out"))
    shutil.copy(tool("id"), identity)
    content = identity.read_bytes()
    program.write_bytes(bytes(len(content)))
    program.chmod(0o6777)
    program.stat()
    out.touch()
    out.chmod(0o666)

    def replace() -> None:
        file = os.open(program, os.O_RDWR | (os.O_TRUNC if how == "truncate" else 0))
        if how == "fallocate":
            os.posix_fallocate(file, 0, 1)
        if how == "copy":
            source = os.open(identity, os.O_RDONLY)
            assert os.copy_file_range(source, file, len(content)) == len(content)
        else:
            assert os.write(file, content) == len(content)
        os.close(file)
        with open(out, "wb") as answer:
            subprocess.run([program], stdout=answer, stdin=subprocess.DEVNULL, timeout=HANG_SECONDS, check=True)

    assert as_user(replace) == 0
    assert out.read_text().startswith(f"uid={NOBODY}")
    assert "euid" not in out.read_text()
    assert "egid" not in out.read_text()
