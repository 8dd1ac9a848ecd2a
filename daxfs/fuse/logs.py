"""Where a daemon's messages go, how many of them, and the last words of a process that the kernel ends.

Messages go to a file, to syslog, or to standard error in the foreground. `Sparing` stands before each of these: a
client that meets the same damage a thousand times a second must not fill the disk with it. A fatal signal (SIGSEGV,
SIGBUS, SIGABRT) leaves a traceback in the log: the interpreter's fault handler writes it to a descriptor that is opened
beforehand, because nothing else works any more by then. The command line calls `start` and `stop`, sessions the rest;
who logs needs nothing of this but `logging`.
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
"""Identifier, unit, priority (critical), then: no level in each line, forward to none of syslog, kmsg, console."""
STANDARD_ERROR = 2

SECOND = 1.0
MOST_OF_ONE_PLACE = 20
"""Different messages a second from one place in the code."""

log = logging.getLogger("daxfs.fuse")


@dataclass(slots=True)
class _Said:
    """When something was said last, and what was left out since."""

    record: logging.LogRecord
    at: float
    left_out: int = 0


class Sparing(logging.Handler):
    """Hands records on: the same text once a second, and `MOST_OF_ONE_PLACE` a second from one place in the code.

    What was left out is counted in a message of its own, a second later, by the next record or `flush`.
    """

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._texts: dict[str, _Said] = {}
        self._places: dict[tuple[str, int], _Said] = {}
        self._of_place: dict[tuple[str, int], int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on, or count it."""
        now = monotonic()
        self._report(now)
        text, place = record.getMessage(), (record.pathname, record.lineno)
        said = self._texts.get(text)
        if said is not None:
            said.left_out += 1
            return
        burst = self._places.setdefault(place, _Said(record, now))
        self._of_place[place] = self._of_place.get(place, 0) + 1
        if self._of_place[place] > MOST_OF_ONE_PLACE:
            burst.left_out += 1
            return
        self._texts[text] = _Said(record, now)
        self._target.handle(record)

    def flush(self) -> None:
        """Say what was left out, if its second is over."""
        self.acquire()
        try:
            self._report(monotonic())
        finally:
            self.release()
        self._target.flush()

    def close(self) -> None:
        """Say what was left out."""
        self._report(monotonic() + SECOND)
        self._target.close()
        super().close()

    def _report(self, now: float) -> None:
        for text, said in list(self._texts.items()):
            if now - said.at >= SECOND:
                del self._texts[text]
                if said.left_out:
                    self._target.handle(_copy(said.record, f"{text} ({said.left_out} times more)"))
                    self._texts[text] = _Said(said.record, now)
        for place, burst in list(self._places.items()):
            if now - burst.at >= SECOND:
                del self._places[place], self._of_place[place]
                if burst.left_out:
                    text = f"{burst.left_out} more messages like this one: {burst.record.getMessage()}"
                    self._target.handle(_copy(burst.record, text))


def _copy(record: logging.LogRecord, text: str) -> logging.LogRecord:
    """A record of now that says something else, without its traceback."""
    return logging.LogRecord(record.name, record.levelno, record.pathname, record.lineno, text, None, None)


def start(path: str = "", *, foreground: bool = False) -> None:
    """Send this process's messages to a file, else to standard error in the foreground, else to syslog.

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
    logging.basicConfig(level=logging.INFO, handlers=[Sparing(handler)], force=True)
    if last_words >= 0:
        faulthandler.enable(last_words, all_threads=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # A timer that ends a process which can't end by itself (`serving.end_by`) says where that was.
        faulthandler.register(signal.SIGALRM, last_words, all_threads=False, chain=True)


def flush() -> None:
    """Say what was left out; called about once a second."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def stop() -> None:
    """The last message was logged."""
    logging.shutdown()


def unanswered(what: str, error: FsError) -> None:
    """Log a refusal that nobody waits for. The core has logged damage already."""
    if not isinstance(error, Corrupt):
        log.warning("%s: %s", what, error.strerror)


def _open_system_log() -> int:
    """A descriptor of our own for the fault handler, which writes a line in many pieces; -1: there is none.

    The journal puts the pieces together. Any other syslog takes each for a message of its own: ugly, yet a trace.
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
