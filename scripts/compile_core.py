"""Compile the core with mypyc: ``compile_core.py [FOLDER]``. ``make compiled``, ``make setup`` and pip run it.

The modules of `MODULES` become C, and the C a shared library in ``daxfs/_compiled``, with a small one for each module
and the manifest that `daxfs.compiled` compares with the sources. There is no second source: mypyc gets a copy of the
sources in which the fields of records are written out as properties (`expanded`), since it does not see those that
`daxfs.ext4.field` makes at run time. Tracebacks name the lines of the sources nevertheless.

What the C compiler made is kept in `OBJECTS`, by the hash of all that it was made from. So after a change of one module
most of it is there already, also for a copy of the project that names the same folder in ``DAXFS_OBJECTS``.

Without mypyc or a C compiler it says so in one line and ends with 0: daxfs runs interpreted then.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "daxfs" / "_compiled"
WORK = ROOT / "build" / "core"
OBJECTS = Path(os.environ.get("DAXFS_OBJECTS") or ROOT / "build" / "objects")
KEPT_SECONDS = 7 * 24 * 3600
"""How long an object that no build uses is kept."""
MODULES = (
    *("runs", "ext4.dirent", "ext4.extent", "ext4.group", "ext4.hash", "ext4.htree", "ext4.inode", "ext4.inodestat"),
    *("ext4.checksum", "ext4.jbd2", "ext4.record", "ext4.superblock", "ext4.xattr"),
    *(
        "journal.area",
        "journal.armed",
        "journal.cache",
        "journal.continued",
        "journal.handle",
        "journal.journal",
        "journal.log",
    ),
    *("journal.logged", "journal.nolog", "journal.tail", "journal.transaction", "journal.view"),
    *("structures.bitmaps", "structures.blocks", "structures.blocksearch", "structures.dirblocks"),
    *("structures.directories", "structures.dirhints", "structures.dirlist", "structures.extent_edit"),
    *("structures.extent_mark", "structures.extent_nodes", "structures.extent_removal"),
    *("structures.extent_shift", "structures.extent_swap", "structures.extent_tail", "structures.extent_tree"),
    *("structures.extents", "structures.groupmaps", "structures.groups", "structures.htree", "structures.indirect"),
    *("structures.inode_allocation", "structures.inode_bitmaps", "structures.inode_placement", "structures.inodes"),
    *("structures.linear", "structures.mapping", "structures.metadata_zone", "structures.noted"),
    *("structures.orphans", "structures.reserves", "structures.salvage", "structures.validated_roots"),
    *("structures.xattrs",),
    *("fs.appends", "fs.attributes", "fs.change", "fs.data", "fs.filemap", "fs.lifetimes", "fs.names", "fs.nodes"),
    *("fs.openfile", "fs.pins", "fs.privileges", "fs.reclaim", "fs.removal", "fs.staging", "fs.steps"),
    *("fs.truncating", "fs.volume"),
    *("fs.tiers.heat", "fs.tiers.placement"),
    *("fuse.kernel.attributes", "fuse.kernel.directories", "fuse.kernel.dirents", "fuse.kernel.dispatch"),
    *("fuse.kernel.encoding", "fuse.kernel.names", "fuse.kernel.nodeid", "fuse.kernel.request"),
    *("fuse.kernel.session",),
)
"""What is compiled, below ``daxfs``: what every operation runs through."""
NAMES = tuple(f"daxfs.{module}" for module in MODULES)
GROUP = "daxfs_core"
FUTURE = "from __future__ import annotations"
VALUE = r" = (?=(0x[0-9A-F_]+|[0-9][0-9_]*)( << [0-9]+)?( - 1)?( +#|$))"
NUMBER = re.compile(rf"^([A-Z_][A-Z0-9_]*){VALUE}", re.MULTILINE)
"""A constant of a module that is a number."""
PRIVATE_NUMBER = re.compile(rf"^(_[A-Z0-9_]*){VALUE}", re.MULTILINE)
"""One whose name begins with an underscore."""
OPTIMIZATION = "2"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "_compiled", "preload", "*.so", "*.c", "*.h")


class Unavailable(Exception):
    """Nothing can be compiled here; the message says why."""


def loaded(path: Path) -> ModuleType:
    """Load a module that imports nothing of daxfs, without the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# Records


