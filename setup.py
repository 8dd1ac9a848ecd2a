"""How the C libraries and the core are compiled, which pyproject.toml can't say.

The libraries are no modules: nothing of Python is in them. They are optional: without a compiler daxfs installs as
well. `daxfs exec` then says what is missing, and faults of the pool's memory are handled in Python
(daxfs/pmem/guard.py).

The core is compiled where ``DAXFS_COMPILE=1`` asks for it (scripts/compile_core.py); pip then gets mypyc for the build.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = "daxfs/direct/preload"
COMPILE_CORE = os.environ.get("DAXFS_COMPILE", "0") not in ("", "0")
MYPYC = "mypy[mypyc]>=2.4"


class BuildLibraries(build_ext):
    """A shared library with a name that does not depend on the Python that built it."""

    def run(self) -> None:
        """Compile the core too, if that is wanted."""
        super().run()
        if COMPILE_CORE:
            package = "daxfs" if self.inplace else os.path.join(self.build_lib, "daxfs")
            command = [sys.executable, "scripts/compile_core.py", os.path.join(package, "_compiled")]
            subprocess.run(command, check=True)

    def get_ext_filename(self, ext_name: str) -> str:
        """Without the interpreter's version in it: programs of every kind load it."""
        return os.path.join(*ext_name.split(".")) + ".so"

    def get_libraries(self, ext: Extension) -> list[str]:
        """Without libpython, which a Python that is itself a shared library would add."""
        return list(ext.libraries)

    def copy_file(self, infile: str, outfile: str, *how: object, **more: object) -> tuple[str, bool]:
        """A new file in the place of the old one, which programs may have mapped: written over, it would be SIGBUS."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(outfile)
        return super().copy_file(infile, outfile, *how, **more)


setup(
    ext_modules=[
        Extension(
            "daxfs.direct._preload",
            sources=sorted(glob(f"{SOURCES}/*.c")),
            depends=["daxfs/direct/daxfs.h", *sorted(glob(f"{SOURCES}/*.h"))],
            include_dirs=["daxfs/direct"],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden", "-pthread"],
            # dlopen of libpmem and threads are libraries of their own before glibc 2.34.
            libraries=["dl", "pthread"],
            optional=True,
        ),
        Extension(
            "daxfs.pmem._guard",
            sources=["daxfs/pmem/guard.c"],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
            optional=True,
        ),
    ],
    setup_requires=[MYPYC] if COMPILE_CORE else [],
    cmdclass={"build_ext": BuildLibraries},
)
