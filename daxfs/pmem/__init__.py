"""Layer 2: the pool as memory: open, map, store, flush, fence. It knows nothing of what the pool holds."""
