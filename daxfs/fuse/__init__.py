"""Layer 8: the FUSE sessions. `kernel/` speaks the protocol itself and is the default; `libfuse/` uses pyfuse3."""
