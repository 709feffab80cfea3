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
from manytune.utils import hardware

_TOKENS_PER_BATCH = {"cpu": 4096, "mps": 16384}
"""Tokens that go through the backbone at once: enough to fill the device; on a CPU few enough for its caches."""

_MOST_TOKENS, _LEAST_TOKENS = 65536, 1024
"""Likewise on a GPU, whose memory decides: the former fill any, with fewer than the latter none is busy."""

_SHARE_OF_MEMORY = 0.5
"""Part of a GPU's free memory that a batch may take, by a rough estimate."""


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
    ends = np.concatenate([[0], np.cumsum(longest * len(present))])
    budget, first, parts = _tokens_per_batch(model, int(longest[-1])), 0, []
    while first < len(longest):
        last = max(int(np.searchsorted(ends, ends[first] + budget, side="right")) - 1, first + 1)
        batch = [run_rows[first:last] for run_rows in sorted_rows]
        logits = _logits(model, data, batch, alone=last - first == 1)
        if logits is None:
            budget = int(ends[last] - ends[first]) // 2
            hardware.let_go_of_memory(model.device)
            continue
        parts.append(logits[present])
        first = last
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


def _logits(model: PackedModel, data: Encoded, batch: Sequence[NDArray[Any]], *, alone: bool) -> NDArray[Any] | None:
    """Logits of one batch; None where memory ran out, unless it is one row of each run, which cannot be cut."""
    try:
        layout = build_layout(data, batch, device=model.device, rounded=model.rounds_rows)
        return model.forward(layout).cpu().numpy()
    except Exception as error:
        if alone or not hardware.is_out_of_memory(error):
            raise
        return None


def most_tokens(device: str) -> int:
    """Tokens that go through the backbone at once in an evaluation on a type of device, if memory suffices."""
    return _TOKENS_PER_BATCH.get(device, _MOST_TOKENS)


def _tokens_per_batch(model: PackedModel, longest: int) -> int:
    """Tokens that go through the backbone at once; `longest` are those of the longest row."""
    if model.device.type != "cuda":
        return most_tokens(model.device.type)
    each = model.spec.evaluated_bytes(model.context.dtype.itemsize, longest)
    return _fitting(_SHARE_OF_MEMORY * hardware.free_memory(model.device) / each)


def _fitting(tokens: float) -> int:
    """The tokens of a batch where there is memory for `tokens`: halves of halves of `_MOST_TOKENS`.

    Few sizes, because another one may round differently: a little more or less of free memory changes no score.
    """
    halvings = math.ceil(math.log2(_MOST_TOKENS / min(max(tokens, _LEAST_TOKENS), _MOST_TOKENS)))
    return _MOST_TOKENS >> halvings
