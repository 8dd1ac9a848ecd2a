"""Snapshots of a mounted pool: making, finding, deleting and reading them."""
