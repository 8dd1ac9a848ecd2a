"""Floor 6: the FUSE sessions."""