class Record:
    """A class of a source that declares fields.

    Attributes:
        items: line -> name and declaration.
        fields: all fields, those of base classes included.
        last: the last line that declares a field.
        size: ``SIZE``.
        binds: whether it needs an ``__init__``.
    """

    def __init__(self, node: ast.ClassDef, field: ModuleType, constants: dict[str, Any], bases: dict[str, Record]):
        self.name = node.name
        self.items: dict[int, tuple[str, Any]] = {}
        self.size = 0
        self.binds = not any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body)
        for item in node.body:
            if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                name = item.targets[0].id
                value = eval(ast.unparse(item.value), {**vars(field), **constants}) if name != "__slots__" else None
                if name == "SIZE":
                    self.size = value
                elif isinstance(value, field.Declared | field.JoinedField):
                    self.items[item.lineno] = name, value
        own = [field.describe(name, item) for name, item in self.items.values() if isinstance(item, field.Declared)]
        above = [bases[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in bases]
        inherited = [info for base in above for info in base.fields]
        self.fields = sorted((*inherited, *own), key=lambda info: info.offset)
        self.last = max(self.items, default=0)


def expanded(text: str, field: ModuleType) -> tuple[str, list[int]]:
    """Return a module's source in which the declared fields of records are properties.

    Args:
        text: the source.
        field: `daxfs.ext4.field`.

    Returns:
        The text, and for each of its lines the line of the source.
    """
    made: list[str] = []
    origins: list[int] = []
    constants: dict[str, Any] = {}
    records: dict[str, Record] = {}
    for node in ast.parse(text).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.targets[0], ast.Name)
        ):
            constants[node.targets[0].id] = node.value.value
        elif isinstance(node, ast.ClassDef) and node.bases and not node.decorator_list:
            records[node.name] = Record(node, field, constants, records)
    items = {line: (record, *item) for record in records.values() for line, item in record.items.items()}
    for number, line in enumerate(text.splitlines(), 1):
        if number not in items:
            block = [line]
            if line == "from daxfs.ext4.record import Record":
                block = ["from daxfs.ext4.field import FieldInfo", line]
        else:
            record, name, item = items[number]
            joined = isinstance(item, field.JoinedField)
            source = field.joined_source(name, item, record.fields) if joined else field.field_source(name, item)
            if number == record.last:
                source += f"FIELDS = tuple(map(FieldInfo._make, {[tuple(info) for info in record.fields]!r}))\n"
                if record.binds:
                    source += field.binding_source(record.name, record.size, record.fields)
            block = ["    " + part for part in source.splitlines()]
        made += block
        origins += [number] * len(block)
    return "\n".join(made) + "\n", origins


def with_old_lines(code: str, origins: list[int], path: str) -> str:
    """Return C in which the tracebacks of the expanded source ``path`` name the lines of the source."""

    def line(match: re.Match[str]) -> str:
        return f"{match[1]}{origins[int(match[2]) - 1]}"

    return re.sub(rf'(CPy_\w+\("{re.escape(path)}", [^;\n]*?, )(\d+)(?=[,)])', line, code)


SOURCE_PATH = """
#include <dlfcn.h>

/* Return the path of a source whose path below the package's folder is given: this library is in daxfs/_compiled. */
static const char *source_path(const char *name) {
    static char path[4096];
    static size_t root; /* where the name begins in the path; 0: not known yet, 1: it can't be known */
    if (!root) {
        Dl_info found;
        root = 1;
        if (dladdr((void *)source_path, &found) && found.dli_fname && strlen(found.dli_fname) < sizeof path) {
            char *end = strcpy(path, found.dli_fname);
            for (int level = 0; end && level < 3; level++) {
                end = strrchr(path, '/');
                if (end) *end = 0;
            }
            if (end) root = strlen(path) + 1;
        }
    }
    if (root == 1 || root + strlen(name) >= sizeof path) return name;
    path[root - 1] = '/';
    return strcpy(path + root, name) - root;
}

"""
"""C that is put before the function of mypyc's library which makes the tracebacks."""
ADDS_TRACEBACK = "void CPy_AddTraceback("
MAKES_CODE = "PyCode_NewEmpty(filename,"


