"""Adaptive polling: choose between two ways of waiting for a request, sleeping in poll(2) at once or spinning first.

Which way serves more requests depends on conditions that the session can't see. If the scheduler runs caller and daemon
in turns on one processor, sleeping at once is best: spinning takes the caller's time. If they run on two processors and
an idle processor wakes up slowly, spinning is several times faster. Both conditions change from second to second. So
the session makes trials: now and then it serves a few turns the other way, and keeps the way that served more requests.
Only turns with dense requests count.
"""

from __future__ import annotations

TRIAL_TURNS = 2
FEWEST_TURNS = 8
MOST_TURNS = 128
"""Turns between two trials: from `FEWEST_TURNS` to `MOST_TURNS`, doubled each time that a trial changes nothing."""
BETTER = 1.05
"""The session changes its way if the other way's rate is more than this multiple of the current rate."""
SLUMP = 0.5
"""A rate below this multiple of the rate at the last trial shows that conditions have changed, and begins a trial."""


class AdaptivePolling:
    """The choice between two ways of waiting.

    Args:
        choice: whether there is a choice; without one the session always sleeps at once.

    Attributes:
        spinning: the current way is to spin first.
    """

    def __init__(self, *, choice: bool) -> None:
        self.spinning = choice
        self._choice = choice
        self._trying = False
        self._turns = 0
        self._until_trial = FEWEST_TURNS
        self._rate = 0.0
        self._known = 0.0
        self._tried = 0.0

    def learn(self, rate: float) -> None:
        """Learn from a turn with dense requests.

        Args:
            rate: requests per second in the turn.
        """
        if not self._choice:
            return
        self._turns += 1
        if self._trying:
            self._tried += rate / TRIAL_TURNS
            if self._turns >= TRIAL_TURNS:
                self._decide()
            return
        self._rate = (self._rate + rate) / 2 if self._rate else rate
        if self._turns >= self._until_trial or self._rate < SLUMP * self._known:
            self._turns = 0
            self._tried = 0.0
            self._trying = True
            self.spinning = not self.spinning

    def _decide(self) -> None:
        """End a trial: keep the other way if it served enough more, else go back."""
        if self._tried > BETTER * self._rate:
            self._rate = self._tried
            self._until_trial = FEWEST_TURNS
        else:
            self.spinning = not self.spinning
            self._until_trial = min(2 * self._until_trial, MOST_TURNS)
        self._known = self._rate
        self._trying = False
        self._turns = 0
