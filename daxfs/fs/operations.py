"""What the operations of `FileSystem` have in common: how they fail, try again and become durable.

Each operation of the facade has one of four decorators, which says what the operation may do: `reading`, `maintaining`,
`changing`, `piecewise`. All of them end with `failure` if an error or missing memory met the operation. A change does
not begin while a copy of data has met missing memory that is not settled: that is not its error. An operation in steps
(`daxfs.fs.steps`) has the decorator `in_steps`, which does the same at each of its steps. All begin with what clients
have appended by themselves (`Volume.settle`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar, cast

from daxfs.errors import BadMemory, Corrupt, FsError, MissingMemory, OnStorage
from daxfs.fs import damage, mounting
from daxfs.fs.grants import waiting
from daxfs.fs.steps import Steps, Wait, finish
from daxfs.fs.tiers import policy

if TYPE_CHECKING:
    from daxfs.fs.volume import Volume


class HasVolume(Protocol):
    """The facade, as far as its decorators know it."""

    volume: Volume


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=HasVolume)


def failure(
    volume: Volume, error: BaseException, *, explained: bool = False, change: bool = False, reads: bool = False
) -> BaseException:
    """Return the error that an operation ends with when it met ``error``, and report bad metadata (`damage`).

    An operation that met missing memory has read zeros. It ends with that error, whatever it made of the zeros, unless
    ``error`` is no error but ends the program (KeyboardInterrupt).

    Args:
        volume: of the operation.
        error: what it met.
        explained: the log explains a full pool.
        change: the operation changes the volume.
        reads: the operation only reads: damage fails it, and nothing else.
    """
    if volume.faults[0]:
        missing = volume.lost_memory()
        if not isinstance(error, Exception):
            return error
        error = missing
    elif isinstance(error, MissingMemory) and not isinstance(error, BadMemory):
        volume.forget_content()
    if isinstance(error, MissingMemory):
        damage.report_missing(volume, error, change=change)
    elif isinstance(error, Corrupt):
        if error in volume.noted:
            volume.noted.remove(error)
        if reads:
            damage.report_read(volume, error)
        else:
            damage.report(volume, error)
    elif explained and isinstance(error, FsError) and error.errno == errno.ENOSPC:
        needed = on_storage(volume, error)
        if needed is not error:
            return needed
        waiting.explain_full(mounting.grants_of(volume))
    if volume.noted:
        damage.report_noted(volume)
    return error


def brought(volume: Volume, error: BaseException) -> bool:
    """Bring the data on storage that an operation has ended for, if it has; then the operation runs again.

    False, too: whoever uses the volume brings it between other requests.

    Raises:
        FsError, MemoryError: as an operation (`failure`), if the data can't be brought.
    """
    if volume.tiers is None or volume.tiers.parks or not isinstance(error, FsError):
        return False
    needed = on_storage(volume, error)
    if not isinstance(needed, OnStorage):
        return False
    try:
        finish(needed.bring())
    except BaseException as met:
        raise failure(volume, met, change=True) from error
    if volume.faults[0]:
        raise lost(volume, change=True)
    return True


def on_storage(volume: Volume, error: FsError) -> FsError:
    """Return the error of an operation; if data must go to storage before it finds room, `OnStorage`."""
    if volume.tiers is not None and policy.waits_for_room(volume, error):
        return OnStorage(lambda: policy.make_room(volume))
    return error


def lost(volume: Volume, *, change: bool) -> MissingMemory:
    """Return the error of an operation that seemed to succeed and met missing memory, as `failure`."""
    error = volume.lost_memory()
    damage.report_missing(volume, error, change=change)
    return error


def reading(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Wrap an operation that changes nothing on the pool: it opens no handle and commits nothing."""
    return _unchanging(method, reads=True)


