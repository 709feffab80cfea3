"""The runs of a study by transformers' Trainer and peft, one after the other: what manytune is compared with.

    python benchmarks/trainer_reference.py STUDY.yaml --out reference.jsonl

Same data, template, batch, schedule, weight decay and learning rates; dynamic padding, fused AdamW, and bf16
autocast wherever manytune would compute in bf16. Initialization, data order and dropout come from Trainer's own
seeding, so a seed means another draw than in manytune. One JSON line a run is appended as it ends, and runs that
are in the file already are left out: it can be stopped at any time. Seeds change slowest, so that what is there
covers every method as soon as possible.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from manytune.config import Study, Training
from manytune.config.plan import Run, evaluation_steps, plan_runs, steps_per_epoch, total_steps, warmup_steps
from manytune.data import metrics
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.methods.adaptation import LowRank
from manytune.models.loading import locate
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware

SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class Rows(Dataset[dict[str, Any]]):
    """Encoded rows, one at a time."""

    def __init__(self, data: Encoded) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        span = slice(self.data.offsets[index], self.data.offsets[index + 1])
        return {"input_ids": self.data.ids[span], "types": self.data.types[span], "label": self.data.labels[index]}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest row of the batch."""
    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "token_type_ids", "attention_mask")}
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["input_ids"][index, :length] = torch.from_numpy(row["input_ids"])
        batch["token_type_ids"][index, :length] = torch.from_numpy(row["types"])
        batch["attention_mask"][index, :length] = 1
    return {**batch, "labels": torch.from_numpy(np.stack([row["label"] for row in rows]))}


def build_model(run: Run, work: TaskWork) -> torch.nn.Module:
    """The model with exactly the run's tensors trainable."""
    model = AutoModelForSequenceClassification.from_pretrained(
        locate(run.model).path, num_labels=work.task.num_outputs, dtype=torch.float32
    )
    adaptation = work.adaptation(run)
    prefix = work.model_spec.prefix
    trained = {*adaptation.head, *(f"{prefix}.{name}" for name in adaptation.biases)}
    trained |= {f"{prefix}.{weight.name}" for weight in adaptation.weights}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    updates = [hook for hook in adaptation.hooks if isinstance(hook, LowRank)]
    if not updates:
        return model
    import peft

    config = peft.LoraConfig(
        r=updates[0].rank,
        lora_alpha=updates[0].scale * updates[0].rank,
        lora_dropout=updates[0].dropout,
        target_modules=[f"{prefix}.{update.path}" for update in updates],
    )
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("lora_" in name or name.removeprefix("base_model.model.") in trained)
    return wrapped


def arguments(run: Run, work: TaskWork, training: Training, folder: str) -> TrainingArguments:
    """Trainer's settings for the run."""
    total = total_steps(training, work.train.size)
    per_epoch = steps_per_epoch(work.train.size, training.batch_size, training.accumulate)
    bf16 = hardware.choose_dtype(training.precision, torch.device("cpu")) == torch.bfloat16
    return common_arguments(
        folder,
        run.seed,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=training.accumulate,
        max_steps=total,
        eval_strategy="steps",
        eval_steps=evaluation_steps(training, per_epoch, total)[0],
        learning_rate=run.method.learning_rate,
        lr_scheduler_type=SCHEDULERS[training.schedule],
        warmup_steps=warmup_steps(training, total),
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=True,
    )


def common_arguments(folder: str, seed: int, **own: Any) -> TrainingArguments:
    """What every use of Trainer here has in common: our rows, nothing saved, nothing logged."""
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )


def train(run: Run, work: TaskWork) -> dict[str, Any]:
    """Train one run and keep its scores at every evaluation."""
    task: Task = work.task
    history: list[dict[str, float]] = []
    evaluating = 0.0

    def score(prediction: EvalPrediction) -> dict[str, float]:
        predicted = task.type.decode(np.asarray(prediction.predictions, dtype=np.float32))
        scores = metrics.evaluate(task, predicted, np.asarray(prediction.label_ids))
        history.append({**scores, "collapsed": float(metrics.is_constant(predicted))})
        return scores

    class Timed(Trainer):
        """Trainer that keeps the time of evaluation apart."""

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal evaluating
            started = time.perf_counter()
            found = super().evaluate(*args, **kwargs)
            evaluating += time.perf_counter() - started
            return found

    set_seed(run.seed)
    model = build_model(run, work)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=model,
            args=arguments(run, work, work.study.training, folder),
            train_dataset=Rows(work.train),
            eval_dataset=Rows(work.dev),
            data_collator=collate,
            compute_metrics=score,
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started - evaluating
    samples = trainer.state.epoch * work.train.size
    best = max(history, key=lambda row: row[task.primary_metric])
    return {
        "run_id": run.id,
        "task": run.task,
        "label": run.label,
        "seed": run.seed,
        "best": best,
        "last": history[-1],
        "history": history,
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_seconds": seconds,
        "eval_seconds": evaluating,
        "samples_per_second": samples / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.sub=value, as for `manytune run`")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--most", type=int, help="stop after so many runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    study = Study.from_file(options.study, options.overrides)
    done = set()
    if options.out.exists():
        done = {json.loads(line)["run_id"] for line in options.out.read_text().splitlines()}
    waiting = sorted((run for run in plan_runs(study) if run.id not in done), key=lambda run: run.seed)
    works = {name: prepare(study, name) for name in {run.task for run in waiting}}
    facts = {
        "versions": {**hardware.versions(), "peft": __import__("peft").__version__},
        "hardware": hardware.describe(torch.device("cpu")),
        "load": os.getloadavg()[0],
    }
    for run in waiting[: options.most]:
        row = {**train(run, works[run.task]), **facts}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{run.id}: {row['best']}, {row['samples_per_second']:.0f} samples/s", flush=True)


if __name__ == "__main__":
    main()
