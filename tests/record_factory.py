"""Records for the tests of whatever reads records."""

from __future__ import annotations

from typing import Any

from manytune.storage.record import RunRecord


def make_record(**facts: Any) -> RunRecord:
    """A finished LoRA run on CoLA, with `facts` in place of its own."""
    values = {
        "run_id": "cola-lora-r8-lr4e-4-s0-3fa92c",
        "study": "my-study",
        "task": "cola",
        "model": "minilm",
        "method": "lora",
        "label": "lora r=8, lr 4e-4",
        "seed": 0,
        "state": "finished",
        "primary_metric": "matthews_correlation",
        "best_score": 0.5,
        "last_score": 0.45,
        "scores": {"matthews_correlation": 0.5, "accuracy": 0.8},
        "last_scores": {"matthews_correlation": 0.45, "accuracy": 0.79},
    }
    return RunRecord.model_validate(values | facts)
