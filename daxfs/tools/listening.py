"""``daxfs stats --listen``: serve the statistics of a mount to Prometheus over HTTP, until the mount is gone.

Each scrape asks the daemon anew, in a child process, so that a daemon that stands still makes one scrape fail and not
the listener. Between scrapes nothing of the mount is open, so the listener does not prevent an unmount. One connection
is served at a time; a client that is slow is cut off after `CLIENT_SECONDS`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from daxfs.errors import UserError
from daxfs.fuse import mounts
from daxfs.tools import asking

LOOPBACK = "127.0.0.1"
CLIENT_SECONDS = 5.0
LOOK_SECONDS = 1.0
"""How often the listener looks whether the mount still exists."""
PATHS = ("/metrics", "/")


def place_of(text: str) -> tuple[str, int]:
    """Parse ``ADDRESS:PORT``, ``[ADDRESS]:PORT`` or ``PORT``; without an address it is the loopback address.

    Raises:
        UserError: there is no port in it.
    """
    address, _, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") or LOOPBACK
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UserError(f"--listen {text}: give ADDRESS:PORT, such as {LOOPBACK}:9909", os.EX_USAGE)
    return address, int(port)


class Listener(HTTPServer):
    """An HTTP server that answers with the text of a function.

    Attributes:
        text: returns the statistics in Prometheus's format.
        url: where they are served.

    Raises:
        UserError: the address can't be listened on.
    """

    timeout = LOOK_SECONDS

    def __init__(self, place: str, text: Callable[[], str]) -> None:
        self.text = text
        address, port = place_of(place)
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
            self.address_family = found[0][0]
            super().__init__((address, port), Answering)
        except OSError as error:
            raise UserError(f"--listen {place}: {error.strerror or error}", os.EX_UNAVAILABLE) from None
        shown = f"[{address}]" if ":" in address else address
        self.url = f"http://{shown}:{self.server_port}{PATHS[0]}"

    def server_bind(self) -> None:
        """Bind without looking up the name of the address, which may take seconds."""
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, _request: Any, _client: Any) -> None:
        """Pass over a client that has left."""


class Answering(BaseHTTPRequestHandler):
    """Answers one scrape."""

    server: Listener
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        """Answer with the statistics; 503 if the daemon does not answer."""
        if self.path.partition("?")[0] not in PATHS:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            text = asking.ask(self.server.text)
        except TimeoutError:
            text = None
        if text is None:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "the mount does not answer")
            return
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: a scrape every few seconds is no event."""


def serve(mountpoint: str, place: str, text: Callable[[], str]) -> None:
    """Serve statistics until the mount is gone.

    Args:
        mountpoint: the real path of the mount.
        place: ``ADDRESS:PORT`` to listen on.
        text: returns the statistics in Prometheus's format.

    Raises:
        UserError: the address can't be listened on; or the mount is gone.
    """
    mounted = mounts.top_mount(mountpoint)
    with Listener(place, text) as listener:
        print(f"{mountpoint}: {listener.url}", flush=True)
        while mounts.top_mount(mountpoint) == mounted:
            listener.handle_request()
    raise UserError(f"{mountpoint} is no longer mounted", os.EX_UNAVAILABLE)
