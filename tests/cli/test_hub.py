"""GLUE through the Hugging Face hub: the real `datasets`, against a stand-in hub on 127.0.0.1, and offline.

Each load is a process of its own, because the hub's libraries read the environment when they are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from forked import run_forked
from manytune.data.splits import load_split
from manytune.data.tasks import TASKS

REPOSITORY = "nyu-mll/glue"
REVISION = "0123456789abcdef0123456789abcdef01234567"
SIZES = {"cola": {"train": 8551, "dev": 1043}, "stsb": {"train": 5749, "dev": 1500}}
HUB_SPLITS = {"train": "train", "dev": "validation"}

# As in the real repository's card: where the parquet files are, and what the columns hold.
CARD = """\
---
dataset_info:
- config_name: cola
  features:
  - name: sentence
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': unacceptable
          '1': acceptable
  - name: idx
    dtype: int32
- config_name: stsb
  features:
  - name: sentence1
    dtype: string
  - name: sentence2
    dtype: string
  - name: label
    dtype: float32
  - name: idx
    dtype: int32
configs:
- config_name: cola
  data_files:
  - {split: train, path: cola/train-*}
  - {split: validation, path: cola/validation-*}
- config_name: stsb
  data_files:
  - {split: train, path: stsb/train-*}
  - {split: validation, path: stsb/validation-*}
---
# A stand-in for GLUE
"""

LOAD = """
import json
import sys
from manytune.data.splits import load_split
from manytune.utils.errors import ManytuneError
from manytune.data.tasks import get_task
try:
    loaded = load_split(get_task(sys.argv[1]), sys.argv[2])
except ManytuneError as error:
    sys.exit(str(error))
print(json.dumps([len(loaded), loaded.source, loaded.fingerprint]))
"""


Answer = tuple[int, dict[str, str], bytes]  # status, headers, content
Rows = list[tuple[tuple[str, ...], float]]


@dataclass
class Hub:
    """One read-only dataset repository behind as much of the hub's protocol as `datasets` speaks."""

    root: Path
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def answer(self, method: str, path: str) -> Answer:
        self.requests.append(f"{method} {path}")
        for prefix, handler in self.routes().items():
            if path.startswith(prefix):
                return handler(path.removeprefix(prefix))
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def routes(self) -> dict[str, Callable[[str], Answer]]:
        api = f"/api/datasets/{REPOSITORY}"
        return {
            f"/datasets/{REPOSITORY}/resolve/main/": self.file,
            f"/datasets/{REPOSITORY}/resolve/{REVISION}/": self.file,
            f"{api}/revision/{REVISION}": self.information,
            f"{api}/tree/{REVISION}": self.tree,
        }

    def file(self, name: str) -> Answer:
        path = self.root / name
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION}, b""
        content = path.read_bytes()
        etag = hashlib.sha1(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}, content

    def information(self, _rest: str) -> Answer:
        files = [{"rfilename": self.name(path)} for path in self.root.rglob("*") if path.is_file()]
        return self.json({"id": REPOSITORY, "sha": REVISION, "siblings": files})

    def tree(self, folder: str) -> Answer:
        return self.json([self.entry(path) for path in sorted((self.root / folder.strip("/")).iterdir())])

    def entry(self, path: Path) -> dict[str, object]:
        oid = hashlib.sha1(self.name(path).encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "path": self.name(path), "oid": oid, "size": 0}
        return {"type": "file", "path": self.name(path), "oid": oid, "size": path.stat().st_size}

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @staticmethod
    def json(value: object) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def serve(hub: Hub) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, content = hub.answer(self.command, unquote(urlsplit(self.path).path))
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def rows(task: str, split: str) -> Rows:
    count = SIZES[task][split]
    if task == "cola":
        return [((f'Sentence "{index}" of {split}.',), int(index % 3 > 0)) for index in range(count)]
    return [((f"First {index}.", f'Second, "{split}.'), index % 51 / 10) for index in range(count)]


def write_repository(root: Path) -> None:
    (root / "README.md").write_text(CARD)
    for task, sizes in SIZES.items():
        for split in sizes:
            write_parquet(root, task, split, rows(task, split))


