"""The four decorators of the facade, on operations that only fail or succeed."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from daxfs.errors import BadMemory, Corrupt, CorruptKind, FsError, MissingMemory
from daxfs.fs import operations
from daxfs.fs.reclaim import Reclaimers

Decorator = Callable[[Callable[..., object]], Callable[..., object]]
DECORATORS: dict[str, Decorator] = {
    name: getattr(operations, name) for name in ("reading", "maintaining", "changing", "piecewise")
}
FINISHED = ("changing", "piecewise")
REPORTED = {name: ["report lost"] if name in FINISHED else [] for name in DECORATORS}


class Volume:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults = [0]
        self.noted: list[Corrupt] = []
        self.unsettled_copy = False
        self.armed = False
        self.tiers = None
        self.reclaimers = Reclaimers()
        self.reclaimers.add(lambda: self.calls.append("reclaim") is None)

    def finish(self) -> None:
        self.calls.append("finish")

    def settle(self) -> None:
        self.calls.append("settle")
        self.armed = False

    def finish_copy(self) -> None:
        if self.unsettled_copy:
            raise MissingMemory(errno.EIO, "of data")

    def forget_content(self) -> None:
        self.calls.append("forget")

    def lost_memory(self) -> MissingMemory:
        self.calls.append("lost")
        self.faults[0] = 0
        return MissingMemory(errno.EIO, "lost")


class Facade:
    def __init__(self) -> None:
        self.volume = Volume()


@pytest.fixture
def facade(monkeypatch: pytest.MonkeyPatch) -> Facade:
    made = Facade()
    monkeypatch.setattr(operations.mounting, "grants_of", lambda volume: volume)
    monkeypatch.setattr(operations.waiting, "explain_full", lambda volume: volume.calls.append("explain"))
    for name in ("report", "report_read"):
        said = name.replace("_", " ")
        monkeypatch.setattr(
            operations.damage,
            name,
            lambda volume, error, said=said: volume.calls.append(f"{said} {error.strerror}"),
        )
    return made


@pytest.fixture(params=DECORATORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fails(facade: Facade, name: str, error: Exception) -> tuple[Exception, list[str]]:
    """What an operation that raises ``error`` ends with, and what the volume was asked."""

    @DECORATORS[name]
    def operation(_: Facade) -> None:
        facade.volume.calls.append("try")
        raise error

    with pytest.raises(type(error) if not facade.volume.faults[0] else MissingMemory) as failed:
        operation(facade)
    return failed.value, facade.volume.calls


def test_an_operation_that_succeeds(facade: Facade, name: str) -> None:
    @DECORATORS[name]
    def operation(_: Facade, number: int, *, more: int) -> int:
        return number + more

    assert operation(facade, 1, more=2) == 3
    assert operation.__name__ == "operation"
    assert facade.volume.calls == (["finish"] if name in FINISHED else [])


def test_an_operation_begins_with_what_clients_have_appended(facade: Facade, name: str) -> None:
    @DECORATORS[name]
    def operation(_: Facade) -> None:
        facade.volume.calls.append("try")

    facade.volume.armed = True
    operation(facade)
    operation(facade)
    assert [call for call in facade.volume.calls if call != "finish"] == ["settle", "try", "try"]


def test_damage_is_recorded(facade: Facade, name: str) -> None:
    damage = Corrupt(CorruptKind.JOURNAL, "here")
    said = "report read" if name == "reading" else "report"
    assert fails(facade, name, damage) == (damage, ["try", f"{said} journal: here"])


def test_a_refusal_is_passed_on(facade: Facade, name: str) -> None:
    refusal = FsError(errno.EPERM)
    assert fails(facade, name, refusal) == (refusal, ["try"])


def test_a_full_pool(facade: Facade, name: str) -> None:
    full = FsError(errno.ENOSPC)
    expected = {
        "reading": ["try"],
        "maintaining": ["try"],
        "piecewise": ["try", "explain"],
        "changing": ["try", "reclaim", "try", "explain"],
    }
    assert fails(facade, name, full) == (full, expected[name])


def test_a_hole_that_cannot_be_filled_is_not_tried_again(facade: Facade, name: str) -> None:
    hole = MissingMemory(errno.ENOSPC)
    assert fails(facade, name, hole) == (hole, ["try", "forget"])


@pytest.mark.parametrize("error", [ValueError(), FsError(errno.ENOENT), Corrupt(CorruptKind.JOURNAL, "zeros")])
def test_what_is_made_of_missing_memory_is_no_damage(facade: Facade, name: str, error: Exception) -> None:
    facade.volume.faults[0] = 1
    failed, calls = fails(facade, name, error)
    assert failed.errno == errno.EIO  # type: ignore[attr-defined]
    assert calls == ["try", "lost", *REPORTED[name]]


def test_an_operation_that_met_missing_memory_does_not_succeed(facade: Facade, name: str) -> None:
    @DECORATORS[name]
    def operation(_: Facade) -> None:
        facade.volume.faults[0] = 1

    with pytest.raises(MissingMemory):
        operation(facade)
    assert facade.volume.calls == ["lost", *REPORTED[name]]


def test_missing_memory_is_reported_if_a_change_needs_it(facade: Facade, name: str) -> None:
    in_data, in_handle = MissingMemory(errno.EIO, "data"), MissingMemory(errno.EIO, "in a handle")
    in_data.of_data = in_handle.in_change = True
    assert fails(facade, name, in_data)[1] == ["try", "forget"]
    facade.volume.calls.clear()
    assert fails(facade, name, in_handle)[1] == ["try", "forget", "report in a handle"]
    facade.volume.calls.clear()
    reported = ["report neither"] if name in FINISHED else []
    assert fails(facade, name, BadMemory("neither"))[1] == ["try", *reported]


def test_a_change_does_not_begin_after_a_copy_of_data_that_met_missing_memory(facade: Facade, name: str) -> None:
    @DECORATORS[name]
    def operation(_: Facade) -> None:
        facade.volume.calls.append("try")

    facade.volume.unsettled_copy = True
    if name in FINISHED:
        with pytest.raises(MissingMemory, match="of data"):
            operation(facade)
        assert facade.volume.calls == []
    else:
        operation(facade)
        assert facade.volume.calls == ["try"]


def test_an_unexpected_exception_is_passed_on(facade: Facade, name: str) -> None:
    unexpected = ZeroDivisionError()
    assert fails(facade, name, unexpected) == (unexpected, ["try"])
