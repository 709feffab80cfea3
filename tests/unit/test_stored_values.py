"""Whatever stands in a file of a study directory, every reader ends well or with a ManytuneError of one message."""

from __future__ import annotations

import copy
import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from manytune.data.tasks import get_task
from manytune.report import figures
from manytune.report.analysis import analyse
from manytune.report.compare import compare_studies, render_changes
from manytune.report.content import compose
from manytune.report.live_page.state import Watched
from manytune.report.report_data import read
from manytune.report.views import facts_table, history_table, record_facts, status_line, status_summary, status_table
from manytune.report.writing import files_of
from manytune.storage.artifacts import Learned, predictions_from_bytes
from manytune.storage.directory import Store
from manytune.storage.lookup import chosen_records
from manytune.storage.record import HistoryRow
from manytune.tracking.pack_progress import LiveFileWriter
from manytune.training import snapshot
from manytune.utils.errors import ManytuneError, StoreError
from manytune.utils.text import parse_json
from study_factory import GLUE_LIKE, make_study_directory

FUZZ = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
STUDY = {
    **GLUE_LIKE,
    "tasks": ["stsb"],
    "seeds": [0],
    "methods": [{"method": "full", "learning_rate": 5e-5}, {"method": "lora", "rank": [2, 8], "learning_rate": 4e-4}],
}
ODD = st.sampled_from(
    [
        *(None, [], {}, "", "x", "\ud800", "a\ud800b", "\0", "x" * 400, "nan", "1e999", [[]], {"a": None}, True),
        *(10**400, 10**60, 2**63, -1, 0, 0.5, 1e308, -1e308, float("nan"), float("inf"), [1e308, -1e308]),
    ]
)
FILES = ["record", "failed record", "examples", "structure", "plan", "live"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("stored") / "study"
        store = make_study_directory(root, STUDY, states={"stsb-lora-r8": "failed"}, evaluations=2)
        run = store.runs()[0]
        live = LiveFileWriter(root)
        live.on_train_begin("p", "stsb", "pearson", [run.id], 100)
        live.on_step_end("p", 3, [0.5])
        live.on_evaluate("p", 4, {run.id: HistoryRow(step=4, metrics={"pearson": 0.1})}, (run.id, 0.1))
        patch.setattr(figures, "figure_makers", dict)
        yield store


def path_of(store: Store, name: str) -> Path:
    first, *_, last = store.runs()
    return {
        "record": store.run_dir(first.id) / "record.json",
        "failed record": store.run_dir(last.id) / "record.json",
        "history": store.run_dir(first.id) / "history.csv",
        "examples": store.root / "tasks" / "stsb" / "examples.json",
        "structure": store.root / "tasks" / "stsb" / "structure.json",
        "plan": store.root / "plan.json",
        "live": store.root / "live" / "p.json",
    }[name]


def changed(draw: st.DrawFn, value: Any) -> Any:
    """The same with one value of it, anywhere, replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(list(value)))
        return {**value, key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        found = copy.copy(value)
        found[0] = changed(draw, found[0])
        return found
    return draw(ODD)


def read_everything(store: Store) -> None:
    """Every reader in turn; each may refuse, in a message that can be printed."""
    screen, refused = io.StringIO(), list[str]()
    console = Console(file=screen, width=100)

    def status() -> Any:
        found = store.status()
        console.print(status_line(found), status_table(found), status_summary(found))
        return found.to_dict()

    def show() -> Any:
        for run in store.runs():
            record = store.read_record(run.id)
            if record is not None:
                console.print(facts_table(record_facts(record)), history_table(store.read_history(run.id)))
        return [record.model_dump(mode="json") for record in store.finished_runs().values()]

    def compare() -> Any:
        changes = compare_studies(store.root, store.root)
        console.print(render_changes(changes))
        return changes.to_dict()

    def report() -> Any:
        files = files_of(compose(read([store.root])))
        return [data.encode() and None for data in files.values() if isinstance(data, str)]

    for reader in (status, show, compare, report, Watched(store).state, lambda: chosen_records(store, "best", None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's of overflow; and what a report goes without
            try:
                found = reader()
                json.dumps(found if isinstance(found, dict | list) else None, allow_nan=False).encode()
            except ManytuneError as error:
                refused.append(str(error))
    assert all(10 < len(text.encode()) < 1500 for text in refused)
    screen.getvalue().encode()


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(data=st.data())
def test_a_value_of_another_kind(store: Store, name: str, data: st.DataObject) -> None:
    path = path_of(store, name)
    before = path.read_bytes()
    value = changed(data.draw, json.loads(before))
    try:
        path.write_text(json.dumps(value))
        read_everything(store)
    finally:
        path.write_bytes(before)


@FUZZ
@given(data=st.data())
def test_a_cell_of_another_kind(store: Store, data: st.DataObject) -> None:
    path = path_of(store, "history")
    before = path.read_text()
    cells = [line.split(",") for line in before.splitlines()]
    line = data.draw(st.integers(0, len(cells) - 1))
    cells[line][data.draw(st.integers(0, len(cells[line]) - 1))] = data.draw(
        st.sampled_from(["", "nan", "inf", "-inf", "1e999", "1e308", "-1e308", "9" * 400, "9" * 5000, "x", '"', "\0"])
    )
    try:
        path.write_text("\n".join(map(",".join, cells)))
        read_everything(store)
    finally:
        path.write_text(before)


def npz(header: bytes, content: bytes, name: str = "logits.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, header + content)
    return file.getvalue()


def header(**facts: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, **facts})
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npz(header(shape=(10**12, 2)), b""),
        npz(header(shape=(10**30, 2)), b""),
        npz(header(shape=(-1, 2)), b""),
        npz(header(shape=(2, 2)), b"1234"),
        npz(header(shape=(1, 1)), b"1234" * 1000),
        npz(header(shape=(1, 1)), b"1234", name="other.npy"),
        npz(header(shape=(1, 1))[:-20], b""),
        npz(b"\x93NUMPY\x07\x00", b""),
    ],
    ids=["huge", "beyond memory", "negative", "too short", "too long", "another name", "half a header", "a version"],
)
def test_predictions_are_no_larger_than_they_say(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"here is damaged: ."):
        predictions_from_bytes(data, "here")


@pytest.mark.parametrize("value", [None, [], "x", 10**400, float("nan"), "\ud800", {"method": 3}])
@pytest.mark.parametrize("name", ["format", "run_id", "model_revision", "method", "seed"])
def test_facts_of_a_snapshot_of_another_kind(store: Store, name: str, value: Any) -> None:
    record = next(iter(store.finished_runs().values())).model_copy(update={"schema_version": 1})
    run = store.runs()[0]
    directory = store.snapshot_dir(run.id)
    facts = {"run_id": run.id, "model_revision": record.provenance.model_revision, "seed": run.seed}
    facts["method"] = run.method.model_dump(mode="json")
    snapshot.save(directory, {"a": torch.ones(1)}, facts)
    snapshot.load_own(store, record, run)
    path = directory / "snapshot.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with suppress(StoreError):
        snapshot.load_own(store, record, run)
        assert name == "method"  # one that says nothing of the method can contradict nothing


@pytest.mark.parametrize(
    "text",
    [
        '{"labels": []}',
        '{"labels": ["a"]}',
        '{"labels": ["a", "a"]}',
        '{"labels": ["a", "\\ud800"]}',
        '{"labels": ["a", "b"], "center": NaN}',
        '{"labels": ["a", "b"], "center": 0, "spread": 0}',
        '{"labels": ["a", "b"], "center": 0, "spread": 1e999}',
    ],
)
def test_classes_that_cannot_be(text: str) -> None:
    with pytest.raises((StoreError, ValueError)):
        Learned.from_json(text, "here").complete(get_task("cola"))


def test_names_of_any_length_make_files(tmp_path: Path) -> None:
    """The model's name is part of files' names where a task has two."""
    roots = []
    for place, letter in enumerate("ab"):
        study = {**STUDY, "name": letter * 100, "model": f"{letter * 250}/{letter * 250}"}
        roots.append(make_study_directory(tmp_path / str(place), study, artifacts=False, evaluations=2).root)
    keys = [analysis.key for analysis in analyse(read(roots))]
    assert len(set(keys)) == 2
    assert max(map(len, keys)) <= 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        ("1" * 5000, "thousands of digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_wrong_with_json_is_said(text: str | bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_json(text)
