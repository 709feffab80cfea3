"""Predictions, losses and metrics for every run of a pack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from manytune.data import metrics
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.packing import PackedModel, build_layout

__all__ = ["Evaluation", "beats", "evaluate", "example_losses", "predict", "predictions_of"]

_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536, "mps": 16384}
"""Tokens that go through the backbone at once while evaluating: enough to fill the device, and little enough
that on a CPU the widest activation stays near the caches."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of one run found.

    Attributes:
        scores: Metric name → score, the primary one first; NaN where a logit is not a finite number.
        loss: Mean loss, without class weights; of scaled targets, on their scale.
        collapsed: The predictions are one constant.
        predictions: [N] class indices or numbers, in the rows' order.
        logits: [N, outputs] fp32, in the rows' order; of scaled targets fp64, in the targets' own unit; None where they
            were not kept.
    """

    scores: dict[str, float]
    loss: float
    collapsed: bool
    predictions: NDArray[Any]
    logits: NDArray[Any] | None = None


@torch.no_grad()
def predict(model: PackedModel, data: Encoded, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Logits [R, N, outputs] in fp32 of every run on its own N rows, in the rows' order.

    Rows go through the backbone sorted by length, without padding, all runs together.
    """
    runs, count = len(rows), len(rows[0])
    lengths = data.offsets[1:] - data.offsets[:-1]
    sorted_rows = [own[np.argsort(lengths[own], kind="stable")] for own in rows]
    longest = np.max([lengths[own] for own in sorted_rows], axis=0)
    budget = _TOKENS_PER_BATCH[model.device.type]
    logits: NDArray[Any] | None = None
    for first, last in _chunks(longest * runs, budget):
        layout = build_layout(data, [own[first:last] for own in sorted_rows], device=model.device)
        part = model.forward(layout).cpu().numpy()
        if logits is None:
            logits = np.empty((runs, count, part.shape[-1]), dtype=np.float32)
        logits[:, first:last] = part
    assert logits is not None
    restored = np.empty_like(logits)
    for run, own in enumerate(rows):
        restored[run, np.argsort(lengths[own], kind="stable")] = logits[run]
    return restored


def evaluate(model: PackedModel, task: Task, data: Encoded, rows: Sequence[NDArray[Any]]) -> tuple[Evaluation, ...]:
    """Score every run of the pack on its own rows."""
    logits = predict(model, data, rows)
    return tuple(_score(task, own, data.labels[at]) for own, at in zip(logits, rows, strict=True))


def beats(metric: str, new: Evaluation, old: Evaluation | None) -> bool:
    """Whether one evaluation is better than another, by a metric; of two equals neither is.

    A score that is no number beats nothing. Whatever it scores, a prediction that is one constant is worse than
    one that is not: its score says nothing of the texts, while a correlation below 0 is one.
    """
    if not math.isfinite(new.scores[metric]):
        return False
    if old is None or new.collapsed is not old.collapsed:
        return old is None or old.collapsed
    sign = 1 if metrics.METRICS[metric].higher_is_better else -1
    return sign * new.scores[metric] > sign * old.scores[metric]


def predictions_of(task: Task, logits: NDArray[Any]) -> NDArray[Any]:
    """Logits [N, outputs] → class indices [N], or numbers [N] for regression, in the unit of the logits."""
    return logits.argmax(-1) if task.kind == "classification" else logits[:, 0]


def example_losses(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of every example: cross-entropy, or the squared error for regression.

    Args:
        kind: `classification` or `regression`.
        logits: [R, B, outputs] fp32.
        labels: [R, B] int64 classes or fp32 targets.

    Returns:
        [R, B] fp32.
    """
    if kind == "regression":
        return (logits[..., 0] - labels).square()
    flat = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def _score(task: Task, logits: NDArray[Any], labels: NDArray[Any]) -> Evaluation:
    targets = torch.from_numpy(task.learned(labels))
    losses = example_losses(task.kind, torch.from_numpy(logits)[None], targets[None])
    if task.scale is not None:  # fp32 could not hold large targets with a small spread
        logits = task.outside(logits.astype(np.float64))
    predictions = predictions_of(task, logits)
    # The largest of logits that are NaN is the first one: a failure would pass for a collapse.
    finite = bool(np.isfinite(logits).all())
    unknown = dict.fromkeys(task.metrics, math.nan)
    return Evaluation(
        scores=metrics.evaluate(task, predictions, labels) if finite else unknown,
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
