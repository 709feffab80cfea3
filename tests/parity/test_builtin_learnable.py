"""An encoder can learn the built-in tasks; counting words gets nowhere there (tests/unit/test_builtin.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from manytune import Study, run_study


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
    (record,) = run_study(study, tmp_path / "out", device="cpu").records
    assert record.best_score is not None
    assert record.best_score >= least
