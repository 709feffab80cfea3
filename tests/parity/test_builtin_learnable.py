"""An encoder can learn the built-in tasks; counting words gets nowhere there (tests/unit/test_builtin.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from manytune import Callback, Study, run_study
from manytune.training.callbacks import Best
from manytune.utils.errors import ManytuneError


class LearnedError(ManytuneError):
    """What was to be shown has been shown."""


class EndWhenLearned(Callback):
    """Ends the study once its best score is high enough: further epochs could only raise it."""

    def __init__(self, least: float) -> None:
        self.least = least

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, object], best: Best) -> None:
        if best is not None and best[1] >= self.least:
            raise LearnedError


@pytest.mark.usefixtures("minilm_dir")
@pytest.mark.parametrize(
    ("task", "epochs", "least"), [("builtin-acceptability", 4, 0.5), ("builtin-similarity", 5, 0.4)]
)
def test_full_fine_tuning_of_minilm_learns_it(task: str, epochs: int, least: float, tmp_path: Path) -> None:
    study = Study.from_dict(
        {
            "name": "learnable",
            "model": "minilm",
            "tasks": [task],
            "seeds": [0],
            "training": {"epochs": epochs, "warmup_ratio": 0.1, "max_length": 64},
            "methods": [{"method": "full", "learning_rate": 1e-4}],
        }
    )
    with pytest.raises(LearnedError):
        run_study(study, tmp_path / "out", device="cpu", callbacks=[EndWhenLearned(least)])
