from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from manytune.storage.record import (
    SCHEMA_VERSION,
    Cost,
    HistoryRow,
    Parameters,
    Provenance,
    RunRecord,
    RunState,
    history_from_csv,
    history_to_csv,
)
from manytune.utils.errors import StoreError
from record_factory import make_record

NAN = float("nan")


def test_the_schema_has_every_field_that_readers_rely_on() -> None:
    fields = json.loads(make_record().to_json())
    assert fields["schema_version"] == SCHEMA_VERSION == 3
    assert set(fields) >= {
        *("schema_version", "run_id", "study", "task", "model", "method", "hyperparameters", "seed", "state"),
        *("primary_metric", "best_score", "best_step", "last_score", "scores"),
        *("failure", "notes", "label", "template", "selection", "epochs_done", "steps", "last_collapsed", "files"),
    }
    assert list(fields["parameters"]) == ["total", "trainable", "backbone", "bias", "adapter", "head"]
    assert list(fields["cost"]) == [
        *("train_seconds", "eval_seconds", "peak_memory_bytes"),
        *("samples_per_second", "snapshot_bytes", "pack_size"),
    ]
    assert list(fields["provenance"]) == [
        *("versions", "model_revision", "data_fingerprint", "git_commit"),
        *("hardware", "started", "finished"),
    ]


def test_what_is_unknown_is_null() -> None:
    fields = json.loads(make_record().to_json())
    assert fields["best_step"] is None
    assert fields["failure"] is None
    assert set(fields["parameters"].values()) == {None}
    assert set(fields["cost"].values()) == {None}


