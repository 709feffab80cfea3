"""The same losses as transformers' Trainer (with peft for LoRA) from the same start, dropout off, in fp32."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
from plain_adapters import PlainBottleneck, add_adapters
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
    "ia3": make_method("ia3", learning_rate=1e-2),
    "ln-tuning": make_method("ln-tuning", learning_rate=1e-2),
    "ln-tuning, gains": make_method("ln-tuning", biases=False, learning_rate=1e-2),
    "adapter, pfeiffer": make_method("adapter", reduction_factor=4, learning_rate=1e-2),
    "adapter, houlsby": make_method("adapter", kind="houlsby", reduction_factor=4, learning_rate=1e-2),
}
GROUPS: dict[str, tuple[Method, dict[str, Any], Callable[[str], float]]] = {
    "full by layers": (
        make_method("full", learning_rate=1e-3, layerwise_decay=0.5, head_learning_rate=5e-3),
        {},
        lambda name: 5.0 if "classifier" in name else 0.5 ** (2 - layer_of(name)),
    ),
    "full, last layer": (
        make_method("full", learning_rate=1e-3, layers="top 1", reinit_top=1),
        {},
        lambda name: float("classifier" in name or layer_of(name) >= 1),
    ),
    "bitfit, small variant": (
        make_method("bitfit", learning_rate=1e-2, biases="query-and-ffn", head_learning_rate=1e-3),
        {},
        lambda name: (
            0.1 if "classifier" in name else float(name.endswith(("query.bias", "q.bias", "intermediate.dense.bias")))
        ),
    ),
    "lora+": (
        make_method("lora", rank=4, scaling="root-rank", b_learning_rate_ratio=16, learning_rate=1e-3, bias="lora"),
        {"use_rslora": True, "bias": "lora_only"},
        lambda name: 16.0 if "lora_B" in name else 1.0,
    ),
    "lora-fa, gaussian": (
        make_method("lora", rank=4, freeze_a=True, init="gaussian", layers="top 1", bias="all", learning_rate=1e-2),
        {"init_lora_weights": "gaussian", "layers_to_transform": [1], "bias": "all"},
        lambda name: 0.0 if "lora_A" in name else 1.0,
    ),
    "pissa": (
        make_method("lora", rank=4, alpha=2.0, init="pissa", targets="all-linear", learning_rate=1e-3),
        {"init_lora_weights": "pissa", "target_modules": "all-linear"},
        lambda name: 1.0,
    ),
    "olora": (
        make_method("lora", rank=4, alpha=2.0, init="olora", learning_rate=1e-3),
        {"init_lora_weights": "olora"},
        lambda name: 1.0,
    ),
    "orthogonal": (
        make_method("lora", rank=4, init="orthogonal", learning_rate=1e-3),
        {"init_lora_weights": "orthogonal"},
        lambda name: 1.0,
    ),
    "dora": (
        make_method("dora", rank=4, targets=["query", "output.dense"], bias="lora", learning_rate=1e-2),
        {"use_dora": True, "bias": "lora_only"},
        lambda name: 1.0,
    ),
    "vera": (
        make_method("vera", rank=40, targets=["query", "output.dense"], learning_rate=3e-2),
        {},
        lambda name: 1.0,
    ),
}
"""Method, peft's settings that differ from LoRA's default ones, and what multiplies the learning rate of transformers'
or peft's parameter of a name; 0: it does not train."""
DRAWN = ("gaussian", "orthogonal")
"""Initial values that a seed decides, of which peft has another; it makes the others itself, of the weights."""


