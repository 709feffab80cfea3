"""Baselines: what a task's rows yield without a pretrained encoder, a constant and TF-IDF with a linear model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manytune.data.metrics import METRICS, evaluate, is_constant, is_correlation
from manytune.data.splits import Array, Split, epoch_order

if TYPE_CHECKING:
    from manytune.data.tasks import Task

SETTINGS: Mapping[str, str | int] = {
    "words": r"\w+, lower case, 1- and 2-grams",
    "pairs": "TF-IDF of both texts, their absolute difference and product, and their cosine",
    "most_rows": 20_000,  # so that large tasks take seconds
    "most_words": 50_000,
    "most_weights": 2_000_000,  # of a linear model: words count less where there are many classes
    "most_products": 40_000_000,  # filled features times outputs: a step of the fit takes a fraction of a second
    "most_characters": 4_000,  # of a text; encoders read less of it
}
"""What the scores depend on beside the rows; a change makes kept ones be computed anew."""

TFIDF_TITLE = "TF-IDF with a linear model"


@dataclass(frozen=True)
class BaselineScore:
    """What one baseline scores on dev; where the training rows differ by seed, its mean over the seeds' rows."""

    name: str
    """`constant` or `tfidf`."""
    title: str
    """What sentences call it, such as "the commonest class"."""
    rows: int
    """Training rows that it learned from."""
    scores: dict[str, float | None]
    """Metric → score to six digits (the digits behind depend on the number of threads); None: undefined."""
    note: str
    """What it predicts, or of how many rows its training rows are a sample; may be empty."""


@dataclass(frozen=True, eq=False)
class FittedBaseline:
    """A baseline that has learned from training rows."""

    name: str
    title: str
    rows: int
    note: str
    words: Any  # the fitted TfidfVectorizer; None: it never looks at a text
    model: Any  # the fitted linear model; of a constant, the prediction of every row

    def predict(self, task: Task, texts: Sequence[tuple[str, ...]]) -> Array:
        """Predictions `[N]` of the task's type for N rows."""
        if self.words is None:
            return np.full(len(texts), self.model)
        found: Array = task.outside(self.model.predict(_features(self.words, texts)))
        return found


def fit_baselines(task: Task, train: Split, rows: Array) -> list[FittedBaseline]:
    """What learns from the training rows with these indices: the constant, and TF-IDF where the type has a model."""
    constant = task.type.constant(train.labels[rows])
    note = f"predicts {task.type.shown(task, constant)}"
    found = [FittedBaseline("constant", task.type.constant_title, len(rows), note, None, constant)]
    model = task.type.linear_model()
    return found if model is None else [*found, *_fit_tfidf(task, model, train, rows)]


def score_baselines(task: Task, splits: Mapping[str, Split], row_sets: Sequence[Array]) -> tuple[BaselineScore, ...]:
    """Baselines fitted on each set of training rows, and scored on dev (and what else the task scores) as runs are."""
    by_name: dict[str, list[tuple[FittedBaseline, dict[str, float | None]]]] = {}
    for rows in row_sets:
        for each in fit_baselines(task, splits["train"], rows):
            dev = splits["dev"]
            scores = baseline_scores(task, each.predict(task, dev.texts), dev.labels)
            for split, metric in task.also_scored.items():
                predicted = each.predict(task, splits[split].texts)
                scores[metric] = METRICS[metric].compute(predicted, splits[split].labels)
            by_name.setdefault(each.name, []).append((each, scores))
    return tuple(
        BaselineScore(
            first.name,
            first.title,
            first.rows,
            {name: _mean([each[name] for _, each in fits]) for name in scores},
            first.note,
        )
        for fits in by_name.values()
        for first, scores in fits[:1]
    )


def baseline_scores(task: Task, predictions: Array, labels: Array) -> dict[str, float | None]:
    """Metric → score of predictions `[N]`; a correlation of one constant with labels is undefined: None."""
    constant = is_constant(predictions, task.scale)
    found = evaluate(task, predictions, labels)
    return {name: None if constant and is_correlation(name) else score for name, score in found.items()}


def _mean(scores: Sequence[float | None]) -> float | None:
    """The mean to six digits; None where one is undefined."""
    known = [score for score in scores if score is not None and np.isfinite(score)]
    return float(f"{np.mean(known):.6g}") if len(known) == len(scores) else None


def _fit_tfidf(task: Task, model: Any, train: Split, rows: Array) -> list[FittedBaseline]:
    """TF-IDF features and a linear model of them; nothing where the texts have no words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    most_rows, most_words, most_weights, most_products = (
        int(SETTINGS[name]) for name in ("most_rows", "most_words", "most_weights", "most_products")
    )
    outputs, blocks = task.num_outputs, 1 if len(task.text_columns) == 1 else 4
    used = rows if len(rows) <= most_rows else rows[epoch_order(len(rows), 0, 0)[:most_rows]]
    texts = [train.texts[row] for row in used]
    most = max(1_000, min(most_words, most_weights // (outputs * blocks)))
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", max_features=most)
    try:
        words.fit([text for column in _columns(texts) for text in column])
    except ValueError:  # an empty vocabulary
        return []
    features = _features(words, texts)
    if (products := features.nnz * outputs) > most_products:
        used = used[np.sort(epoch_order(len(used), 0, 1)[: max(1, len(used) * most_products // products)])]
        features = _features(words, [train.texts[row] for row in used])
    targets = task.inside(train.labels[used])
    if len(np.unique(targets)) < 2:  # a sample of one class: nothing to fit
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged: its steps are bounded too
        model.fit(features, targets)
    note = (
        "" if len(used) == len(rows) else f"learned from {len(used):,} of {len(rows):,} training rows, drawn at random"
    )
    return [FittedBaseline("tfidf", TFIDF_TITLE, len(used), note, words, model)]


def _columns(texts: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """The texts by column, each cut."""
    most = int(SETTINGS["most_characters"])
    return [[text[:most] for text in column] for column in zip(*texts, strict=True)]


def _features(words: Any, texts: Sequence[tuple[str, ...]]) -> Any:
    """`[N, features]`, sparse: TF-IDF; of a pair, as `SETTINGS["pairs"]` says."""
    from scipy import sparse

    first, *others = (words.transform(column) for column in _columns(texts))
    if not others:
        return first
    (second,) = others
    product = first.multiply(second).tocsr()
    cosine = sparse.csr_matrix(product.sum(1))  # the vectors have length 1
    return sparse.hstack([first, second, abs(first - second), product, cosine], format="csr")
