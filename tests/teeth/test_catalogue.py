"""The catalogue of mutants fits the project: each can be applied, and the tests that must notice it are there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from teeth.catalogue import MUTANTS
from teeth.mutant import Mutant

TOP = Path(__file__).resolve().parents[2]


def test_names_are_unique() -> None:
    assert not [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_it_can_be_applied(mutant: Mutant) -> None:
    text = (TOP / mutant.path).read_text()
    assert mutant.applied(text) != text


@pytest.mark.parametrize("test", sorted({test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests}))
def test_what_must_notice_is_there(test: str) -> None:
    assert (TOP / test).is_file() or (TOP / test).is_dir()
