"""Layer 2: the pool as memory: open, map, store, flush, fence. This layer knows nothing of the pool's content."""
