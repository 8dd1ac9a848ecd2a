"""Check that the C files of the preload library include only headers of layers below their own.

Usage: c_layers.py [FOLDER] (daxfs/direct/preload). The file LAYERS in the folder lists the layers, the highest first,
each with its job. The layer ``file`` is ``file.h``, ``file.c`` and every ``file_*.c``. A file includes the header of
its own layer and headers of lower layers. A C file has no declarations of its own for functions and variables of other
files, and each layer defines what its header declares. So all calls between files go down, and there is no circle. The
script prints each fault as one line; the exit code is 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "daxfs" / "direct" / "preload"

INCLUDE = re.compile(r'#\s*include\s+"([^"]+)"')
PROTOTYPE = re.compile(r"^(?!static\b|typedef\b)[A-Za-z_][\w *]*?[\s*](pl_\w+)\([^;{}]*\);", re.MULTILINE)
VARIABLE = re.compile(r"^extern\b[^;()]*?(pl_\w+)(?:\[[^;]*\])*;", re.MULTILINE)


def faults(folder: Path) -> list[str]:
    """Return the faults in a folder, as lines ``file:line: what``."""
    layers = [line.split()[0] for line in (folder / "LAYERS").read_text().splitlines()]
    levels = {layer: level for level, layer in enumerate(reversed(layers))}
    headless = [layer for layer in layers if not (folder / f"{layer}.h").exists()]
    found = [f"{folder / 'LAYERS'}: {layer} has no {layer}.h" for layer in headless]
    for path in sorted([*folder.glob("*.[ch]")]):
        layer = path.stem if path.suffix == ".h" or path.stem in levels else path.stem.partition("_")[0]
        if layer not in levels:
            found.append(f"{path}: is of no layer in {folder / 'LAYERS'}")
            continue
        text = path.read_text()
        found += [f"{path}:{line}: {what}" for line, what in bad_includes(text, layer, path.suffix, levels)]
        if path.suffix == ".h":
            found += [f"{path}:{line}: {what}" for line, what in undefined(text, folder, layer)]
        else:
            found += [f"{path}:{line}: {what}" for line, what in declared(text)]
    return found


def bad_includes(text: str, layer: str, suffix: str, levels: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Yield line number and fault of each include that does not go down. Headers of other folders are allowed."""
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match or match[1].startswith("../"):
            continue
        other = match[1].removesuffix(".h")
        if other not in levels:
            yield number, f"includes {match[1]}, which is of no layer"
        elif levels[other] > levels[layer]:
            yield number, f"includes {match[1]}, which is above {layer}"
        elif other == layer and suffix == ".h":
            yield number, "includes itself"


def declared(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and fault of each declaration in a C file that belongs into a header."""
    for match in re.finditer(r"^\s*extern\b[^\n]*", text, re.MULTILINE):
        yield line_of(text, match), "has an extern declaration: that belongs into a header"
    for match in PROTOTYPE.finditer(text):
        if not match[0].startswith("extern"):
            yield line_of(text, match), f"declares {match[1]}: that belongs into a header"


def undefined(text: str, folder: Path, layer: str) -> Iterator[tuple[int, str]]:
    """Yield line number and fault of each declaration in a header that no C file of its layer defines."""
    code = "\n".join(path.read_text() for path in [*folder.glob(f"{layer}.c"), *folder.glob(f"{layer}_*.c")])
    for match in PROTOTYPE.finditer(text):
        if not re.search(rf"^(?!static\b)\w[^\n;(]*\b{match[1]}\([^;{{}}]*\) \{{", code, re.MULTILINE):
            yield line_of(text, match), f"declares {match[1]}, which {layer}.c does not define"
    for match in VARIABLE.finditer(text):
        if not re.search(rf"^(?!static\b|extern\b)\w[^\n;(]*\b{match[1]}\b[^\n(]*;", code, re.MULTILINE):
            yield line_of(text, match), f"declares {match[1]}, which {layer}.c does not define"


def line_of(text: str, match: re.Match[str]) -> int:
    """Return the number of the line where a match begins."""
    return text.count("\n", 0, match.start() + len(match[0]) - len(match[0].lstrip())) + 1


def main() -> int:
    """Print the faults; return the exit code."""
    found = faults(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    print("\n".join(found) or "The C files include only headers of layers below their own.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
