"""The page's server: of this machine, for this machine alone."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from manytune.report.live_page.state import Watched
from manytune.report.page import render_template
from manytune.storage.directory import Store
from manytune.utils.errors import ManytuneError, StoreError

_HERE = "127.0.0.1"

_MOST_CONNECTIONS = 32  # served at once; others wait in the system's queue
_SECONDS = 5.0  # that a connection may take to send its request, and to take the answer
_PAUSE_SECONDS = 0.2  # between two tries where no connection can be taken, as at the limit of open files


def serve(store: Store, port: int = 0) -> ThreadingHTTPServer:
    """A server that shows a study directory, bound to 127.0.0.1; `serve_forever` runs it. Port 0 is any free one.

    Raises StoreError where the port is taken.
    """
    page = render_template("watch.html", "manytune", ("plotly", "draw.js", "watch.js"), served=True).encode()
    watched, lock = Watched(store), threading.Lock()

    def state() -> bytes:
        with lock:
            try:
                found: dict[str, Any] = watched.state()
            except (ManytuneError, OSError) as error:  # half a second later the file may be whole
                found = {"error": str(error)}
        return json.dumps(found, allow_nan=False).encode()

    answers: dict[str, tuple[str, Callable[[], bytes]]] = {
        "/": ("text/html; charset=utf-8", lambda: page),
        "/state": ("application/json", state),
    }
    try:
        return _Server((_HERE, port), _handler(answers))
    except OSError as error:
        reason = error.strerror
        raise StoreError(f"--port: {port} cannot be listened at: {reason}. Give another, or leave it out.") from error


class _Server(ThreadingHTTPServer):
    """One thread a connection, up to a number of connections; silent ones are closed."""

    request_queue_size = 128  # connections that wait in the system's queue; a browser retries others seconds later

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; an OSError says that too many are open or it failed: the server's loop tries again."""
        if not self._free.acquire(timeout=_PAUSE_SECONDS):
            self._give_up_the_slow()
            raise OSError("too many connections")
        try:
            request, address = super().get_request()
        except OSError:
            self._free.release()
            time.sleep(_PAUSE_SECONDS)  # the connection still waits, so without a pause the loop would spin
            raise
        self._since[request] = time.monotonic()
        return request, address

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; another can be taken."""
        self._since.pop(request, None)
        super().shutdown_request(request)
        self._free.release()

    def _give_up_the_slow(self) -> None:
        """End connections that send a byte now and then, which no timeout of a single read does."""
        for request, since in list(self._since.items()):
            if time.monotonic() - since > _SECONDS:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away: the terminal is the user's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(answers: dict[str, tuple[str, Callable[[], bytes]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS

        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            # Another site's name may be made to resolve to this address: only requests for this machine are answered.
            if self.headers.get("Host") not in (f"{_HERE}:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if self.path not in answers:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, content = answers[self.path]
            body = content()
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
            self.send_response(HTTPStatus.OK)
            for name, value in {**headers, "X-Content-Type-Options": "nosniff"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal is the user's."""

    return Handler