def with_paths(code: str) -> str:
    """Return mypyc's ``exc_ops.c`` so that tracebacks name the sources by paths that can be opened."""
    if ADDS_TRACEBACK not in code or MAKES_CODE not in code:  # of another version: the paths stay relative
        return code
    made = code.replace(MAKES_CODE, "PyCode_NewEmpty(source_path(filename),")
    return made.replace(ADDS_TRACEBACK, SOURCE_PATH + ADDS_TRACEBACK, 1)


# Building


def copied(work: Path) -> dict[str, list[int]]:
    """Copy the sources, with expanded records; return the lines of those that were expanded."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(ROOT / "daxfs", work / "daxfs", ignore=LEFT_OUT)
    field = loaded(ROOT / "daxfs" / "ext4" / "field.py")
    lines: dict[str, list[int]] = {}
    for module in MODULES:
        path = work / "daxfs" / (module.replace(".", "/") + ".py")
        text = path.read_text()
        if "from daxfs.ext4.field import" in text and module != "ext4.record":
            text, lines[str(path.relative_to(work))] = expanded(text, field)
        path.write_text(with_final_numbers(text, private=not module.startswith("ext4.")))
    return lines


def with_final_numbers(text: str, *, private: bool = False) -> str:
    """Return a module's source in which constant numbers are final: mypyc then looks none of them up.

    No test replaces one, as tests do with the limits of the layers above the format. The lines stay where they are.

    Args:
        text: the source.
        private: only those whose names begin with an underscore.
    """
    made = (PRIVATE_NUMBER if private else NUMBER).sub(r"\1: Final = ", text)
    return text if made == text else made.replace(FUTURE, FUTURE + "; from typing import Final", 1)


def translated(work: Path) -> list[Any]:
    """Run mypyc on the copy; return the extensions that its C makes."""
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        raise Unavailable(f"mypyc is not installed ({error})") from error
    paths = [f"daxfs/{module.replace('.', '/')}.py" for module in MODULES]
    said = io.StringIO()
    options = ["--config-file=", "--ignore-missing-imports", "--no-error-summary"]
    with contextlib.chdir(work), contextlib.redirect_stdout(said):
        try:
            return mypycify(
                [*options, *paths],
                multi_file=True,
                opt_level=OPTIMIZATION,
                debug_level="0",
                target_dir="c",
                group_name=GROUP,
            )
        except SystemExit as error:
            raise Unavailable(f"mypyc refuses the sources:\n{said.getvalue()}") from error


def object_name(source: Path, headers: bytes, arguments: list[str]) -> str:
    """Return the name under which the object of a C source is kept: a hash of what it is made from.

    Args:
        source: the file.
        headers: a hash of all that it may include.
        arguments: of the compiler.
    """
    return hashlib.sha256(b"\0".join((*map(str.encode, arguments), headers, source.read_bytes()))).hexdigest() + ".o"


def remove_old(objects: Path) -> None:
    """Remove objects that were not used for a long time."""
    before = time.time() - KEPT_SECONDS
    for path in objects.glob("*.o"):
        with contextlib.suppress(FileNotFoundError):  # another build is faster
            if path.stat().st_mtime < before:
                path.unlink()


def compiled(
    work: Path, extensions: list[Any], into: Path, say: Callable[[str], None], objects: Path = OBJECTS
) -> None:
    """Compile the C on all processors, except for what is in the folder ``objects``, and link the libraries."""
    from setuptools._distutils import ccompiler, errors, sysconfig

    compiler = ccompiler.new_compiler()
    sysconfig.customize_compiler(compiler)
    include = sysconfig.get_python_inc()
    jobs = [(extension, source) for extension in extensions for source in extension.sources]
    jobs.sort(key=lambda job: -(work / job[1]).stat().st_size)
    done = 0
    objects.mkdir(parents=True, exist_ok=True)
    remove_old(objects)
    folders = sorted({work / folder for extension in extensions for folder in extension.include_dirs})
    headers = hashlib.sha256(sys.version.encode())
    for path in (path for folder in folders for path in sorted(folder.rglob("*.h"))):
        headers.update(path.name.encode() + path.read_bytes())

    def one(job: tuple[Any, str]) -> tuple[str, str]:
        nonlocal done
        extension, source = job
        arguments = ["-g0", *extension.extra_compile_args]
        places = [*extension.include_dirs, include]
        kept = objects / object_name(work / source, headers.digest(), [*compiler.compiler_so, *arguments])
        if kept.exists():
            kept.touch()
        else:
            (made,) = compiler.compile([source], output_dir="o", include_dirs=places, extra_postargs=arguments)
            part = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(made, part)
            part.replace(kept)
        done += 1
        say(f"{done} of {len(jobs)}")
        return extension.name, str(kept)

    parts: dict[str, list[str]] = {}
    try:
        with contextlib.chdir(work), ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, kept in pool.map(one, jobs):
                parts.setdefault(name, []).append(kept)
            for name, made in parts.items():
                compiler.link_shared_object(made, str(into / f"{name}.so"))
    except (errors.CompileError, errors.LinkError, errors.DistutilsExecError) as error:
        raise Unavailable(f"the C compiler failed ({error})") from error


def is_current(into: Path) -> bool:
    """Whether the folder has what the sources make now, and with this Python."""
    ours = loaded(ROOT / "daxfs" / "compiled.py")
    manifest = ours.read_manifest(str(into))
    current: bool = manifest is not None and not ours.difference(manifest, str(ROOT / "daxfs"))
    return current and set(manifest.modules) == set(NAMES)


def build(into: Path, say: Callable[[str], None]) -> None:
    """Compile the core into the folder ``into``, which is replaced.

    Raises:
        Unavailable: it can't be compiled here; the folder is gone.
    """
    ours = loaded(ROOT / "daxfs" / "compiled.py")
    shutil.rmtree(into, ignore_errors=True)
    say("translating to C")
    hashes = {name: ours.hash_of(ours.source_of(name, str(ROOT / "daxfs"))) for name in NAMES}
    lines = copied(WORK)
    extensions = translated(WORK)
    for path, origins in lines.items():
        code = WORK / "c" / f"__native_{path.removesuffix('.py').replace('/', '___')}.c"
        code.write_text(with_old_lines(code.read_text(), origins, path))
    tracebacks = WORK / "c" / "exc_ops.c"
    tracebacks.write_text(with_paths(tracebacks.read_text()))
    made = WORK / "made"
    made.mkdir()
    compiled(WORK, extensions, made, say)
    ours.write_manifest(str(made), ours.Manifest(ours.this_python(), hashes))
    into.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, into)
    shutil.rmtree(WORK)


def progress(text: str) -> None:
    """Show how far it is: in one line of a terminal, or now and then in a log."""
    done = text.partition(" ")[0]
    if sys.stdout.isatty():
        print(f"\rsetup: compiling the core: {text} \033[K", end="", flush=True)
    elif not done.isdigit() or int(done) % 20 == 0:
        print(f"setup: compiling the core: {text}", flush=True)


def attempt(into: Path) -> None:
    """Compile the core if that is possible and not done yet; say in one line what became of it."""
    if is_current(into):
        print("setup: the core is compiled already")
        return
    try:
        build(into, progress)
    except Unavailable as error:
        print(f"setup: the core stays interpreted: {error}")
    else:
        progress("done")
        print(end="\n" if sys.stdout.isatty() else "")


if __name__ == "__main__":
    attempt(Path(sys.argv[1]).absolute() if sys.argv[1:] else FOLDER)
