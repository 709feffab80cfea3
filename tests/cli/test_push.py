"""Uploads to a stand-in of the Hugging Face hub on 127.0.0.1, by the real huggingface_hub."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from forked import run_forked
from stand_in import answer_json, serving
from study_files import write_small_study

TOKEN = "hf_a-secret-that-is-never-shown"


@dataclass
class Hub:
    """What a stand-in hub was given."""

    address: str = ""
    status: int = 200
    """What it answers to a wish for a repository."""
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            about = {"id": "them/tickets", "sha": "0" * 40, "siblings": []}
            answer_json(self, found.status, about if found.status == 200 else {"error": "not for you"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            found.tokens.add(self.headers.get("Authorization"))
            if path == "/api/repos/create":
                found.made.append(json.loads(body))
                error = {"error": "You don't have the rights to create a model under this namespace"}
                address = f"{found.address}/them/tickets"
                answer_json(
                    self, found.status, error if found.status != 200 else {"url": address, "name": "them/tickets"}
                )
            elif path == "/api/validate-yaml":
                answer_json(self, 200, {"errors": [], "warnings": []})
            elif path == "/api/models/them/tickets/preupload/main":
                files = json.loads(body)["files"]
                modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]
                answer_json(self, 200, {"files": modes})
            elif path == "/api/models/them/tickets/commit/main":
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                commit = {"commitUrl": f"{found.address}/them/tickets/commit/1", "commitOid": "1" * 40}
                answer_json(self, 200, {"success": True, "hookOutput": "", **commit})
            else:
                answer_json(self, 404, {"error": f"the stand-in knows no {path}"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield found


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("push")
    write_small_study(root, tiny, {"max_steps": 2}, seeds=[0])
    run_forked([sys.executable, "-m", "manytune", "run", "study.yaml", "--out", "out", "--quiet"], cwd=root, check=True)
    return root


def export(folder: Path, to: Path, *words: str, **environment: str) -> Any:
    """The command, as a process of its own: the hub's library reads the environment when it is imported."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = {"HF_HOME": str(to.parent / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "manytune", "export", "out", "--to", str(to), "--merge", *words]
    return run_forked(command, cwd=folder, env={**given, **home, **environment})


def test_what_is_uploaded_is_what_was_written(folder: Path, hub: Hub, tmp_path: Path) -> None:
    done = export(folder, tmp_path / "m", "--push", "them/tickets", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path / "m")): path.read_bytes() for path in (tmp_path / "m").rglob("*")}
    assert hub.files == written
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(written)
    assert [(each["name"], each["organization"]) for each in hub.made] == [("tickets", "them")]
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert f"Uploaded to {hub.address}/them/tickets" in done.stdout
    call = 'AutoModelForSequenceClassification.from_pretrained("them/tickets")'
    assert call in done.stdout
    assert call in written["README.md"].decode()
    assert TOKEN not in done.stdout + done.stderr


def test_public_is_asked_for(folder: Path, hub: Hub, tmp_path: Path) -> None:
    words = ("--push", "them/tickets", "--public")
    assert export(folder, tmp_path / "m", *words, HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN).returncode == 0
    assert hub.made[0].get("private") is False or hub.made[0].get("visibility") == "public"


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "log in anew"), (403, "make one that may"), (404, "no such account")]
)
def test_a_hub_that_refuses(folder: Path, hub: Hub, tmp_path: Path, status: int, cure: str) -> None:
    hub.status = status
    done = export(folder, tmp_path / "m", "--push", "them/tickets", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert re.search(rf"--push: the hub refused them/tickets \({status}\): .*{cure}", done.stderr, re.DOTALL)
    assert f"{tmp_path / 'm'} is whole" in done.stderr
    assert (tmp_path / "m" / "model.safetensors").is_file()
    assert TOKEN not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    words = ("--push", "them/tickets")
    done = export(folder, tmp_path / "m", *words, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "--push: them/tickets could not be uploaded (" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["--push", "a/b/c"], {"HF_TOKEN": TOKEN}, "--push: 'a/b/c' cannot be a repository"),
        (["--push", "them/tickets"], {}, "there is no token of the Hugging Face hub"),
        (["--push", "them/tickets"], {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["--public"], {}, "--public goes with --push"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_first(
    folder: Path, tmp_path: Path, words: list[str], environment: dict[str, str], message: str
) -> None:
    done = export(folder, tmp_path / "m", *words, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "m").exists()
