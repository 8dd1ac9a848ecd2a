"""Layer 4: the content of the pool as it was at an earlier moment, without what files and inodes mean."""
