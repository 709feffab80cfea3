"""Predictions, losses and metrics for every run of a pack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manytune.data import metrics
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.packing import PackedModel, build_layout

# Tokens that go through the backbone at once: enough to fill the device; on a CPU few enough for its caches.
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536, "mps": 16384}


@dataclass(frozen=True)
class EvaluationSummary:
    """The result of one evaluation of one run, without arrays: what later evaluations are compared with."""

    scores: dict[str, float]  # metric name → score, the primary one first; NaN where a logit is not a finite number
    loss: float  # mean loss, without class weights; of scaled targets, on their scale
    collapsed: bool  # whether all predictions are the same


@dataclass(frozen=True)
class Evaluation(EvaluationSummary):
    """The result of one evaluation of one run; arrays are in the rows' order."""

    predictions: NDArray[Any]  # [N], as the task's type decodes them
    # [N, outputs] fp32; of scaled targets fp64, in the targets' own unit; None where they were not kept
    logits: NDArray[Any] | None = None


@torch.no_grad()
def predict(model: PackedModel, data: Encoded, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Logits [R, N, outputs] in fp32 of every run on its own N rows, in the rows' order.

    Rows go through the backbone sorted by length, without padding, all runs together. A run of the pack without rows is
    left out: R counts the others.
    """
    lengths = data.lengths
    orders = [np.argsort(lengths[run_rows], kind="stable") for run_rows in rows]
    sorted_rows = [run_rows[order] for run_rows, order in zip(rows, orders, strict=True)]
    present = [run for run, run_rows in enumerate(rows) if len(run_rows)]
    longest = np.max([lengths[sorted_rows[run]] for run in present], axis=0)
    parts = []
    for first, last in _chunks(longest * len(present), _TOKENS_PER_BATCH[model.device.type]):
        batch = [run_rows[first:last] for run_rows in sorted_rows]
        layout = build_layout(data, batch, device=model.device, rounded=model.rounds_rows)
        parts.append(model.forward(layout)[present].cpu().numpy())
    found = np.concatenate(parts, axis=1)
    logits = np.empty_like(found)
    for index, run in enumerate(present):
        logits[index, orders[run]] = found[index]
    return logits


def evaluate(model: PackedModel, task: Task, data: Encoded, rows: Sequence[NDArray[Any]]) -> tuple[Evaluation, ...]:
    """Score every run of the pack on its own rows; a run without rows is left out."""
    logits = predict(model, data, rows)
    present = [run_rows for run_rows in rows if len(run_rows)]
    return tuple(_score(task, found, data.labels[run_rows]) for found, run_rows in zip(logits, present, strict=True))


def beats(metric: str, new: EvaluationSummary, old: EvaluationSummary | None) -> bool:
    """Whether one evaluation is better than another, by a metric; of two equals neither is.

    A score that is not a number beats nothing. A collapsed run is worse than any other, whatever the scores: it ignores
    the texts, while a run with a negative correlation does not.
    """
    if not math.isfinite(new.scores[metric]):
        return False
    if old is None or new.collapsed is not old.collapsed:
        return old is None or old.collapsed
    sign = metrics.METRICS[metric].sign
    return sign * new.scores[metric] > sign * old.scores[metric]


def _score(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> Evaluation:
    targets = torch.from_numpy(task.type.loss_labels(task, labels))
    losses = task.type.losses(torch.from_numpy(logits)[None], targets[None])
    if task.scale is not None:  # fp32 could not hold large targets with a small spread
        logits = task.outside(logits.astype(np.float64))
    predictions = task.type.decode(logits)
    # argmax of NaN is 0, so predictions of a failed run are constant; that does not count as collapse.
    finite = bool(np.isfinite(logits).all())
    return Evaluation(
        scores=metrics.evaluate(task, predictions, labels) if finite else dict.fromkeys(task.metrics, math.nan),
        loss=float(losses.mean()),
        collapsed=finite and metrics.is_constant(predictions, task.scale),
        predictions=predictions,
        logits=logits,
    )


def _chunks(tokens: NDArray[Any], budget: int) -> list[tuple[int, int]]:
    """Cut rising token counts into stretches of at most `budget` tokens, at least one row each."""
    chunks, first, used = [], 0, 0
    for index, count in enumerate(tokens.tolist()):
        if index > first and used + count > budget:
            chunks.append((first, index))
            first, used = index, 0
        used += count
    return [*chunks, (first, len(tokens))]
