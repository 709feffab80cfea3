"""A stand-in hub with a pickle on main, and safetensors on a pull request."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stand_in import answer_json, serving

PROGRAM = "from manytune.models.conversions import safetensors_revision as find\nprint(find('them/old'))"


class Hub(ThreadingHTTPServer):
    """Which revisions of them/old there are, and which have the file."""

    branches: tuple[str, ...] = ("main",)
    requests: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if not self.path.startswith("/api/models/them/old/refs"):
            self.send_error(404)
            return
        refs = {
            "branches": [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": "0" * 40} for b in self.server.branches],
            "converts": [],
            "tags": [],
            "pullRequests": [
                {"name": f"refs/pr/{n}", "ref": f"refs/pr/{n}", "targetCommit": "1" * 40} for n in self.server.requests
            ],
        }
        answer_json(self, 200, refs)

    def do_HEAD(self) -> None:
        revision = self.path.removeprefix("/them/old/resolve/").removesuffix("/model.safetensors").replace("%2F", "/")
        there = revision in self.server.converted
        self.send_response(200 if there else 404)
        if there:
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", "5")
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    with serving(server):
        yield server


def asked(hub: Hub, **environment: str) -> str:
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**given, **address, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("branches", "requests", "converted", "found"),
    [
        (("main",), ("1", "2", "3"), ("refs/pr/2",), "refs/pr/2"),
        (("main", "safe"), ("1",), ("safe", "refs/pr/1"), "safe"),
        (("main",), ("1", "2"), ("refs/pr/1", "refs/pr/2"), "refs/pr/2"),
        (("main",), ("1",), (), "None"),
    ],
)
def test_a_revision_with_safetensors(
    hub: Hub, branches: tuple[str, ...], requests: tuple[str, ...], converted: tuple[str, ...], found: str
) -> None:
    hub.branches, hub.requests, hub.converted = branches, requests, converted
    assert asked(hub) == found


def test_a_hub_that_does_not_say_is_no_error(hub: Hub) -> None:
    hub.requests, hub.converted = ("1",), ("refs/pr/1",)
    assert asked(hub, HF_HUB_OFFLINE="1") == "None"
    assert asked(hub, HF_ENDPOINT="http://127.0.0.1:9") == "None"
