"""A pytest plugin: Hypothesis reports the first example that fails. A smaller one is worth nothing for a mutant."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile("first failure", phases=(Phase.explicit, Phase.generate))
settings.load_profile("first failure")
