"""The page's server: of this machine, for this machine alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from manytune.errors import StoreError
from manytune.report.page import render_template
from manytune.store import Store
from manytune.watch.state import Watched

__all__ = ["serve"]

_HERE = "127.0.0.1"


def serve(store: Store, port: int = 0) -> ThreadingHTTPServer:
    """A server that shows a study directory, bound to 127.0.0.1; `serve_forever` runs it.

    Args:
        store: The study directory.
        port: Where to listen; 0 for any that is free.

    Raises:
        StoreError: The port is taken.
    """
    page = render_template("watch.html", "manytune", ("plotly", "draw.js", "watch.js"), served=True).encode()
    watched, turn = Watched(store), threading.Lock()

    def state() -> bytes:
        with turn:
            try:
                found: dict[str, Any] = watched.state()
            except StoreError as error:  # half a second later it may be whole
                found = {"error": str(error)}
        return json.dumps(found, allow_nan=False).encode()

    answers: dict[str, tuple[str, Callable[[], bytes]]] = {
        "/": ("text/html; charset=utf-8", lambda: page),
        "/state": ("application/json", state),
    }
    try:
        return ThreadingHTTPServer((_HERE, port), _handler(answers))
    except OSError as error:
        reason = error.strerror
        raise StoreError(f"--port: {port} cannot be listened at: {reason}. Give another, or leave it out.") from error


def _handler(answers: dict[str, tuple[str, Callable[[], bytes]]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            # A page of another site may have its name lead here: only who asks for this machine is answered.
            if self.headers.get("Host") not in (f"{_HERE}:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if self.path not in answers:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            kind, content = answers[self.path]
            body = content()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal is the user's."""

    return Handler
