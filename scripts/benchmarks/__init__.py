"""The sections of scripts/bench.py: `beside` peers (data, metadata, fallocate), and daxfs `alone`."""
