"""Floor 1: the pool as memory."""
