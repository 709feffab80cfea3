"""Baselines beside scikit-learn's own pipelines, and when they are had anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, matthews_corrcoef

from manytune.config import Study
from manytune.data import baselines
from manytune.data.baselines import BaselineScore, baseline_scores, fit_baselines, score_baselines
from manytune.data.splits import Split, load_task, train_split
from manytune.data.task_types import Scale
from manytune.data.tasks import Task, get_task
from manytune.storage.artifacts import TaskArtifacts
from manytune.training.workload import measure_baselines
from record_factory import make_record

ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"


@pytest.fixture(scope="module")
def acceptability() -> tuple[Task, dict[str, Split]]:
    return load_task(get_task(ACCEPTABILITY))


@pytest.fixture(scope="module")
def similarity() -> tuple[Task, dict[str, Split]]:
    return load_task(get_task(SIMILARITY))


def every(splits: dict[str, Split]) -> np.ndarray:
    return np.arange(len(splits["train"]))


def study(**changes: object) -> Study:
    data = {
        "name": "s",
        "model": "minilm",
        "tasks": [ACCEPTABILITY],
        "seeds": [0, 1],
        "methods": [{"method": "bitfit"}],
    }
    return Study.from_dict({**data, "methods": [{"method": "bitfit", "learning_rate": 1e-3}], **changes})


def test_texts_of_classes_are_scored_as_by_scikit_learn(acceptability: tuple[Task, dict[str, Split]]) -> None:
    task, splits = acceptability
    train, dev = ([row[0] for row in splits[name].texts] for name in ("train", "dev"))
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(train)
    model = LogisticRegression().fit(words.transform(train), splits["train"].labels)
    wanted, labels = model.predict(words.transform(dev)), splits["dev"].labels
    constant, tfidf = score_baselines(task, splits, [every(splits)])
    assert tfidf.scores["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, wanted), abs=1e-6)
    assert tfidf.scores["accuracy"] == pytest.approx(accuracy_score(labels, wanted), abs=1e-6)
    assert (tfidf.name, tfidf.rows, tfidf.note) == ("tfidf", len(train), "")
    assert constant.scores == {"matthews_correlation": 0.0, "accuracy": 0.5}
    assert (constant.title, constant.note) == ("the commonest class", "predicts unacceptable")


def test_pairs_of_numbers_are_scored_as_by_scikit_learn(similarity: tuple[Task, dict[str, Split]]) -> None:
    task, splits = similarity
    columns = {name: [list(column) for column in zip(*split.texts, strict=True)] for name, split in splits.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(
        [*columns["train"][0], *columns["train"][1]]
    )

    def dense(name: str) -> np.ndarray:
        first, second = (words.transform(column).toarray() for column in columns[name])
        cosine = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(first, second, strict=True)]
        return np.hstack([first, second, np.abs(first - second), first * second, np.array(cosine)[:, None]])

    wanted = Ridge(solver="cholesky").fit(dense("train"), splits["train"].labels.astype(float)).predict(dense("dev"))
    constant, tfidf = score_baselines(task, splits, [every(splits)])
    labels = splits["dev"].labels.astype(float)
    assert tfidf.scores["pearson"] == pytest.approx(np.corrcoef(wanted, labels)[0, 1], abs=2e-3)
    assert constant.title == "the mean target"
    assert constant.scores == {"pearson": None, "spearman": None}
    errors = replace(task, metrics=("rmse", "pearson"))
    (mean, _) = score_baselines(errors, splits, [every(splits)])
    center = splits["train"].labels.astype(float).mean()
    assert mean.scores["rmse"] == pytest.approx(np.sqrt(np.mean((labels - center) ** 2)), rel=1e-5)


def test_a_scaled_task_is_learned_on_its_scale(similarity: tuple[Task, dict[str, Split]]) -> None:
    task, splits = similarity
    far = {name: replace(split, labels=split.labels.astype(float) * 1e200) for name, split in splits.items()}
    targets = far["train"].labels
    scaled = replace(task, metrics=("pearson", "mae"), scale=Scale(float(targets.mean()), 1e200))
    _, tfidf = score_baselines(scaled, far, [every(splits)])
    _, plain = score_baselines(replace(task, metrics=("pearson", "mae")), splits, [every(splits)])
    assert tfidf.scores["pearson"] == pytest.approx(plain.scores["pearson"], abs=1e-3)
    assert tfidf.scores["mae"] == pytest.approx((plain.scores["mae"] or 0) * 1e200, rel=1e-3)


def test_many_rows_are_sampled_and_that_is_said(
    acceptability: tuple[Task, dict[str, Split]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, splits = acceptability
    monkeypatch.setitem(baselines.SETTINGS, "most_rows", 300)  # type: ignore[misc]
    constant, tfidf = fit_baselines(task, splits["train"], every(splits))
    assert (constant.rows, tfidf.rows) == (1620, 300)
    assert tfidf.note == "learned from 300 of 1,620 training rows, drawn at random"
    monkeypatch.setitem(baselines.SETTINGS, "most_products", 1000)  # type: ignore[misc]
    assert 10 <= fit_baselines(task, splits["train"], every(splits))[1].rows <= 60
    monkeypatch.setitem(baselines.SETTINGS, "most_characters", 0)  # type: ignore[misc]
    assert [each.name for each in fit_baselines(task, splits["train"], every(splits))] == ["constant"]


def test_texts_without_words_leave_the_constant(acceptability: tuple[Task, dict[str, Split]]) -> None:
    task, splits = acceptability
    signs = replace(splits["train"], texts=(("!?",),) * len(splits["train"]))
    assert [each.name for each in score_baselines(task, {**splits, "train": signs}, [every(splits)])] == ["constant"]


def test_rows_that_are_set_aside_are_not_learned_from(acceptability: tuple[Task, dict[str, Split]]) -> None:
    task, splits = acceptability
    labels = splits["train"].labels
    kept = [train_split(len(labels), seed, labels=labels)[0] for seed in (0, 1)]
    made = measure_baselines(study(selection="train-split"), task, splits)
    assert made.seeds == (0, 1)
    each = [score_baselines(task, splits, [rows])[1].scores["accuracy"] or 0 for rows in kept]
    assert made.scores[1].scores["accuracy"] == pytest.approx(np.mean(each), abs=1e-5)
    assert made.scores[1].rows == len(kept[0]) < len(labels)


@pytest.mark.parametrize(("values", "wanted"), [([1.0, 1.0, 1.0], None), ([1.0, 2.0, 3.0], 1.0)])
def test_a_correlation_of_a_constant_is_undefined(values: Sequence[float], wanted: float | None) -> None:
    scores = baseline_scores(get_task(SIMILARITY), np.array(values), np.array([0.0, 1.0, 2.0]))
    assert scores["pearson"] == (None if wanted is None else pytest.approx(wanted))


def test_kept_ones_are_taken_if_they_are_of_the_same_rows(
    acceptability: tuple[Task, dict[str, Split]], tmp_path: Path
) -> None:
    task, splits = acceptability
    artifacts = TaskArtifacts(tmp_path)
    made = measure_baselines(study(), task, splits, artifacts)
    assert made.versions == {"scikit-learn": sklearn.__version__}
    marked = made.model_copy(update={"scores": (BaselineScore("constant", "kept", 1, {}, ""),)})
    artifacts.keep_baselines(marked)
    assert artifacts.baselines() == marked
    assert measure_baselines(study(), task, splits, artifacts) == marked
    assert measure_baselines(study(selection="train-split"), task, splits, artifacts).scores != marked.scores
    dev = replace(splits["dev"], fingerprint="other")
    assert measure_baselines(study(), task, {**splits, "dev": dev}, artifacts).scores == made.scores
    (tmp_path / "baselines.json").write_text("{")
    assert measure_baselines(study(), task, splits, artifacts) == made
    record = make_record(selection="dev", provenance={"data_fingerprint": made.fingerprint})
    assert made.fit([record])
    assert not made.fit([record, record.model_copy(update={"selection": "train-split"})])
    assert not made.fit([make_record(selection="dev")])
