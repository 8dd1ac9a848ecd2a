"""Layer 0: what the modules of the core say to mypyc, which compiles them (docs/DESIGN.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr  # noqa: PLC0414 (mypy exports it only so)
else:

    def mypyc_attr(**_):
        """Tell mypyc how to compile a class (`mypy_extensions.mypyc_attr`); nothing when it runs."""
        return lambda decorated: decorated
