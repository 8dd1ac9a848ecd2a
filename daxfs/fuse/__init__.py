"""Floor 8: the FUSE sessions. `kernel/` speaks the protocol itself and is the default; `libfuse/` is pyfuse3's."""
