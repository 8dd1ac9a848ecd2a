"""Layer 6: the semantics of the file system. `FileSystem` is its only facade."""
