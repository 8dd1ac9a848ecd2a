"""A request that takes several steps: its operation, and what its answer needs when the message is no longer there."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

from daxfs.fs.steps import Steps, Wait, interruption

Answer = bytes | memoryview | None
"""The body of an answer; None: the request wants none."""


class Work:
    """A request in progress.

    Attributes:
        message: the request, for another attempt when the pool was full; empty: nobody waits for an answer.
        opcode: of the request.
        unique: of the request.
        changes: the FUSE nodes that no other request may change meanwhile.
        shortens: whether INTERRUPT shortens the operation.
        seconds: how long its slices have taken.
        again: the request, in ``message``, is answered anew when the operation has ended.
        waits: what the operation waits for (`daxfs.fs.steps.Wait`); None: it can go on.
        result: of the operation, once `run` has returned True.
    """

    def __init__(
        self,
        steps: Steps[Any],
        answer: Callable[[Any], Answer],
        changes: frozenset[int] = frozenset(),
        *,
        shortens: bool = False,
        patience: float = math.inf,
        seconds: float = 0.0,
    ) -> None:
        """Describe an operation.

        Args:
            steps: the operation.
            answer: returns the answer's body for the operation's result.
            changes: see above.
            shortens: see above.
            patience: seconds of its own after which the operation is shortened.
            seconds: how long the steps took that were done already.
        """
        self.message = b""
        self.opcode = 0
        self.unique = 0
        self.changes = changes
        self.shortens = shortens
        self.seconds = seconds
        self.again = False
        self.waits: Wait | None = None
        self.result: Any = None
        self._steps = steps
        self._answer = answer
        self._patience = patience
        self._shortened = seconds >= patience

    def run(self, seconds: float, disturbed: Callable[[], object] = bool) -> bool:
        """Run steps for about ``seconds``, one at least, or until it `waits`; return whether the operation has ended.

        Args:
            seconds: the length of the slice.
            disturbed: asked between two steps; the slice ends when it returns something.

        Raises:
            Exception: what the operation failed with.
        """
        begin = perf_counter()
        before = self.seconds
        self.waits = None
        while True:
            try:
                if self._shortened:
                    self._shortened, self._patience = False, math.inf
                    waiting = self._steps.throw(interruption())
                else:
                    waiting = next(self._steps)
            except StopIteration as end:
                self.result = end.value
                return True
            finally:
                taken = perf_counter() - begin
                self.seconds = before + taken
            if waiting is not None and not waiting.due:
                self.waits = waiting
                return False
            if self.seconds >= self._patience:
                self._shortened = True
            elif taken >= seconds or disturbed():
                return False

    def answer(self) -> Answer:
        """Return the body of the answer."""
        body: Answer = self._answer(self.result)
        return body

    def interrupt(self) -> None:
        """Shorten the operation at its next step, if it may be shortened."""
        self._shortened = self.shortens