def maintaining(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Wrap an operation that may change the pool but takes no space: it frees, cuts, commits, trims, or remounts.

    Such an operation itself makes durable what must be durable when it returns.
    """
    return _unchanging(method, reads=False)


def _unchanging(method: Callable[Concatenate[S, P], R], *, reads: bool) -> Callable[Concatenate[S, P], R]:
    """Wrap an operation that takes no space; ``reads``: nor does it change anything."""

    @wraps(method)
    def operation(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            if self.volume.armed:
                self.volume.settle()
            result = method(self, *args, **kwargs)
        except BaseException as error:
            if brought(self.volume, error):
                return operation(self, *args, **kwargs)
            raise failure(self.volume, error, reads=reads)  # noqa: B904 (it is the same error as a rule)
        if self.volume.faults[0]:
            raise lost(self.volume, change=False)
        if self.volume.noted:
            damage.report_noted(self.volume)
        return result

    return cast("Callable[Concatenate[S, P], R]", operation)


def changing(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Wrap an operation that changes the pool whole or not at all: in a full pool it runs once more (`reclaim.py`)."""
    return _change(method, retried=True)


def piecewise(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Wrap an operation that may have done a part when it fails, and that itself retries when the pool was full."""
    return _change(method, retried=False)


def _change(method: Callable[Concatenate[S, P], R], *, retried: bool) -> Callable[Concatenate[S, P], R]:
    """Wrap a change of the pool, which is durable when it returns if the mount or the inode asks for that."""

    @wraps(method)
    def operation(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        volume = self.volume
        volume.finish_copy()
        try:
            if volume.armed:
                volume.settle()
            if retried:
                result = volume.reclaimers.retrying(method, self, *args, **kwargs)
            else:
                result = method(self, *args, **kwargs)
        except BaseException as error:
            if brought(volume, error):
                return operation(self, *args, **kwargs)
            raise failure(volume, error, explained=True, change=True)  # noqa: B904 (it is the same error as a rule)
        if volume.faults[0]:
            raise lost(volume, change=True)
        if volume.noted:
            damage.report_noted(volume)
        volume.finish()
        return result

    return cast("Callable[Concatenate[S, P], R]", operation)


def reading_in_steps(method: Callable[Concatenate[S, P], Steps[R]]) -> Callable[Concatenate[S, P], Steps[R]]:
    """Wrap an operation as `in_steps` does that changes nothing on the pool."""
    return _guarded_steps(method, change=False, reads=True)


def in_steps(method: Callable[Concatenate[S, P], Steps[R]]) -> Callable[Concatenate[S, P], Steps[R]]:
    """Wrap an operation in steps, so that each step ends as an operation does: with `failure`, or without a fault.

    The whole operation is durable when it returns, if the mount or the inode asks for that. ``volume.sync_due`` belongs
    to the operation that runs, so between steps it is put aside. Steps also commit in time, so that no commit is so
    large that others wait for it.

    An operation that meets data on storage begins again when the data is there.
    """
    return _guarded_steps(method, change=False)


def changing_in_steps(method: Callable[Concatenate[S, P], Steps[R]]) -> Callable[Concatenate[S, P], Steps[R]]:
    """Wrap an operation as `in_steps` does that changes the volume in any case."""
    return _guarded_steps(method, change=True)


def _guarded_steps(
    method: Callable[Concatenate[S, P], Steps[R]], *, change: bool, reads: bool = False
) -> Callable[Concatenate[S, P], Steps[R]]:
    @wraps(method)
    def operation(self: S, *args: P.args, **kwargs: P.kwargs) -> Steps[R]:
        self.volume.begin_steps()
        try:
            return (yield from guarded(self, *args, **kwargs))
        finally:
            self.volume.under_way -= 1

    def guarded(self: S, *args: P.args, **kwargs: P.kwargs) -> Steps[R]:
        volume = self.volume
        if change:
            volume.finish_copy()
        steps = method(self, *args, **kwargs)
        thrown: BaseException | None = None
        waiting: Wait | None = None
        try:
            while True:
                try:
                    waiting = next(steps) if thrown is None else steps.throw(thrown)
                except StopIteration as end:
                    result: R = end.value
                    break
                except FsError as error:
                    needed = on_storage(volume, error)
                    if not isinstance(needed, OnStorage):
                        raise
                    yield from needed.bring()
                    steps, thrown = method(self, *args, **kwargs), None
                    continue
                if volume.faults[0]:
                    raise lost(volume, change=change)
                volume.bound_commit()
                due, volume.sync_due = volume.sync_due, volume.options.sync
                thrown = None
                try:
                    yield waiting
                except Exception as error:
                    thrown = error
                volume.resume_steps(due)
            if volume.faults[0]:
                raise lost(volume, change=change)
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            steps.close()
            raise failure(volume, error, explained=True, change=change, reads=reads)  # noqa: B904 (as above)
        if volume.noted:
            damage.report_noted(volume)
        volume.finish()
        return result

    return cast("Callable[Concatenate[S, P], Steps[R]]", operation)
