"""The sections of scripts/bench.py: daxfs compared with its peers (data, metadata, direct), and daxfs `alone`."""
