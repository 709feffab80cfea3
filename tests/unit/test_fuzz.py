"""Whatever stands in a file, it is read, or refused by a ManytuneError: nothing else is ever raised."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from manytune.config import Study, Training
from manytune.config.plan import plan_runs
from manytune.data.splits import load_split
from manytune.data.tasks import get_task
from manytune.methods import METHODS
from manytune.storage.artifacts import Examples, Structure, predictions_from_bytes
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, history_from_csv
from manytune.training.checkpoints import Checkpoints
from manytune.utils.errors import ManytuneError
from record_factory import make_record

FUZZ = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALID = {
    "name": "fuzzed",
    "tasks": ["cola"],
    "seeds": [0, 1],
    "training": {"epochs": 1, "class_weights": [1, 2]},
    "methods": [{"method": "lora", "rank": [2, 4], "learning_rate": {"cola": 1e-3}, "targets": ["query"]}],
}
keys = st.sampled_from(
    sorted({*Study.model_fields, *Training.model_fields, *(k for kind in METHODS.values() for k in kind.model_fields)})
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["lora", "full", "cola", "auto", "1e-3", "../x", "epoch", "balanced"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=4), inner, max_size=3)
)


@st.composite
def nearly(draw: st.DrawFn, valid: Any) -> Any:
    """Something valid, of which a part is replaced by anything."""
    if isinstance(valid, dict) and valid and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(valid)))
        return {**valid, key: draw(nearly(valid[key]))}
    if isinstance(valid, list) and valid and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(valid) - 1))
        return [*valid[:place], draw(nearly(valid[place])), *valid[place + 1 :]]
    return draw(values)


@FUZZ
@given(data=nearly(VALID))
def test_a_study_that_is_nearly_right(data: Any) -> None:
    with suppress(ManytuneError):
        study = Study.from_dict(data)
        plan_runs(study)
        assert Study.from_dict(yaml.safe_load(study.to_yaml())) == study


@FUZZ
@given(content=st.binary(max_size=60) | st.text(alphabet="ab:-[]{}&*!#|>'\"\n\t 0", max_size=40).map(str.encode))
@example(content=b"a: &a [*a]")
@example(content=b"!!python/object/apply:os.system ['true']")
@example(content=b"[" * 5000)
@example(content=b"? " * 3000)
@example(content=b"a: " + b"9" * 5000)
def test_a_study_file_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with suppress(ManytuneError):
        Study.from_file(tmp_path / "study.yaml")


@FUZZ
@given(override=st.text(max_size=20) | st.tuples(keys, scalars).map(lambda pair: f"{pair[0]}={pair[1]}"))
def test_any_override(override: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(VALID))
    with suppress(ManytuneError):
        Study.from_file(tmp_path / "study.yaml", [override])


@pytest.mark.parametrize(("name", "folder"), [("cola", "CoLA"), ("stsb", "STS-B")])
@FUZZ
@given(content=st.binary(max_size=60) | st.text(alphabet='a01\t\n\r"\0 é', max_size=60).map(str.encode))
def test_a_data_file_of_any_bytes(content: bytes, tmp_path: Path, name: str, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "train.tsv").write_bytes(content)
    with suppress(ManytuneError):
        load_split(get_task(name), "train", str(tmp_path))


RECORD = json.loads(make_record().to_json())


@FUZZ
@given(data=nearly(RECORD))
def test_a_record_that_is_nearly_right(data: Any) -> None:
    with suppress(ManytuneError):
        record = RunRecord.from_json(json.dumps(data))
        assert RunRecord.from_json(record.to_json()) == record


@FUZZ
@given(content=st.binary(max_size=60))
@example(content=b"[" * 100_000)
@example(content=b'{"schema_version": 1e999}')
def test_files_of_a_study_directory_of_any_bytes(content: bytes, tmp_path: Path) -> None:
    text = content.decode("latin-1")
    for read in (
        RunRecord.from_json,
        history_from_csv,
        Examples.from_json,
        Structure.from_json,
    ):
        with suppress(ManytuneError):
            read(text, where="here")  # type: ignore[operator]
    with suppress(ManytuneError):
        predictions_from_bytes(content, where="here")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(VALID))
    for name in ("plan.json", "provenance.json", "lock", "roster-000000001.json"):
        (tmp_path / name).write_bytes(content)
    with suppress(ManytuneError):
        Store.open(tmp_path).status()
    assert Checkpoints(tmp_path, [], None, {}).newest(lambda text: None) is None
