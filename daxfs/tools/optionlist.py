"""The table of mount options as ``daxfs mount --help``, README.md and the man page daxfs-mount(8) show it."""

from __future__ import annotations

from collections.abc import Iterator

from daxfs.fuse.optiontable import OPTIONS, Kind, Option

HEADINGS = {
    Kind.SERVED: "Served",
    Kind.ALWAYS: "Accepted, and so on every mount",
    Kind.WITHOUT: "Accepted without effect",
    Kind.REFUSED: "Refused",
    Kind.OUTSIDE: "Read by mount(8) alone",
}
COLUMN = 30
"""Where the text of an option begins in the help."""


def _of(kind: Kind) -> Iterator[Option]:
    return (option for option in OPTIONS if option.kind is kind)


def as_help() -> str:
    """Each option with one line, or two where its spellings are long."""
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
    """A table of the served options, and lists of the others with what is to be said of them."""
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
    """One tagged paragraph for each option."""
    lines: list[str] = []
    for kind, heading in HEADINGS.items():
        lines.append(f".SS {heading}")
        for option in _of(kind):
            lines += [".TP", r"\fB" + r"\fR, \fB".join(map(_roff, option.spellings)) + r"\fR", _roff(option.text)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    return text.replace("\\", r"\e").replace("-", r"\-").replace("`", "")
