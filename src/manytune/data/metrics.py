"""Metrics, which direction of each is better, and when a prediction is constant.

The figures come from scikit-learn and scipy, imported at the first use: they take a second or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manytune.utils.errors import choices

if TYPE_CHECKING:
    from manytune.data.task_types import Scale
    from manytune.data.tasks import Task

Array = NDArray[Any]

# The same text in two batches gives outputs that differ by about 1e-6 in a fp32 encoder of 24 layers, as products round
# by the batch's shape. A spread of ten times that still says nothing of the texts.
_ROUNDING = 1e-5

_SMALL = 0.01  # a difference that hardly anybody would pay for

_SCIPY_NAMES = {"pearson": "pearsonr", "spearman": "spearmanr"}
"""Correlation → the function of scipy.stats."""


@dataclass(frozen=True)
class Metric:
    """A figure computed from predictions and labels."""

    name: str
    """The name in studies, records and CSV headers."""
    title: str
    """What tables and figures call it."""
    higher_is_better: bool
    """Which of two scores is the better one."""
    compute: Callable[[Array, Array], float]
    """`compute(predictions [N], labels [N])`: class indices, or numbers."""

    @property
    def sign(self) -> int:
        """1 where a higher score is the better one, else -1: times it, higher is always better."""
        return 1 if self.higher_is_better else -1


def is_constant(predictions: Array, scale: Scale | None = None) -> bool:
    """Say whether a model predicts the same thing for every row: one class, or one number.

    Predictions `[N]` are class indices (integers); or floats, which are constant if they differ by no more than
    rounding, and never constant if one is not finite. `scale` is the task's: the model computes and rounds on it.
    Without predictions it is a ValueError.
    """
    values = np.asarray(predictions)
    if values.size == 0:
        raise ValueError("no predictions: constant or not cannot be said of an empty array")
    if not np.issubdtype(values.dtype, np.floating):
        return bool((values == values.flat[0]).all())
    if not np.isfinite(values).all():  # a failure, which is another thing than a collapse
        return False
    low, high = float(values.min()), float(values.max())
    center, least = (0.0, 0.0) if scale is None else (scale.center, scale.spread)
    return high - low <= _ROUNDING * max(center - low, high - center, least)


def is_correlation(name: str) -> bool:
    """Whether a metric is a correlation, which is undefined for a constant prediction."""
    return name in _SCIPY_NAMES


def default_margin(name: str, constant: float | None) -> float | None:
    """How much worse counts as as good where a study does not say: 0.01, or 1 % of what a constant prediction scores.

    The first is of metrics whose best score is 1, the second of errors; None where the constant's error is not known.

    >>> default_margin("accuracy", 0.5), default_margin("rmse", 2.0)
    (0.01, 0.02)
    """
    if METRICS[name].higher_is_better:
        return _SMALL
    return None if constant is None else _SMALL * constant


def evaluate(task: Task, predictions: Array, labels: Array) -> dict[str, float]:
    """Compute all of the task's metrics, in the task's order, of predictions `[N]` and labels `[N]`.

    Numbers that are not finite score NaN. A constant prediction scores 0 in a correlation; `is_constant` tells it from
    an honest 0. Arrays that differ in shape, are empty or not one-dimensional, and unknown metrics, are ValueErrors.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or predictions.size == 0:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must both be [N], N at least 1")
    inside = predictions, labels
    if task.scale is not None and np.isfinite(predictions).all():
        # A correlation does not depend on the scale, but is less exact of large numbers with a small spread.
        scaled = task.inside(predictions.astype(np.float64))
        constant = is_constant(predictions, task.scale)
        inside = np.zeros_like(scaled) if constant else scaled, task.inside(labels.astype(np.float64))
    if unknown := [name for name in task.metrics if name not in METRICS]:
        raise ValueError(f"metric {choices(unknown[0], METRICS)}")
    return {
        name: METRICS[name].compute(*(inside if name in _SCIPY_NAMES else (predictions, labels)))
        for name in task.metrics
    }


def _matthews(predictions: Array, labels: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if is_constant(predictions):  # 0/0 by the formula; scikit-learn says 0 too, with a warning
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _accuracy(predictions: Array, labels: Array) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: Array, labels: Array, average: str) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average=average, zero_division=0.0))


def _correlation(predictions: Array, labels: Array, name: str) -> float:
    import scipy.stats

    predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    # Constant labels are the data's fault, and no figure is right for them; a constant prediction is
    # the model's, and tells nothing about the labels: 0.
    if not np.isfinite(predictions).all() or (labels == labels[0]).all():
        return math.nan
    if is_constant(predictions):
        return 0.0
    return float(getattr(scipy.stats, _SCIPY_NAMES[name])(predictions, labels).statistic)


def _mean_error(predictions: Array, labels: Array, *, squared: bool) -> float:
    errors = predictions.astype(np.float64) - labels.astype(np.float64)
    if not np.isfinite(errors).all():
        return math.nan
    return float(np.sqrt(np.mean(errors**2)) if squared else np.mean(np.abs(errors)))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("matthews_correlation", "MCC", True, _matthews),
            Metric("accuracy", "Accuracy", True, _accuracy),
            Metric("f1", "F1", True, partial(_f1, average="binary")),
            Metric("macro_f1", "Macro F1", True, partial(_f1, average="macro")),
            Metric("accuracy_mismatched", "Accuracy (mismatched)", True, _accuracy),
            Metric("pearson", "Pearson", True, partial(_correlation, name="pearson")),
            Metric("spearman", "Spearman", True, partial(_correlation, name="spearman")),
            Metric("rmse", "RMSE", False, partial(_mean_error, squared=True)),
            Metric("mae", "MAE", False, partial(_mean_error, squared=False)),
        )
    }
)
"""Every metric by its name; `f1` is class 1's among two, `macro_f1` averages over the classes present; the errors are
in the targets' own unit. `accuracy_mismatched` is the accuracy on MNLI's second dev split, of other genres."""
