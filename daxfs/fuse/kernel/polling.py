"""Which way of waiting serves more requests here and now: sleeping in poll(2) at once, or asking again and again first.

It depends on things that the session can't see. Where the scheduler runs caller and daemon on one processor by turns,
sleeping at once is best, and asking again steals the caller's time. Where they run on two and an idle processor takes
long to wake up, asking again is several times faster. Both change from second to second. So the session tries: now and
then it serves a few turns the other way, and goes on with what served more. Only turns full of requests count.
"""

from __future__ import annotations

TRIAL_TURNS = 2
FEWEST_TURNS = 8
MOST_TURNS = 128
"""Turns between two trials: the longer, the more often the same way has won."""
BETTER = 1.05
"""What the other way must serve, times what this one does, to be worth the change."""
SLUMP = 0.5
"""Serving so much less than at the last trial means that things have changed."""


class AdaptivePolling:
    """The choice between two ways of waiting.

    Args:
        choice: there are two ways; else it is always sleeping at once.

    Attributes:
        spinning: ask again and again first.
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
        """A turn full of requests has ended.

        Args:
            rate: requests per second in it.
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
        """The trial is over: keep the other way, or go back."""
        if self._tried > BETTER * self._rate:
            self._rate = self._tried
            self._until_trial = FEWEST_TURNS
        else:
            self.spinning = not self.spinning
            self._until_trial = min(2 * self._until_trial, MOST_TURNS)
        self._known = self._rate
        self._trying = False
        self._turns = 0
