"""Layer 0: load the modules of the core that were compiled, or say why they run interpreted.

``scripts/compile_core.py`` compiles modules of the core with mypyc into the folder ``_compiled``: a shared library with
the code, a small one for each module, and the manifest of the sources from which they were made. `install` has the
import system take these in the place of the sources. It is all or nothing: if a source has changed since, if another
Python runs or if ``DAXFS_PURE`` is set, all modules run interpreted, and `state` says why.

The package calls `install` before it imports anything else of daxfs. Everybody may ask for `state`. Each start of a
program pays for this module, so it imports nothing that takes time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr  # noqa: PLC0414 (mypy exports it only so)
else:

    def mypyc_attr(**_):
        """Tell mypyc how to compile a class (`mypy_extensions.mypyc_attr`); nothing when it runs."""
        return lambda decorated: decorated


PACKAGE = os.path.dirname(__file__)
FOLDER = os.path.join(PACKAGE, "_compiled")
MANIFEST = "MANIFEST"
LIBRARY = "daxfs_core__mypyc"
"""The name by which the modules import the library with the code; mypyc appends the last part."""
VARIABLE = "DAXFS_PURE"
"""An environment variable: set and not 0, all modules run interpreted."""
COMPILED = "compiled"


class Manifest(NamedTuple):
    """What was compiled: for which Python (its cache tag and ABI), and the hash of the source of each module."""

    python: str
    modules: dict[str, str]


def this_python() -> str:
    """Return what a compiled module depends on: the version and the ABI of Python."""
    from importlib.machinery import EXTENSION_SUFFIXES

    return EXTENSION_SUFFIXES[0].strip(".").removesuffix(".so")


def source_of(module: str, package: str = PACKAGE) -> str:
    """Return the path of a module's source."""
    return os.path.join(os.path.dirname(package), *module.split(".")) + ".py"


def library_of(name: str, folder: str = FOLDER) -> str:
    """Return the path of a module's compiled form."""
    return os.path.join(folder, name + ".so")


def hash_of(path: str) -> str:
    """Return the hash of a source, as Python's own caches of bytecode have it (PEP 552)."""
    from importlib.util import source_hash

    with open(path, "rb") as file:
        return source_hash(file.read()).hex()


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Write the manifest; the last step of a build, since without it nothing is loaded."""
    lines = [manifest.python, *(f"{digest} {name}" for name, digest in manifest.modules.items())]
    path = os.path.join(folder, MANIFEST)
    with open(path + ".new", "w") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(path + ".new", path)


def read_manifest(folder: str = FOLDER) -> Manifest | None:
    """Read the manifest; None: nothing was compiled, or the manifest is damaged."""
    try:
        with open(os.path.join(folder, MANIFEST)) as file:
            python, *lines = file.read().splitlines()
        return Manifest(python, {name: digest for digest, name in map(str.split, lines)})
    except (FileNotFoundError, ValueError):
        return None


def obstacle(manifest: Manifest | None, package: str = PACKAGE) -> str:
    """Return why the compiled modules can't be used; empty if they can."""
    if os.environ.get(VARIABLE, "0") not in ("", "0"):
        return f"{VARIABLE} is set"
    return "not compiled" if manifest is None else difference(manifest, package)


def difference(manifest: Manifest, package: str = PACKAGE) -> str:
    """Return how the sources or this Python differ from what was compiled; empty if they do not."""
    if manifest.python != this_python():
        return f"compiled for {manifest.python}"
    for name, digest in manifest.modules.items():
        source = source_of(name, package)
        if not os.path.exists(source) or hash_of(source) != digest:
            return f"{name} has changed since it was compiled"
    return ""


def missing(manifest: Manifest, folder: str = FOLDER) -> str:
    """Return which library of the manifest is not there; empty: all are."""
    for name in (LIBRARY, *manifest.modules):
        if not os.path.exists(library_of(name, folder)):
            return f"the library of {name} is missing"
    return ""


class Finder:
    """Finds the compiled modules, for ``sys.meta_path``. At the first one it decides whether any is used."""

    def __init__(self) -> None:
        self._manifest = read_manifest()
        self._listed = frozenset(self._manifest.modules if self._manifest else ()) | {LIBRARY}
        self._obstacle: str | None = None

    def obstacle(self) -> str:
        """Return why the compiled modules are not used, or an empty string; decided at the first call."""
        if self._obstacle is None:
            self._obstacle = obstacle(self._manifest) or (missing(self._manifest) if self._manifest else "")
        return self._obstacle

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return the compiled form of a module, if it has one and is used."""
        if name not in self._listed or self.obstacle():
            return None
        library = library_of(name)
        spec = ModuleSpec(name, ExtensionFileLoader(name, library), origin=library)
        spec.has_location = True
        return spec

    def modules(self) -> frozenset[str]:
        """Return the names of the modules that run compiled."""
        return frozenset() if self.obstacle() else self._listed - {LIBRARY}


_finder = Finder()


def install() -> None:
    """Have the import system load what was compiled; a second call does nothing."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def state() -> str:
    """Return ``compiled``, or ``interpreted`` with the reason, in one line."""
    why = _finder.obstacle()
    return f"interpreted ({why})" if why else COMPILED


def modules() -> frozenset[str]:
    """Return the names of the modules that run compiled."""
    return _finder.modules()
