"""Floor 5: semantics; `FileSystem` is the one facade."""
