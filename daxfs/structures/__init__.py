"""Layer 5: the structures of a mounted ext4; every function takes the view or the handle as its first argument."""
