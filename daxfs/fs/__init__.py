"""Floor 6: semantics; `FileSystem` is the one facade."""