def test_a_record_reads_back_as_it_was() -> None:
    record = make_record(
        hyperparameters={
            "rank": 8,
            "dropout": 0.1,
            "targets": ["query", "value"],
            "training": {"epochs": 3.0},
        },
        notes=["3 rows were truncated at 512 tokens"],
        parameters=Parameters(total=10, trainable=4, adapter=4),
        cost=Cost(train_seconds=1.25, pack_size=8),
        provenance=Provenance(versions={"torch": "2.13.0"}, started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    )
    text = record.to_json()
    assert RunRecord.from_json(text) == record
    assert RunRecord.from_json(text).to_json() == text
    assert RunRecord.from_json(text.encode()) == record


def test_numbers_of_numpy_become_plain() -> None:
    record = make_record(
        seed=np.int64(3),
        best_score=np.float32(0.5),
        best_step=np.int32(7),
        last_collapsed=np.bool_(True),
        scores={"accuracy": np.float64(0.25)},
        hyperparameters={"rank": np.int64(8), "weights": (np.float64(1.0), np.array([2.0, 3.0]))},
    )
    assert type(record.best_score) is float
    assert type(record.scores["accuracy"]) is float
    assert record.last_collapsed is True
    assert record.hyperparameters == {"rank": 8, "weights": [1.0, [2.0, 3.0]]}
    assert type(record.hyperparameters["rank"]) is int
    assert json.loads(record.to_json())["best_step"] == 7


def test_numbers_of_torch_become_plain() -> None:
    torch = pytest.importorskip("torch")
    record = make_record(best_score=torch.tensor(0.5), hyperparameters={"rates": torch.tensor([1.0, NAN])})
    assert type(record.best_score) is float
    assert record.hyperparameters == {"rates": [1.0, None]}


@pytest.mark.parametrize("unknown", [NAN, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_what_is_not_finite_is_null(unknown: float) -> None:
    record = make_record(best_score=unknown, scores={"accuracy": unknown}, hyperparameters={"a": [unknown]})
    fields = json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert fields["best_score"] is None
    assert fields["scores"] == {"accuracy": None}
    assert fields["hyperparameters"] == {"a": [None]}
    assert HistoryRow(step=1, eval_loss=unknown).eval_loss is None


@given(score=st.floats(allow_nan=False, allow_infinity=False), note=st.text())
def test_numbers_and_texts_survive_json(score: float, note: str) -> None:
    record = make_record(best_score=score, notes=[note])
    assert RunRecord.from_json(record.to_json()) == record


def test_a_record_cannot_be_changed() -> None:
    record = make_record()
    with pytest.raises(ValidationError):
        record.seed = 1  # type: ignore[misc]


def test_a_failed_run_says_why() -> None:
    record = make_record(state="failed", failure="the loss was no number at step 12")
    assert record.state is RunState.FAILED
    with pytest.raises(ValidationError, match="must say why"):
        make_record(state="failed")
    with pytest.raises(ValidationError, match="must say why"):
        make_record(state="finished", failure="it did not")


def test_a_time_without_its_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        Provenance(started=datetime(2026, 1, 2))


def changed(**values: object) -> str:
    return json.dumps(json.loads(make_record().to_json()) | values)


def test_a_newer_schema_is_refused_with_both_versions() -> None:
    text = changed(schema_version=SCHEMA_VERSION + 1, something_new=1)
    with pytest.raises(StoreError, match=r"here/record\.json has schema version 4.* up to 3") as caught:
        RunRecord.from_json(text, where="here/record.json")
    assert "newer manytune" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "of a run: Expecting value"),
        ("[1]", "the whole"),
        ('{"run_id": "x"}', "of a run: the key 'schema_version' is missing"),
        (changed(schema_version=0), "schema_version"),
        (changed(schema_version="1.5"), "schema_version"),
        (changed(state="done"), "state: .*finished.*failed.*received 'done'"),
        (changed(surprise=1), "surprise"),
        (changed(cost={"train_seconds": "long"}), "cost.train_seconds"),
        (b"\xff\xfe\xfa", "codec"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(StoreError, match=problem) as caught:
        RunRecord.from_json(text, where="here/record.json")
    assert str(caught.value).startswith("here/record.json is not a record of a run: ")
    assert "trained again" in str(caught.value)


def history() -> list[HistoryRow]:
    first = HistoryRow(
        step=10,
        epoch=0.5,
        samples_seen=160,
        train_loss=0.6,
        learning_rate=1e-3,
        eval_loss=0.7,
        metrics={"pearson": 0.1, "spearman": 0.2},
        seconds=3.5,
    )
    return [first, HistoryRow(step=20, epoch=1.0, metrics={"pearson": 0.3})]


def test_history_has_its_columns_in_order_and_empty_cells_for_the_unknown() -> None:
    assert history_to_csv(history()) == (
        "step,epoch,samples_seen,train_loss,learning_rate,eval_loss,pearson,spearman,seconds\n"
        "10,0.5,160,0.6,0.001,0.7,0.1,0.2,3.5\n"
        "20,1.0,,,,,0.3,,\n"
    )


def test_history_reads_back() -> None:
    first, second = history_from_csv(history_to_csv(history()))
    assert first == history()[0]
    assert second.metrics == {"pearson": 0.3, "spearman": None}
    assert history_from_csv(history_to_csv([])) == ()


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.builds(
            HistoryRow,
            step=st.integers(min_value=0),
            train_loss=st.none() | finite,
            learning_rate=st.none() | finite,
            metrics=st.fixed_dictionaries({"accuracy": st.none() | finite, "f1": st.none() | finite}),
            seconds=st.none() | finite,
        )
    )
)
def test_history_keeps_every_bit(rows: list[HistoryRow]) -> None:
    assert list(history_from_csv(history_to_csv(rows))) == rows


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step,epoch\n1,2\n",
        "step,epoch,samples_seen,train_loss,learning_rate,eval_loss\n",
        "epoch,step,samples_seen,train_loss,learning_rate,eval_loss,seconds\n",
    ],
)
def test_history_with_other_columns_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"here\.csv has the columns .* they must be step, epoch"):
        history_from_csv(text, where="here.csv")


@pytest.mark.parametrize("line", ["1,2,3\n", "one,,,,,,,\n", ",,,,,,,\n", "1,,,,,,high,\n"])
def test_history_with_a_bad_line_is_refused(line: str) -> None:
    header = "step,epoch,samples_seen,train_loss,learning_rate,eval_loss,pearson,seconds\n"
    with pytest.raises(StoreError, match=r"here\.csv cannot be read"):
        history_from_csv(header + line, where="here.csv")


def test_a_record_of_the_first_version_is_read() -> None:
    """A file that is never changed: whoever raises SCHEMA_VERSION keeps reading it, or refuses it in words."""
    text = (Path(__file__).parent / "fixtures" / "record-v1.json").read_text()
    record = RunRecord.from_json(text)
    assert record.schema_version == 1
    assert (record.task, record.method, record.seed) == ("builtin-acceptability", "lora", 0)
    assert record.state is RunState.FINISHED
    assert record.best_score == json.loads(text)["best_score"]
    assert (record.parameters.trainable, record.parameters.adapter) == (151_298, 150_528)