def write_parquet(root: Path, task: str, split: str, data: Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["sentence"] if task == "cola" else ["sentence1", "sentence2"]
    columns = {name: [texts[at] for texts, _ in data] for at, name in enumerate(names)}
    labels = pa.array([label for _, label in data], pa.int64() if task == "cola" else pa.float32())
    table = pa.table({**columns, "label": labels, "idx": pa.array(range(len(data)), pa.int32())})
    (root / task).mkdir(exist_ok=True)
    pq.write_table(table, root / task / f"{HUB_SPLITS[split]}-00000-of-00001.parquet")


def write_folder(root: Path) -> None:
    """The same rows as a GLUE folder."""
    for task, folder in (("cola", "CoLA"), ("stsb", "STS-B")):
        (root / folder).mkdir(parents=True)
        for split in SIZES[task]:
            lines = ["sentence1\tsentence2\tscore"] if task == "stsb" else []
            for texts, label in rows(task, split):
                fields = (*texts, str(label)) if task == "stsb" else ("src", str(label), "", *texts)
                lines.append("\t".join(fields))
            (root / folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def load(home: Path, task: str, split: str, *, hub: Hub | None = None) -> Any:
    """Load a split in a process that knows `hub` alone, or nothing but the caches in `home`."""
    environment = {**os.environ, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    if hub is not None:
        del environment["HF_HUB_OFFLINE"]
        environment["HF_ENDPOINT"] = hub.endpoint
    return run_forked([sys.executable, "-c", LOAD, task, split], env=environment, cwd=home.parent)


def loaded(process: Any) -> tuple[int, str, str]:
    assert (process.returncode, process.stderr) == (0, "")
    size, source, fingerprint = json.loads(process.stdout)
    return size, source, fingerprint


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(tmp_path / "repository")
    hub.root.mkdir()
    write_repository(hub.root)
    server = serve(hub)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("task", SIZES)
def test_hub_then_caches_then_nothing(hub: Hub, tmp_path: Path, task: str) -> None:
    write_folder(tmp_path / "glue")
    local = load_split(TASKS[task], "train", str(tmp_path / "glue"))
    expected = (SIZES[task]["train"], f"hub:{REPOSITORY}@{REVISION}", local.fingerprint)
    home = tmp_path / "home"

    assert loaded(load(home, task, "train", hub=hub)) == expected
    parquet = f"/datasets/{REPOSITORY}/resolve/{REVISION}/{task}/train-00000-of-00001.parquet"
    assert f"GET {parquet}" in hub.requests

    seen = len(hub.requests)
    assert loaded(load(home, task, "train")) == expected  # offline, from the cache of `datasets`

    shutil.rmtree(home / "datasets")
    assert loaded(load(home, task, "train")) == expected  # offline, from what `hf download` leaves
    assert len(hub.requests) == seen

    shutil.rmtree(home)
    process = load(home, task, "train")
    assert process.returncode == 1
    assert process.stderr.startswith(f"task {task}: cannot load {REPOSITORY} ({task}), split 'train' from the")
    assert "OfflineModeIsEnabled" in process.stderr
    assert "MANYTUNE_GLUE_DIR" in process.stderr
    assert "builtin-acceptability" in process.stderr
    assert "Traceback" not in process.stderr


def test_dev_is_the_hubs_validation_split(hub: Hub, tmp_path: Path) -> None:
    write_folder(tmp_path / "glue")
    local = load_split(TASKS["cola"], "dev", str(tmp_path / "glue"))
    size, _, fingerprint = loaded(load(tmp_path / "home", "cola", "dev", hub=hub))
    assert (size, fingerprint) == (1043, local.fingerprint)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "1,042 rows, but CoLA's dev split has 1,043"),
        (lambda data: [*data[:-1], (data[-1][0], -1)], "row 1043: label -1 marks a row without a label"),
    ],
    ids=["rows lost", "unlabelled"],
)
def test_what_the_hub_gives_is_checked(hub: Hub, tmp_path: Path, damage: Callable[[Rows], Rows], message: str) -> None:
    write_parquet(hub.root, "cola", "dev", damage(rows("cola", "dev")))
    process = load(tmp_path / "home", "cola", "dev", hub=hub)
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def test_a_hub_without_the_repository(hub: Hub, tmp_path: Path) -> None:
    shutil.rmtree(hub.root)
    process = load(tmp_path / "home", "cola", "dev", hub=hub)
    assert process.returncode == 1
    assert "task cola: cannot load nyu-mll/glue (cola)" in process.stderr
    assert "Traceback" not in process.stderr
    assert hub.requests
