"""The error that ends a run of the guest with one line."""

from __future__ import annotations


class CannotRun(Exception):
    """The guest can't run here. The text is one line that names what is missing and the mend."""
