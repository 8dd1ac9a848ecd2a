"""What a step is: running all of them, and shortening an operation. The operations themselves are in test_stepwise."""

from __future__ import annotations

import errno

import pytest

from daxfs.errors import FsError
from daxfs.fs.steps import Steps, finish, interruption


def counting(most: int) -> Steps[int]:
    """Count to ``most`` in steps; a count that is shortened is less, and none at all is EINTR."""
    done = 0
    try:
        while done < most:
            yield
            done += 1
    except FsError:
        if not done:
            raise
    return done


def test_finish_returns_the_result() -> None:
    assert finish(counting(7)) == 7
    assert finish(counting(0)) == 0


def test_finish_runs_the_rest() -> None:
    steps = counting(7)
    next(steps)
    next(steps)
    assert finish(steps) == 7


def test_an_error_of_a_step_is_the_error_of_the_whole() -> None:
    def failing() -> Steps[None]:
        yield
        raise FsError(errno.ENOSPC)

    with pytest.raises(FsError) as failed:
        finish(failing())
    assert failed.value.errno == errno.ENOSPC


def test_an_interruption_is_eintr() -> None:
    steps = counting(7)
    next(steps)
    with pytest.raises(FsError) as failed:
        steps.throw(interruption())
    assert failed.value.errno == errno.EINTR
    steps = counting(7)
    next(steps)
    next(steps)
    with pytest.raises(StopIteration) as ended:
        steps.throw(interruption())
    assert ended.value.value == 1
