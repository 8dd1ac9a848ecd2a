"""All mutants."""

from __future__ import annotations

from collections import Counter

from teeth import (
    in_armed,
    in_backends,
    in_files,
    in_growth,
    in_journal,
    in_relocation,
    in_shrinking,
    in_snapshots,
    in_tiers,
    in_tools,
)

MUTANTS = [
    *(
        *in_journal.MUTANTS,
        *in_armed.MUTANTS,
        *in_files.MUTANTS,
        *in_growth.MUTANTS,
        *in_backends.MUTANTS,
        *in_snapshots.MUTANTS,
    ),
    *(*in_relocation.MUTANTS, *in_shrinking.MUTANTS, *in_tiers.MUTANTS, *in_tools.MUTANTS),
]

twice = [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1]
assert not twice, f"two mutants are called {twice[0]!r}"
