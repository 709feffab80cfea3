"""The same losses as transformers' Trainer (with peft for LoRA) from the same start, dropout off, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.splits import Encoded, epoch_order
from manytune.data.tasks import Task, get_task
from manytune.methods import Method, make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.packing.heads import initial_head
from manytune.training.callbacks import PackCallback
from manytune.training.loop import PackData, train_pack
from tiny import FLAT_FAMILIES, make_small, make_tiny, random_rows

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

STEPS = 30
SEED = 4
ROWS = 50  # not a multiple of the batch: the partial last batch of an epoch counts
TRAINING = Training(
    batch_size=8,
    max_steps=STEPS,
    warmup_steps=5,
    weight_decay=0.1,
    adam_epsilon=1e-6,
    max_grad_norm=1.0,
    eval_every=30,
)
METHODS = {
    "full": make_method("full", learning_rate=1e-3),
    "bitfit": make_method("bitfit", learning_rate=1e-2),
    "bitfit, head biases": make_method("bitfit", learning_rate=1e-2, head="bias"),
    "lora": make_method("lora", rank=4, alpha=8.0, learning_rate=1e-2),
    "lora, frozen head": make_method("lora", rank=4, alpha=8.0, learning_rate=1e-2, head="frozen"),
    "head": make_method("head", learning_rate=1e-2),
}


class Losses(PackCallback):
    """A run's loss at every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.values += losses


class InOrder(Trainer):
    """Trainer over rows that already lie in the order of training."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


class LossLog(TrainerCallback):
    """Every logged loss, unrounded where Trainer lets us."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.values.append(float(logs["loss"]))


class Rows(Dataset[dict[str, Any]]):
    """The rows in the order in which our run sees them; the data loader tells it of a new epoch."""

    def __init__(self, data: Encoded) -> None:
        self.data = data
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order = epoch_order(ROWS, SEED, epoch)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.order[index]
        span = slice(self.data.offsets[row], self.data.offsets[row + 1])
        return {"input_ids": self.data.ids[span], "labels": self.data.labels[row]}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row["input_ids"])] = torch.from_numpy(row["input_ids"])
        mask[index, : len(row["input_ids"])] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.from_numpy(np.stack([row["labels"] for row in rows])),
    }


def theirs(
    folder: Path, backbone: Backbone, method: Method, task: Task, ours: PackedModel, data: Encoded
) -> list[float]:
    """Trainer's losses."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=task.num_outputs, dtype=torch.float32)
    model.load_state_dict(initial_head(backbone.model_spec.head, SEED), strict=False)
    trained = {tensor.name for tensor in ours.bank.of(0) if tensor.value.requires_grad}
    if method.method == "lora":
        targets = [backbone.model_spec.targets[word] for word in method.targets]
        config = peft.LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=targets, lora_dropout=0.0)
        model = peft.get_peft_model(model, config)
        for tensor in ours.bank.of(0):
            if tensor.kind == "adapter":
                path = tensor.name.replace(".weight", ".default.weight")
                model.get_parameter("base_model.model." + path).data.copy_(tensor.get(0))
        trained = {
            "base_model.model." + (name.replace(".weight", ".default.weight") if "lora_" in name else name)
            for name in trained
        }
    names = {name for name, _ in model.named_parameters()}
    assert trained <= names
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    log = LossLog()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=TRAINING.batch_size,
        max_steps=STEPS,
        warmup_steps=TRAINING.warmup_steps,
        learning_rate=method.learning_rate,
        weight_decay=TRAINING.weight_decay,
        adam_epsilon=TRAINING.adam_epsilon,
        max_grad_norm=TRAINING.max_grad_norm,
        lr_scheduler_type="linear",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=Rows(data), data_collator=collate, callbacks=[log])
    trainer.train()
    return log.values


def our_losses(model: PackedModel, method: Method, task: Task, data: Encoded) -> list[float]:
    everything = (np.arange(ROWS),)
    seen = Losses()
    run = Run("run", "tiny", task.name, method, SEED)
    train_pack(model, [run], task, PackData(data, data, everything, everything), TRAINING, seen)
    return seen.values


@pytest.mark.parametrize("family", FLAT_FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_losses_equal_trainers(family: str, name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    task = get_task("builtin-acceptability")
    folder = make_small(tmp_path / family, family, dropout=0.0)
    backbone = load_backbone(str(folder), task.num_outputs)
    data = random_rows(ROWS, outputs=2, seed=8)
    model = PackedModel(backbone, [Member(SEED, method.adapt(backbone.model_spec))])
    expected = theirs(folder, backbone, method, task, model, data)
    losses = our_losses(model, method, task, data)
    assert len(losses) == len(expected) == STEPS
    assert max(losses) - min(losses) > 0.01
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


def test_regression_losses_equal_trainers(tmp_path: Path) -> None:
    method = METHODS["lora"]
    task = get_task("builtin-similarity")
    folder = make_tiny(tmp_path / "bert", dropout=0.0)
    backbone = load_backbone(str(folder), task.num_outputs)
    data = random_rows(ROWS, outputs=1, seed=9)
    model = PackedModel(backbone, [Member(SEED, method.adapt(backbone.model_spec))])
    expected = theirs(folder, backbone, method, task, model, data)
    np.testing.assert_allclose(our_losses(model, method, task, data), expected, rtol=1e-4, atol=1e-4)
