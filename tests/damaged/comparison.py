"""Compare two readings of one image: what only one of them has read, and what both have read differently."""

from __future__ import annotations

from enum import Enum

from damaged.readers import Record, Tree


class Verdict(Enum):
    """How daxfs's reading of an image compares with the kernel's, the worst last."""

    EQUAL = "equal"
    MORE = "reads more"
    LESS = "reads less"
    DIFFERENT = "reads something else"
    NOT_MOUNTED = "not mounted"
    FAILED = "ended without a result"


_ORDER = list(Verdict)


def worst(verdicts: list[Verdict]) -> Verdict:
    """Return the worst of some verdicts."""
    return max(verdicts, key=_ORDER.index, default=Verdict.EQUAL)


def compare(kernel: Tree, ours: Tree) -> list[tuple[Verdict, str]]:
    """Return every difference: who has read more, and where."""
    found: list[tuple[Verdict, str]] = []
    for path in sorted(kernel.keys() | ours.keys()):
        theirs, own = kernel.get(path), ours.get(path)
        where = "/" + path.decode("utf-8", "backslashreplace")
        if theirs is None or own is None:
            present = own if theirs is None else theirs
            assert present is not None
            if _readable(present.get("status")):
                found.append((Verdict.MORE if theirs is None else Verdict.LESS, f"{where}: {_short(present)}"))
            continue
        for what in sorted(theirs.keys() | own.keys()):
            if what in ("names", "listing", "unreadable"):
                continue  # the paths, and the pieces, show what is missing
            a, b = theirs.get(what), own.get(what)
            if a == b:
                continue
            if _readable(a) and _readable(b):
                kind = Verdict.DIFFERENT
            elif _readable(a):
                kind = Verdict.LESS
            elif _readable(b):
                kind = Verdict.MORE
            else:
                continue
            found.append((kind, f"{where}: {what}: kernel {_brief(a)}, daxfs {_brief(b)}"))
    return found


def _readable(value: object) -> bool:
    """Whether a value was read: an error is its name, and what was not asked is None."""
    return value is not None and not (isinstance(value, str) and value.isupper())


def _short(record: Record) -> str:
    return _brief(record.get("status"))


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."
