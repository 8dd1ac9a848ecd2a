"""What commands print of names that others have chosen: one line, whatever bytes a name has.

A name may have bytes that no encoding knows, line breaks, and sequences that a terminal obeys. Every command that
prints names of files as text uses `printable`; JSON has escapes of its own. This module prints nothing.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with what can't be shown as a character in Python's escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
