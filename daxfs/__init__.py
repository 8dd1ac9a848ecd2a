"""daxfs: a real ext4 file system in mapped persistent memory, served from user space."""
