"""The preload library writes back what it stores: its sources run with counted instructions and system calls."""

from __future__ import annotations

from pathlib import Path

from preload_rig import compile_program, said


def test_lines_and_pages_are_written_back(tmp_path: Path) -> None:
    """The linker leaves out what the program does not reach, with all that this would need of the other sources."""
    program = compile_program("write_back", tmp_path / "write_back", "-ffunction-sections", "-Wl,--gc-sections")
    assert said(None, program) == "good\n"
