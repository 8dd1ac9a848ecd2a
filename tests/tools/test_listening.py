"""The listener of ``daxfs stats --listen``: what it answers, which addresses it takes, and how it ends."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daxfs.errors import UserError
from daxfs.tools import asking, listening, stats
from support import HANG_SECONDS


@contextmanager
def listening_with(text: object) -> Iterator[listening.Listener]:
    """A listener in a thread, whose function returns a text or raises an error."""

    def answer() -> str:
        if isinstance(text, Exception):
            raise text
        return str(text)

    with listening.Listener("0", answer) as listener:
        listener.timeout = 0.05
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                listener.handle_request()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener
        finally:
            stop.set()
            thread.join(HANG_SECONDS)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is not asked by a child: a fork beside threads may hang."""

    def ask(question: object) -> object:
        try:
            return question()  # type: ignore[operator]
        except OSError:
            return None

    monkeypatch.setattr(asking, "ask", ask)


def get(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=HANG_SECONDS) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.reason


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("9909", "127.0.0.1", 9909),
        (":9909", "127.0.0.1", 9909),
        ("10.0.0.1:80", "10.0.0.1", 80),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_addresses(text: str, address: str, port: int) -> None:
    assert listening.place_of(text) == (address, port)


@pytest.mark.parametrize("text", ["", "localhost", "127.0.0.1:", ":65536", "1.2.3.4:x", ":-1"])
def test_addresses_without_a_port(text: str) -> None:
    with pytest.raises(UserError, match="ADDRESS:PORT"):
        listening.place_of(text)


def test_a_scrape() -> None:
    with listening_with("daxfs_open_files 3\n") as listener:
        assert listener.url.startswith("http://127.0.0.1:")
        status, kind, text = get(listener.url)
        assert (status, text) == (200, "daxfs_open_files 3\n")
        assert kind.startswith("text/plain")
        assert get(f"http://127.0.0.1:{listener.server_port}/?x=1")[0] == 200
        assert get(f"http://127.0.0.1:{listener.server_port}/else")[0] == 404


def test_a_daemon_that_does_not_answer() -> None:
    for error in (TimeoutError(), OSError()):
        with listening_with(error) as listener:
            assert get(listener.url) == (503, "", "the mount does not answer")


def test_a_client_that_leaves(capfd: pytest.CaptureFixture[str]) -> None:
    with listening_with("x" * (1 << 22)) as listener:
        with socket.create_connection(("127.0.0.1", listener.server_port)) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert get(listener.url)[0] == 200, "the next one is served"
    assert capfd.readouterr() == ("", "")


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError, match="in use"):
        listening.Listener(str(other.getsockname()[1]), lambda: "")


def test_it_ends_with_the_mount(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = iter(["mount", "mount", "mount", None])
    monkeypatch.setattr(listening.mounts, "top_mount", lambda _: next(seen))
    monkeypatch.setattr(listening.Listener, "timeout", 0.01)
    begin = time.thread_time()
    with pytest.raises(UserError, match="/mnt is no longer mounted") as ended:
        listening.serve("/mnt", "0", lambda: "")
    assert ended.value.code == os.EX_UNAVAILABLE
    assert time.thread_time() - begin < 1
    assert capsys.readouterr().out.startswith("/mnt: http://127.0.0.1:")


@pytest.mark.parametrize("other", [{"total": True}, {"as_json": True}, {"prometheus": True}, {"interval": 1.0}])
def test_other_options_contradict(other: dict[str, bool]) -> None:
    with pytest.raises(UserError, match="--listen takes no other option"):
        stats.show("/mnt", listen="0", **other)  # type: ignore[arg-type]
