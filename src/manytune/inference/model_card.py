"""The model card of an exported run, in the Hugging Face hub's format."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from manytune.config import MEANS, Study
from manytune.data.metrics import METRICS
from manytune.data.tasks import Task
from manytune.storage.record import RunRecord
from manytune.utils.text import markdown

_METRIC_TYPES = {"pearson": "pearsonr", "spearman": "spearmanr"}  # our name → the hub's, where they differ


def model_card(record: RunRecord, task: Task, study: Study, *, form: str, base: str, call: str, score: float) -> str:
    """The text of README.md: what it is, how it was trained, how it scores, how to use it."""
    dataset, config = task.hub or (task.name, task.name)
    scores = {**record.scores, task.primary_metric: score}
    data = ModelCardData(
        base_model=base.partition("@")[0],
        library_name=form,
        pipeline_tag=task.type.pipeline,
        tags=["manytune", record.method],
        language=task.language,
        datasets=[dataset] if task.hub else None,
        model_name=record.run_id,
        eval_results=[
            EvalResult(
                task_type=task.type.pipeline,
                dataset_type=dataset,
                dataset_name=task.title,
                dataset_config=config,
                dataset_split="validation",
                metric_type=_METRIC_TYPES.get(name, name),
                metric_name=METRICS[name].title,
                metric_value=round(value, 4),
            )
            for name, value in scores.items()
            if value is not None
        ],
    )
    columns = " and ".join(map(markdown, task.text_columns))
    settings = "\n".join(f"- {name}: {markdown(str(value))}" for name, value in _settings(record).items())
    spaced = (
        "\n\nIt was trained with special tokens set apart by spaces (manytune's template `spaced`); in the tokenizer's "
        "own form, the same text scores a little differently."
        if study.template == "spaced"
        else ""
    )
    chosen = "the dev set chose the snapshot, so these are optimistic" if record.selection == "dev" else "unbiased"
    lines = ", ".join(f"{METRICS[name].title} {value:.4f}" for name, value in scores.items() if value is not None)
    return f"""---
{data.to_yaml()}
---

# {markdown(record.run_id)}

{markdown(base)} fine-tuned on {markdown(task.title)} ({columns}) by {markdown(record.label)}, with manytune.

On dev, {lines} ({chosen}). Loaded again from these files, it gave the recorded logits.

## Use

```python
{call}
```{spaced}

{task.type.describe_outputs(task)}

## Training

{settings}
"""


def _settings(record: RunRecord) -> dict[str, object]:
    settings: dict[str, object] = {
        "seed": record.seed,
        "steps to the snapshot": record.best_step,
        **record.hyperparameters,
    }
    training = settings.pop("training", None)
    shared = training if isinstance(training, dict) else {}
    return settings | {name: value for name, value in shared.items() if value is not None and name not in MEANS}
