"""Format the table of mount options for ``daxfs mount --help``, README.md and the man page daxfs-mount(8)."""

from __future__ import annotations

from collections.abc import Iterator

from daxfs.fuse.optiontable import OPTIONS, Kind, Option

HEADINGS = {
    Kind.SERVED: "Served",
    Kind.ALWAYS: "Accepted, and in force on every mount",
    Kind.WITHOUT: "Accepted without effect",
    Kind.REFUSED: "Refused",
    Kind.OUTSIDE: "Read by mount(8) only",
}
COLUMN = 30
"""The column where the text of an option begins in the help."""


def _of(kind: Kind) -> Iterator[Option]:
    return (option for option in OPTIONS if option.kind is kind)


def as_help() -> str:
    """Return the help: one line for each option, or two if its spellings are long."""
    lines: list[str] = []
    for kind, heading in HEADINGS.items():
        lines += ["", f"{heading}:"]
        for option in _of(kind):
            words = "  " + ", ".join(option.spellings)
            if len(words) > COLUMN - 2:
                lines.append(words)
                words = ""
            lines.append(f"{words:<{COLUMN}}{option.text}")
    return "\n".join(lines[1:]) + "\n"


def as_markdown() -> str:
    """Return a Markdown table of the served options, and lists of the other kinds."""
    lines = ["| option | meaning |", "|---|---|"]
    lines += [f"| {_code(option)} | {_cell(option.text)} |" for option in _of(Kind.SERVED)]
    for kind in (Kind.ALWAYS, Kind.WITHOUT, Kind.REFUSED):
        lines += ["", f"{HEADINGS[kind]}:", ""]
        lines += [f"- {_code(option)}: {option.text}" for option in _of(kind)]
    words = ", ".join(_code(option) for option in _of(Kind.OUTSIDE))
    return "\n".join([*lines, "", f"{HEADINGS[Kind.OUTSIDE]}: {words}"]) + "\n"


def _code(option: Option) -> str:
    return ", ".join(f"`{_cell(word)}`" for word in option.spellings)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def as_roff() -> str:
    """Return roff with a tagged paragraph for each option."""
    lines: list[str] = []
    for kind, heading in HEADINGS.items():
        lines.append(f".SS {heading}")
        for option in _of(kind):
            lines += [".TP", r"\fB" + r"\fR, \fB".join(map(_roff, option.spellings)) + r"\fR", _roff(option.text)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-").replace("`", "")
