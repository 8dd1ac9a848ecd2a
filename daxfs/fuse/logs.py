"""Send the daemon's messages to its log, limit their rate, and log a traceback when a signal kills the process.

Messages go to a file, to syslog, or to standard error in the foreground. `RateLimit` stands before each of these: a
client that meets the same damage a thousand times a second must not fill the disk. A fatal signal (SIGSEGV, SIGBUS,
SIGABRT) leaves a traceback in the log: the interpreter's fault handler writes it to a descriptor that was opened
beforehand, because nothing else works at that moment. The command line calls `start` and `stop`, sessions call the
rest. Code that only logs needs `logging` and nothing of this module.
"""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import os
import signal
import socket
from dataclasses import dataclass
from time import monotonic

from daxfs.errors import Corrupt, FsError, UserError
from daxfs.fuse import mounts

SYSLOG = "/dev/log"
JOURNAL = "/run/systemd/journal/stdout"
"""The journal's socket for streams (systemd-journald.service(8)): it makes a message of each line."""
JOURNAL_HEADER = "daxfs\n\n2\n0\n0\n0\n0\n"
"""Identifier, unit, priority (critical), flags: no level in each line, no forwarding to syslog, kmsg or console."""
STANDARD_ERROR = 2

SECOND = 1.0
MOST_OF_ONE_PLACE = 20
"""The most different messages that one place in the code may log in a second."""

log = logging.getLogger("daxfs.fuse")


@dataclass(slots=True)
class _Logged:
    """When a message was logged last, and how many like it were suppressed since."""

    record: logging.LogRecord
    at: float
    suppressed: int = 0


class RateLimit(logging.Handler):
    """Pass records on: each text once a second, and at most `MOST_OF_ONE_PLACE` a second from one place in the code.

    A second later the next record or `flush` logs how many records were suppressed.
    """

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._texts: dict[str, _Logged] = {}
        self._places: dict[tuple[str, int], _Logged] = {}
        self._of_place: dict[tuple[str, int], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, or count it as suppressed."""
        now = monotonic()
        self._report(now)
        text, place = record.getMessage(), (record.pathname, record.lineno)
        logged = self._texts.get(text)
        if logged is not None:
            logged.suppressed += 1
            return
        burst = self._places.setdefault(place, _Logged(record, now))
        self._of_place[place] = self._of_place.get(place, 0) + 1
        if self._of_place[place] > MOST_OF_ONE_PLACE:
            burst.suppressed += 1
            return
        self._texts[text] = _Logged(record, now)
        self._target.handle(record)

    def flush(self) -> None:
        """Log the numbers of suppressed records whose second is over."""
        self.acquire()
        try:
            self._report(monotonic())
        finally:
            self.release()
        self._target.flush()

    def close(self) -> None:
        """Log all numbers of suppressed records, and close the target."""
        self._report(monotonic() + SECOND)
        self._target.close()
        super().close()

    def _report(self, now: float) -> None:
        for text, logged in list(self._texts.items()):
            if now - logged.at >= SECOND:
                del self._texts[text]
                if logged.suppressed:
                    self._target.handle(_copy(logged.record, f"{text} ({logged.suppressed} times more)"))
                    self._texts[text] = _Logged(logged.record, now)
        for place, burst in list(self._places.items()):
            if now - burst.at >= SECOND:
                del self._places[place], self._of_place[place]
                if burst.suppressed:
                    text = f"{burst.suppressed} more messages like this one: {burst.record.getMessage()}"
                    self._target.handle(_copy(burst.record, text))


def _copy(record: logging.LogRecord, text: str) -> logging.LogRecord:
    """Return a record of now from the same place in the code, with another text and without a traceback."""
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)


def start(path: str = "", *, foreground: bool = False) -> None:
    """Send this process's messages to a file; without one to standard error in the foreground, else to syslog.

    Raises:
        UserError: the file can't be opened.
    """
    handler: logging.Handler
    if path:
        try:
            handler = logging.FileHandler(path)
            last_words = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"log={path}: {error.strerror}; name another file", mounts.USAGE) from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    elif foreground:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("daxfs: %(message)s"))
        last_words = os.dup(STANDARD_ERROR)
    elif os.path.exists(SYSLOG):
        handler = logging.handlers.SysLogHandler(SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"daxfs[{os.getpid()}]: %(message)s"))
        last_words = _open_system_log()
    else:
        handler = logging.NullHandler()
        last_words = -1
    logging.basicConfig(level=logging.INFO, handlers=[RateLimit(handler)], force=True)
    if last_words >= 0:
        faulthandler.enable(last_words, all_threads=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # The timer that ends a process which can't end by itself (`serving.end_by`) logs where the process was.
        faulthandler.register(signal.SIGALRM, last_words, all_threads=False, chain=True)


def flush() -> None:
    """Log the numbers of suppressed records; sessions call this about once a second."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def stop() -> None:
    """Log the numbers of suppressed records and close the log; nothing may be logged afterwards."""
    logging.shutdown()


def unanswered(what: str, error: FsError) -> None:
    """Log the refusal of a request that has no answer. The core has logged damage (`Corrupt`) already."""
    if not isinstance(error, Corrupt):
        log.warning("%s: %s", what, error.strerror)


def _open_system_log() -> int:
    """Open a connection to the system log for the fault handler, which writes a line in many pieces; -1: none.

    systemd's journal joins the pieces to lines. Any other syslog makes a message of each piece: ugly, yet a trace.
    """
    for place, kind, greeting in (
        (JOURNAL, socket.SOCK_STREAM, JOURNAL_HEADER),
        (SYSLOG, socket.SOCK_DGRAM, ""),
        (SYSLOG, socket.SOCK_STREAM, ""),
    ):
        connection = socket.socket(socket.AF_UNIX, kind)
        try:
            connection.connect(place)
            if greeting:
                connection.sendall(greeting.encode())
        except OSError:
            connection.close()
            continue
        return connection.detach()
    return -1
