"""The fuzzer: damage that checksums do not show. ``make fuzz`` (see `__main__`), a small run in tests/fs/test_fuzz.py.

`mutations` changes fields of one structure of an image and makes its checksum again; `trial` mounts the result, reads
and writes all that it can, and judges what happened. A seed determines everything, so a finding is reported by its
seed. `watchdog` runs many trials, and ends those that take too long or too much memory.
"""
