"""Questions to a mount that may never be answered.

Whoever asks a mount whose daemon is stopped waits for it, and can't even be killed once the daemon has read the
question. So a child process asks, and its parent waits a limited time.
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


def ask(question: Callable[[], Any], seconds: float = ANSWER_SECONDS) -> Any:
    """What ``question`` returns (values of JSON); None if it raises OSError.

    Raises:
        TimeoutError: no answer within ``seconds``.
    """
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
            os.kill(child, signal.SIGKILL)  # nobody waits for its end, which may be as far off as the answer
            raise TimeoutError
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None
