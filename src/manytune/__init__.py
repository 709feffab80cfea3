"""Fine-tune one pretrained text encoder in many ways at once, and see which way is best.

>>> from manytune import Study, run_study
>>> result = run_study(Study.from_file("study.yaml"), "results")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from manytune.utils.version import __version__

if TYPE_CHECKING:
    from manytune.config import Study
    from manytune.inference.predictor import Prediction, Predictor, load
    from manytune.storage.record import RunRecord, RunState
    from manytune.study import StudyResult, run_study
    from manytune.tracking.progress import TerminalProgress
    from manytune.training.callbacks import Callback
    from manytune.utils.errors import ManytuneError

__all__ = [
    "Callback",
    "ManytuneError",
    "Prediction",
    "Predictor",
    "RunRecord",
    "RunState",
    "Study",
    "StudyResult",
    "TerminalProgress",
    "__version__",
    "load",
    "run_study",
]

_HOMES = {
    "Callback": "manytune.training.callbacks",
    "ManytuneError": "manytune.utils.errors",
    "Prediction": "manytune.inference.predictor",
    "Predictor": "manytune.inference.predictor",
    "RunRecord": "manytune.storage.record",
    "RunState": "manytune.storage.record",
    "Study": "manytune.config",
    "StudyResult": "manytune.study",
    "TerminalProgress": "manytune.tracking.progress",
    "load": "manytune.inference.predictor",
    "run_study": "manytune.study",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'manytune' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
