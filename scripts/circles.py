"""Find import circles: modules that import each other in any number of steps, including imports for type checking.

Usage: circles.py [PACKAGE] (daxfs). For each import that is part of a circle the script prints the shortest circle as
one line: ``a:3 -> b:1 -> a`` means that line 3 of a imports b and line 1 of b imports a. The exit code is 1 if there
is any circle.
"""

from __future__ import annotations

import sys

import grimp


def circles(package: str) -> list[str]:
    """Return the circles among the modules of an importable package, as lines."""
    graph = grimp.build_graph(package, cache_dir=None)
    found = set()
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            chain = graph.find_shortest_chain(imported, importer)
            if chain is not None:
                first = chain.index(min(chain))
                found.add((*chain[first:], *chain[:first]))
    return sorted(line(graph, circle) for circle in found)


def line(graph: grimp.ImportGraph, circle: tuple[str, ...]) -> str:
    """Return a circle as one line: its modules, each with the line of its first import of the next."""
    steps = zip(circle, (*circle[1:], circle[0]), strict=True)
    places = [
        f"{one}:{min(found['line_number'] for found in graph.get_import_details(importer=one, imported=other))}"
        for one, other in steps
    ]
    return " -> ".join([*places, circle[0]])


def main() -> int:
    """Print the circles; return the exit code."""
    found = circles(sys.argv[1] if len(sys.argv) > 1 else "daxfs")
    print("\n".join(f"import circle: {text}" for text in found) or "No import circles.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
