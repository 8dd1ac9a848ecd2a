"""A pool over memory and storage: its members, where data belongs, and its moves up and down (docs/TIERS.md)."""
