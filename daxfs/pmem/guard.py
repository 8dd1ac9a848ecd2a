"""The handler of SIGBUS that keeps a process alive which meets missing memory (`daxfs.pmem.faults`).

It is ``guard.c`` where that was compiled at installation. `InPython` does the same without a compiler: the system calls
it through ctypes. A handler that the module signal installs would come too late, since it runs after the instruction
that failed, which fails for ever.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

LIBRARY = Path(__file__).with_name("_guard.so")
PAGES = 32  # guard.c


class Watch(ctypes.Structure):
    """Watched memory, guard.c's ``struct watch``.

    Its owner sets ``begin``, ``end`` and ``unit``, reads what the handler has counted, and sets ``faults``, ``low`` and
    ``high`` to 0 when the missing memory is mapped again.
    """

    _fields_ = (
        ("faults", ctypes.c_uint64),
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("pages", ctypes.c_uint64 * PAGES),
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("unit", ctypes.c_uint64),
        ("next", ctypes.c_void_p),
    )


class Handler(Protocol):
    """The functions of guard.c. Those that return a number return 0 or an errno."""

    def install(self) -> int:
        """Have SIGBUS go through the handler. A handler that was installed over it comes below it."""

    def watch(self, watch: Watch) -> int:
        """Watch a mapping from now on. One that was watched at the same addresses has ended."""

    def unwatch(self, watch: Watch) -> None:
        """Watch a mapping no longer."""


@functools.cache
def handler() -> Handler:
    """Return the handler of this process."""
    try:
        return InC(ctypes.PyDLL(str(LIBRARY)))
    except OSError:
        return InPython()


class InC:
    """guard.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer = ctypes.POINTER(Watch)
        self.install: Callable[[], int] = library.guard_install
        self.watch: Callable[[Watch], int] = library.guard_watch
        self.unwatch: Callable[[Watch], None] = library.guard_unwatch
        library.guard_install.argtypes = []
        library.guard_watch.argtypes = library.guard_unwatch.argtypes = [pointer]
        library.guard_unwatch.restype = None


class _Information(ctypes.Structure):
    """The begin of siginfo_t."""

    _fields_ = (
        ("signal", ctypes.c_int),
        ("error", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_void_p),
    )


class _Action(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_SA_SIGINFO, _SA_NODEFER = 0x4, 0x40000000
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value


class InPython:
    """The handler as a function of Python, which runs in the middle of the copy that met missing memory.

    That works because the copy is a call of Python's own: this thread has its state, and no lock of the allocator.
    """

    _TYPE: ClassVar[Any] = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Information), ctypes.c_void_p)

    def __init__(self) -> None:
        self._watches: list[Watch] = []
        self._below: list[_Action] = []  # the handlers that were there before, the oldest first
        self._left = 0  # of them, those that were not called yet for this signal
        self._last = self._repeated = 0  # the address of the last fault that was passed on, and how often it came back
        self._libc = libc = ctypes.CDLL(None, use_errno=True)
        self._map = libc.mmap
        self._map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_int64]
        self._map.restype = ctypes.c_void_p
        self._callback = self._TYPE(self._on_sigbus)
        self._action = _Action(
            handler=ctypes.cast(self._callback, ctypes.c_void_p).value,
            flags=_SA_SIGINFO | _SA_NODEFER,
        )

    def install(self) -> int:
        """As `Handler.install`."""
        now = _Action()
        if self._libc.sigaction(signal.SIGBUS, None, ctypes.byref(now)):
            return ctypes.get_errno()
        if now.handler == self._action.handler:
            return 0
        self._below = [each for each in self._below if each.handler != now.handler]
        self._below.append(now)
        self._left = len(self._below)
        return self._set(self._action)

    def watch(self, watch: Watch) -> int:
        """As `Handler.watch`."""
        self._watches = [each for each in self._watches if each.end <= watch.begin or watch.end <= each.begin]
        self._watches.append(watch)
        return self.install()

    def unwatch(self, watch: Watch) -> None:
        """As `Handler.unwatch`."""
        self._watches = [each for each in self._watches if each is not watch]

    def _set(self, action: _Action) -> int:
        return ctypes.get_errno() if self._libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) else 0

    def _on_sigbus(self, number: int, information: Any, context: object) -> None:
        found = information.contents
        sent = found.code <= 0
        if not sent:
            if any(self._replace(watch, found.address) for watch in self._watches):
                return
            # A fault that comes back was not mended by the handler that returned, and goes to the one before it.
            self._repeated = self._repeated + 1 if found.address == self._last else 0
            self._last = found.address
            self._left = max(len(self._below) - self._repeated, 0)
        handler = None
        if self._left:  # else the oldest was called: it may send the signal anew
            self._left -= 1
            handler = self._below[self._left].handler
        if handler is None or (handler == signal.SIG_IGN and not sent):
            self._set(_Action())
            if sent:
                signal.raise_signal(number)
        elif handler != signal.SIG_IGN:
            self._TYPE(handler)(number, information, context)
        self._left = len(self._below)

    def _replace(self, watch: Watch, address: int) -> bool:
        """Put zeros in the place of the page at an address; False: it is not watched, or can't be replaced."""
        if not watch.begin <= address < watch.end:
            return False
        page = address - (address - watch.begin) % watch.unit
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        if self._map(page, watch.unit, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == _FAILED:
            return False
        if watch.faults < PAGES:
            watch.pages[watch.faults] = page
        watch.low = min(watch.low, page) if watch.faults else page
        watch.high = max(watch.high, page + watch.unit)
        watch.faults += 1
        return True
