"""Mutants: deliberate faults, each of which some test must catch.

`mutant` is what a fault is, `catalogue` lists them, `runner` applies each to a copy of the project and runs its tests
there, `__main__` is ``make test-teeth``. docs/CRASH.md, "Mutants", says how to add one.
"""