def layer_of(name: str) -> int:
    """Of the two layers 0 and 1; the pooler stands above them, and everything else below."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    return int(found[1]) if found else 2 if "pooler" in name else -1


def training_of(method: Method) -> Training:
    """Trainer's weight decay would pull (IA)³'s factors towards 0, ours leaves them out: there it is off."""
    return TRAINING.model_copy(update={"weight_decay": 0.0}) if method.method == "ia3" else TRAINING


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
    if method.method == "ia3":
        config = method.peft_config(peft, backbone.model_spec)
        model = peft.get_peft_model(model, config)
        trained = {f"base_model.model.{name}" + ".default" * name.endswith(".ia3_l") for name in trained}
    if method.method == "adapter":
        width, activation = backbone.model_spec.hidden // 4, {"pfeiffer": "relu", "houlsby": "silu"}[method.kind]
        networks = add_adapters(
            model, backbone.family, method.kind, lambda: PlainBottleneck(backbone.model_spec.hidden, width, activation)
        )
        state = ours.bank.state(0)
        for path, network in networks.items():
            network.load_state_dict({name: state[f"{path}.{name}"] for name in network.state_dict()})
        own = {id(parameter) for network in networks.values() for parameter in network.parameters()}
        trained = {name for name in trained if ".adapter." not in name}
        trained |= {name for name, parameter in model.named_parameters() if id(parameter) in own}
    names = {name for name, _ in model.named_parameters()}
    assert trained <= names
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    log = LossLog()
    arguments = trainer_arguments(folder, method)
    trainer = InOrder(model=model, args=arguments, train_dataset=Rows(data), data_collator=collate, callbacks=[log])
    trainer.train()
    return log.values


def theirs_in_groups(folder: Path, name: str, task: Task, ours: PackedModel, data: Encoded) -> list[float]:
    """Trainer's losses with a learning rate of its own for each parameter, peft's adapters begun by peft itself."""
    method, settings, rate_of = GROUPS[name]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=task.num_outputs, dtype=torch.float32)
    model.load_state_dict(initial_head(ours.spec.head, SEED), strict=False)
    own = {tensor.name: tensor.get(0) for tensor in ours.bank.of(0)}
    targets = [ours.spec.targets.get(word, word) for word in getattr(method, "targets", ())]
    if method.method == "vera":
        model = peft.get_peft_model(model, peft.VeraConfig(r=method.rank, target_modules=targets, task_type="SEQ_CLS"))
        for key, factor in method.peft_shared(ours.spec).items():
            getattr(model.base_model, key)["default"].copy_(torch.from_numpy(factor))
        for path, parameter in model.named_parameters():
            if ".vera_" in path:
                assert torch.equal(parameter, own[path.removeprefix("base_model.model.").removesuffix(".default")])
    if method.method in ("lora", "dora"):
        shared = {"r": method.rank, "lora_alpha": method.alpha, "target_modules": targets, "task_type": "SEQ_CLS"}
        model = peft.get_peft_model(model, peft.LoraConfig(**{**shared, **settings}))
        drawn = method.init in ("kaiming", *DRAWN)
        for path, parameter in model.named_parameters():
            if ".lora_" in path:
                short = path.removeprefix("base_model.model.").replace(".default", "")
                known = own[short.replace("magnitude_vector.weight", "magnitude_vector")]
                if drawn and "magnitude" not in path:
                    parameter.data.copy_(known)
                torch.testing.assert_close(parameter.data, known, rtol=1e-5, atol=1e-6)
    for path, parameter in model.named_parameters():
        if path in own:  # what begins anew
            parameter.data.copy_(own[path])
    trained = {path: p for path, p in model.named_parameters() if p.requires_grad and rate_of(path) > 0}
    count = sum(parameter.numel() for parameter in trained.values())
    assert count == sum(tensor.data(0).numel() for tensor in ours.bank.of(0) if tensor.value.requires_grad)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in trained)
    log = LossLog()
    arguments = trainer_arguments(folder, method)
    trainer = InOrder(model=model, args=arguments, train_dataset=Rows(data), data_collator=collate, callbacks=[log])
    decaying = set(trainer.get_decay_parameter_names(model))
    groups = [
        {
            "params": [parameter],
            "lr": method.learning_rate * rate_of(path),
            "weight_decay": TRAINING.weight_decay if path in decaying and "magnitude" not in path else 0.0,
        }
        for path, parameter in trained.items()
    ]
    trainer.optimizer = torch.optim.AdamW(groups, eps=TRAINING.adam_epsilon)
    trainer.train()
    return log.values


def trainer_arguments(folder: Path, method: Method) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=TRAINING.batch_size,
        max_steps=STEPS,
        warmup_steps=TRAINING.warmup_steps,
        learning_rate=method.learning_rate,
        weight_decay=training_of(method).weight_decay,
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


def our_losses(model: PackedModel, method: Method, task: Task, data: Encoded) -> list[float]:
    everything = (np.arange(ROWS),)
    seen = Losses()
    run = Run("run", "tiny", task.name, method, SEED)
    train_pack(model, [run], task, PackData(data, data, everything, everything), training_of(method), seen)
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


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("name", GROUPS)
def test_losses_with_rates_of_their_own_equal_trainers(family: str, name: str, tmp_path: Path) -> None:
    task = get_task("builtin-acceptability")
    folder = make_small(tmp_path / family, family, dropout=0.0)
    backbone = load_backbone(str(folder), task.num_outputs)
    data = random_rows(ROWS, outputs=2, seed=8)
    method = GROUPS[name][0]
    model = PackedModel(backbone, [Member(SEED, method.adapt(backbone.model_spec))])
    expected = theirs_in_groups(folder, name, task, model, data)
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
