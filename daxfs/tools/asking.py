"""Ask a mount that may never answer.

A process that calls into a mount waits for its daemon. If the daemon stops after it has read the request, the process
can't even be killed. So a child process makes the call, and the parent waits for a limited time. While such a child is
left, nothing else is asked.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ANSWER_SECONDS = 3.0

_left: set[int] = set()
"""Children that had no answer in time and may not have ended yet."""


def ask(question: Callable[[], Any], seconds: float = ANSWER_SECONDS) -> Any:
    """Return the result of ``question`` (values of JSON), or None if it raises OSError.

    Raises:
        TimeoutError: no answer within ``seconds``.
    """
    _left.difference_update([child for child in _left if os.waitpid(child, os.WNOHANG)[0]])
    if _left:
        raise TimeoutError
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with suppress(OSError):
                os.write(writer, json.dumps(question()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        if not select.select([answer], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)  # not waited for: the child may end as late as the answer comes
            _left.add(child)
            raise TimeoutError
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None
