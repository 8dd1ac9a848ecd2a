"""Fixtures of this folder."""

from direct_rig import daemon

__all__ = ["daemon"]
