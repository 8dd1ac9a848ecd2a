"""Turn by turn between users: who is served next while a long request is in progress.

Each user has a queue of messages, and the works (`Work`) of its requests. The user who has had the least time is next.
One who comes back begins with the least time of those who wait, so that nobody saves time up. Of one user's messages
and works, those are next that have had less time; the works take turns.

What the kernel sends for itself (closed files, forgotten nodes, pages that are written back) belongs to `NOBODY`, who
is served like a user, so that it is no user's loss.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daxfs.fuse.kernel.work import Work

NOBODY = -1
"""The number of no user."""
MOST_MESSAGES = 4096
"""The most messages of one user that are kept in DRAM."""
MOST_BYTES = 64 << 20
"""The most bytes of them."""


class User:
    """What waits for one user.

    Attributes:
        number: the user's.
        messages: requests that were read and not begun, oldest first.
        works: requests in progress, the next one first.
        answering: seconds that messages have had.
        working: seconds that works have had.
        kept: the number of messages in DRAM, those included that wait for a node.
        bytes: their bytes.
    """

    __slots__ = ("answering", "bytes", "kept", "messages", "number", "working", "works")

    def __init__(self, number: int) -> None:
        self.number = number
        self.messages: deque[bytes] = deque()
        self.works: deque[Work] = deque()
        self.answering = self.working = 0.0
        self.kept = self.bytes = 0

    @property
    def waits(self) -> bool:
        """Whether the user has something to do."""
        return bool(self.messages or self.works)

    @property
    def had(self) -> float:
        """Seconds that the user has had."""
        return self.answering + self.working

    def keep(self, length: int) -> bool:
        """Count a message that is kept; return False if there are too many."""
        if self.kept >= MOST_MESSAGES or self.bytes + length > MOST_BYTES:
            return False
        self.kept += 1
        self.bytes += length
        return True

    def begun(self, length: int) -> None:
        """Count a message that is no longer kept."""
        self.kept -= 1
        self.bytes -= length


class Turns:
    """The users, each for as long as the object: it is made anew when nothing is in progress."""

    def __init__(self) -> None:
        self._users: dict[int, User] = {}

    def user(self, number: int) -> User:
        """Return a user to whom something will be added."""
        user = self._users.get(number)
        if user is None:
            user = self._users[number] = User(number)
        if not user.waits:
            late = min((other.had for other in self._users.values() if other.waits), default=0.0) - user.had
            if late > 0:
                user.answering += late / 2
                user.working += late / 2
        return user

    @property
    def waiting(self) -> int:
        """The number of messages that were not begun."""
        return sum(len(user.messages) for user in self._users.values())

    def next(self) -> tuple[User, Work | bytes, float] | None:
        """Take what is next; None if nothing waits.

        Returns:
            The user; the message, or a work, which must be put back while it is unfinished; and for how many seconds
            the user may have the turn until another is next, 0 or less for one step.
        """
        first = second = None
        for user in self._users.values():
            if user.waits:
                if first is None or self._rank(user) < self._rank(first):
                    first, second = user, first
                elif second is None or user.had < second.had:
                    second = user
        if first is None:
            return None
        if first.messages and (not first.works or first.answering <= first.working):
            return first, first.messages.popleft(), 0.0
        own = first.answering - first.working if first.messages else float("inf")
        return first, first.works.popleft(), min(own, float("inf") if second is None else second.had - first.had)

    @staticmethod
    def _rank(user: User) -> tuple[float, bool]:
        """Return the order of the users: of those who have had the same, one without a work in progress is first."""
        return user.had, bool(user.works)
