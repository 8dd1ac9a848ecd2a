"""Clean up before a signal ends the process: files that a command has made and not completed are removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal came; its argument is the signal's number."""


@contextmanager
def unwinding() -> Iterator[None]:
    """Have SIGTERM and SIGHUP unwind the body like an interrupt; they end the process when the body has cleaned up.

    A signal that is ignored (nohup(1)) or handled already stays so. More signals wait for the end of the cleaning up.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(number)

    taken = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        signal.signal(ended.args[0], signal.SIG_DFL)
        os.kill(os.getpid(), ended.args[0])
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
