"""What every method promises, whichever it is; test modules hold methods to it by a class of their own.

A module that does so has a fixture `case`, a `Case` of each of its methods, and a subclass of `MethodContract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import joining
from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.splits import Encoded
from manytune.data.tasks import get_task
from manytune.methods import METHODS, Method, count_parameters, make_method
from manytune.methods.adaptation import Adaptation
from manytune.methods.registry import heads_of
from manytune.models.loading import Backbone, load_backbone
from manytune.models.spec import ModelSpec
from manytune.packing import BankTensor, Member, PackedModel, build_layout
from manytune.packing.heads import initial_head
from manytune.storage.record import HistoryRow
from manytune.training import snapshot
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import predict
from manytune.training.loop import PackData, train_pack
from plain_adapters import PlainBottleneck
from tiny import TINY_FAMILIES, make_tiny, random_rows

__all__ = ["EXAMPLES", "Case", "Example", "MethodContract", "cases"]


@dataclass(frozen=True)
class Example:
    """A configuration of a method, and what is known of it from elsewhere."""

    trains: Callable[[str], bool]
    """Whether the method trains the backbone tensor of this name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyper-parameters besides the learning rate and the head."""
    peft_config: Callable[[Any], peft.PeftConfig] | None = None
    """The same configuration for peft; None for a method that peft has no adapters for."""
    add: Callable[[nn.Module, Any], None] = lambda model, spec: None
    """Adds to transformers' model what peft cannot, as plain modules by the names of the snapshot."""
    of: str | None = None
    """The method, where the example's own name is another."""
    heads: tuple[str, ...] | None = None
    """What it trains of the head, of what the method may; None for all of that in turn."""


def add_houlsby(model: Any, spec: ModelSpec) -> None:
    """Networks of width 4 behind both sub-layers of each layer, by the names of the snapshot."""
    for path in (*spec.attention_ends, *spec.feed_forward_ends):
        module = model.base_model.get_submodule(path)
        module.add_module("adapter", PlainBottleneck(spec.hidden, 4, "silu"))
        module.register_forward_hook(lambda module, inputs, output: output + module.adapter(output))


EXAMPLES: dict[str, Example] = {
    "full": Example(lambda name: True),
    "bitfit": Example(lambda name: name.endswith(".bias")),
    "lora": Example(
        lambda name: ".lora_A." in name or ".lora_B." in name,
        {"rank": 4, "alpha": 12.0, "dropout": 0.1, "targets": ["query", "value"]},
        lambda method: peft.LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=[*method.targets]),
    ),
    "dora": Example(
        lambda name: ".lora_" in name,
        {"rank": 4, "alpha": 12.0, "dropout": 0.1, "targets": ["query", "output.dense"]},
        lambda method: peft.LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=["query", "output.dense"]),
        heads=("full",),
    ),
    "vera": Example(
        lambda name: ".vera_lambda_" in name,
        {"rank": 40, "dropout": 0.1, "targets": ["query", "output.dense"]},
        lambda method: peft.VeraConfig(r=40, target_modules=["query", "output.dense"]),
        heads=("full",),
    ),
    "head": Example(lambda name: False),
    "full, last layer": Example(
        lambda name: ".layer.1." in name or "pooler" in name,
        {"layers": "top 1", "layerwise_decay": 0.8, "head_learning_rate": 3e-2},
        of="full",
    ),
    "bitfit, small variant": Example(
        lambda name: name.endswith(("query.bias", "intermediate.dense.bias")),
        {"biases": "query-and-ffn"},
        of="bitfit",
        heads=("full",),
    ),
    "lora everywhere": Example(
        lambda name: ".lora_A." in name or ".lora_B." in name or name.endswith(".bias"),
        {"rank": 4, "targets": "all-linear", "scaling": "root-rank", "bias": "all", "b_learning_rate_ratio": 4.0},
        lambda method: peft.LoraConfig(
            r=4, use_rslora=True, target_modules="all-linear", exclude_modules=".*classifier.*", bias="all"
        ),
        of="lora",
        heads=("full",),
    ),
    "lora, B alone": Example(
        lambda name: ".lora_B." in name or (".layer.1." in name and name.endswith(("key.bias", "query.bias"))),
        {"rank": 4, "targets": ["query", "key"], "layers": "top 1", "init": "gaussian", "freeze_a": True}
        | {"bias": "lora", "dropout": 0.2},
        lambda method: peft.LoraConfig(
            r=4,
            target_modules=["query", "key"],
            layers_to_transform=[1],
            bias="lora_only",
            init_lora_weights="gaussian",
        ),
        of="lora",
        heads=("full",),
    ),
    "orthogonal lora": Example(
        lambda name: ".lora_A." in name or ".lora_B." in name,
        {"rank": 4, "init": "orthogonal"},
        lambda method: peft.LoraConfig(r=4, target_modules=["query", "value"]),
        of="lora",
        heads=("frozen",),
    ),
    "ia3": Example(
        lambda name: name.endswith(".ia3_l"),
        peft_config=lambda method: peft.IA3Config(
            target_modules=["key", "value", "0.output.dense", "1.output.dense"],
            feedforward_modules=["0.output.dense", "1.output.dense"],
        ),
        heads=("full",),
    ),
    "ln-tuning": Example(lambda name: "LayerNorm." in name, heads=("full",)),
    "adapter": Example(
        lambda name: ".adapter." in name,
        {"kind": "houlsby", "reduction_factor": 8},
        add=add_houlsby,
        heads=("full",),
    ),
}
"""Of every method in the table, and of settings that change what trains; a method's own test module adds its own."""
HEAD_PROMISES: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "bias": lambda name: name.endswith(".bias"),
    "frozen": lambda name: False,
}

SEED = 4
RATE = 1e-2
STEPS = 4
TASK = get_task("builtin-acceptability")
TRAINING = Training(batch_size=6, max_steps=STEPS, eval_every=STEPS, schedule="constant")


@dataclass(frozen=True)
class Case:
    """One example of a method with one head mode on one architecture."""

    name: str
    head: str
    family: str

    @property
    def example(self) -> Example:
        return EXAMPLES[self.name]

    def build(self) -> Method:
        settings = self.example.settings
        return make_method(self.example.of or self.name, learning_rate=RATE, head=self.head, **settings)


def cases(*names: str) -> Iterator[Any]:
    """One of each of these examples, head mode and architecture."""
    for name in names:
        example = EXAMPLES[name]
        for head in example.heads or heads_of(METHODS[example.of or name]):
            for family in TINY_FAMILIES:
                yield pytest.param(Case(name, head, family), id=f"{name}-{head}-{family}")


def equal_rows(count: int, length: int) -> Encoded:
    """Rows that need no padding."""
    long = random_rows(count * length, longest=1)
    offsets = np.arange(count + 1, dtype=np.int64) * length
    return Encoded(ids=long.ids, types=long.types, offsets=offsets, labels=long.labels[:count], truncated=0)


TRAIN = random_rows(20, longest=20)
SELECT = equal_rows(10, 12)


class Lab:
    """The backbones, and what came of training each case once."""

    def __init__(self, root: Path) -> None:
        self.folders = {family: make_tiny(root / family, family) for family in TINY_FAMILIES}
        self.backbone = cache(lambda family: load_backbone(str(self.folders[family]), TASK.num_outputs))
        self.neighbours = cache(lambda family: joining.neighbours(self.backbone(family)))
        self.trained = cache(lambda case: Trained(self.backbone(case.family), [(case.build(), SEED)]))

    def adaptation(self, case: Case) -> Adaptation:
        return case.build().adapt(self.backbone(case.family).model_spec)

    def fresh(self, case: Case) -> PackedModel:
        return PackedModel(self.backbone(case.family), [Member(SEED, self.adaptation(case))])

    def unpacked(self, case: Case) -> nn.Module:
        """The model by transformers alone, with the head that the run starts from."""
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folders[case.family], num_labels=TASK.num_outputs, dtype=torch.float32
        )
        head = initial_head(self.backbone(case.family).model_spec.head, SEED)
        assert not model.load_state_dict(head, strict=False).unexpected_keys
        return model.eval()  # type: ignore[no-any-return]

    def reference(self, case: Case) -> nn.Module:
        """The unpacked model, by peft where there are adapters, in which only what is promised trains."""
        model = self.unpacked(case)
        if case.example.peft_config is not None:
            model = peft.get_peft_model(model, case.example.peft_config(case.build()))
        spec = self.backbone(case.family).model_spec
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name, array in case.build().peft_shared(spec).items():
            buffers[f"base_model.{name}.default"].copy_(torch.from_numpy(array))
        case.example.add(model, spec)
        prefix = spec.prefix
        for name, parameter in model.named_parameters():
            own = shortened(name)
            promise = case.example.trains if own.startswith(f"{prefix}.") else HEAD_PROMISES[case.head]
            parameter.requires_grad_(promise(own))
        return model


class Trained(PackCallback):
    """A pack after a few steps, and what was seen on the way."""

    def __init__(self, backbone: Backbone, members: Sequence[tuple[Method, int]]) -> None:
        runs = [Run(f"run{i}", "tiny", TASK.name, method, seed) for i, (method, seed) in enumerate(members)]
        adaptations = [method.adapt(backbone.model_spec) for method, _ in members]
        self.model = PackedModel(backbone, [Member(run.seed, own) for run, own in zip(runs, adaptations, strict=True)])
        self.trains = [{t.name for t in self.model.bank.of(i) if t.value.requires_grad} for i in range(len(runs))]
        self.initial = [self.model.bank.state(i) for i in range(len(runs))]
        self.pretrained = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        self.losses: list[Sequence[float]] = []
        everything = (np.arange(TRAIN.size),) * len(runs), (np.arange(SELECT.size),) * len(runs)
        train_pack(self.model, runs, TASK, PackData(TRAIN, SELECT, *everything), TRAINING, self)
        self.pretrained_after = backbone.model.state_dict()

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.losses.append(losses)

    def on_evaluate(
        self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float] | None
    ) -> None:
        self.logits = predict(self.model, SELECT, [np.arange(SELECT.size)] * len(rows))
        self.final = [self.model.bank.state(run) for run in range(len(rows))]


def shortened(name: str) -> str:
    """A name of peft's as a bank has it."""
    return (
        name.removeprefix("base_model.model.")
        .replace(".base_layer.", ".")
        .replace(".default.", ".")
        .removesuffix(".default")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector")  # as peft writes it
    )


def unpadded(data: Encoded) -> Tensor:
    return torch.from_numpy(data.ids.reshape(data.size, -1))


def trained_numbers(tensors: Sequence[BankTensor], kind: str | None = None) -> int:
    return sum(
        tensor.data(0).numel() for tensor in tensors if tensor.value.requires_grad and kind in (None, tensor.kind)
    )


def leaves(output: Tensor) -> set[int]:
    """The ids of all parameters that a backward pass from `output` reaches."""
    found, seen, ahead = set(), set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        ahead += [following for following, _ in node.next_functions]
    return found


class MethodContract:
    @pytest.fixture(scope="class")
    @classmethod
    def lab(cls, tmp_path_factory: pytest.TempPathFactory) -> Lab:
        return Lab(tmp_path_factory.mktemp("backbones"))

    def test_exactly_the_promised_parameters_train(self, lab: Lab, case: Case) -> None:
        model = lab.fresh(case)
        held = model.bank.of(0)
        expected = {shortened(n) for n, p in lab.reference(case).named_parameters() if p.requires_grad}
        assert expected
        assert {tensor.name for tensor in held if tensor.value.requires_grad} == expected
        logits = model.forward(build_layout(TRAIN, [np.arange(4)]), step=0)
        assert leaves(logits) == {id(tensor.value) for tensor in held if tensor.value.requires_grad}

    def test_the_count_is_what_really_trains_and_what_transformers_and_peft_count(self, lab: Lab, case: Case) -> None:
        count = count_parameters(lab.backbone(case.family).model_spec, lab.adaptation(case))
        tensors = lab.fresh(case).bank.of(0)
        assert count.trainable == trained_numbers(tensors)
        parts = {kind: trained_numbers(tensors, kind) for kind in ("backbone", "bias", "adapter", "head")}
        assert parts == {kind: getattr(count, kind) for kind in parts}
        reference = lab.reference(case)
        if isinstance(reference, peft.PeftModel):
            assert (count.trainable, count.total) == reference.get_nb_trainable_parameters()
        else:
            assert count.trainable == reference.num_parameters(only_trainable=True)
            assert count.total == reference.num_parameters()

    def test_what_trains_moves_and_what_is_frozen_does_not_change_a_bit(self, lab: Lab, case: Case) -> None:
        trained = lab.trained(case)
        assert trained.pretrained.keys() == trained.pretrained_after.keys()
        assert len(trained.pretrained) > 30
        for name, tensor in trained.pretrained.items():
            assert torch.equal(tensor, trained.pretrained_after[name]), name
        (before,), (after,), (trains,) = trained.initial, trained.final, trained.trains
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            # Key biases too: their true gradient is zero, but Adam makes steps of its rounding.
            assert torch.equal(tensor, after[name]) is (name not in trains), name
        assert len({losses[0] for losses in trained.losses}) == STEPS

    def test_before_the_first_step_a_run_is_the_base_model(self, lab: Lab, case: Case) -> None:
        ours = predict(lab.fresh(case), SELECT, [np.arange(SELECT.size)])[0]
        with torch.no_grad():
            theirs = lab.unpacked(case)(input_ids=unpadded(SELECT)).logits
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

    def test_a_snapshot_predicts_what_the_run_predicted(self, lab: Lab, case: Case, tmp_path: Path) -> None:
        trained = lab.trained(case)
        snapshot.save(tmp_path / "best", trained.final[0], {"run_id": "run0"})
        state, facts = snapshot.load(tmp_path / "best")
        assert facts["run_id"] == "run0"
        # Under another seed, so that whatever the snapshot lacked would be drawn anew.
        model = snapshot.restore(lab.backbone(case.family), [Member(SEED + 1, lab.adaptation(case))], [state])
        assert np.array_equal(predict(model, SELECT, [np.arange(SELECT.size)])[0], trained.logits[0])

    def test_merged_into_plain_transformers_it_predicts_the_same(self, lab: Lab, case: Case) -> None:
        method, state = case.build(), lab.trained(case).final[0]
        model = lab.unpacked(case)
        tensors = model.state_dict()
        if "transformers" not in method.exports:
            with pytest.raises(RuntimeError, match="Unexpected key"):
                model.load_state_dict(tensors | dict(state))
            return
        base = model(input_ids=unpadded(SELECT)).logits.detach()
        model.load_state_dict(tensors | dict(method.merge(state, tensors, lab.backbone(case.family).model_spec)))
        merged = model(input_ids=unpadded(SELECT)).logits.detach()
        np.testing.assert_allclose(merged, lab.trained(case).logits[0], rtol=1e-5, atol=1e-5)
        assert float((merged - base).abs().max()) > 1e-3

    def test_the_reference_with_its_tensors_predicts_the_same(self, lab: Lab, case: Case) -> None:
        model, trained = lab.reference(case).eval(), lab.trained(case)
        own = {shortened(name): parameter for name, parameter in model.named_parameters()}
        assert set(trained.final[0]) <= set(own)
        for name, tensor in trained.final[0].items():
            # peft writes a vector as a matrix of one row or column.
            assert [size for size in own[name].shape if size > 1] == [size for size in tensor.shape if size > 1]
            own[name].data.copy_(tensor.reshape(own[name].shape))
        theirs = model(input_ids=unpadded(SELECT)).logits.detach()
        np.testing.assert_allclose(theirs, trained.logits[0], rtol=1e-5, atol=1e-5)

    def test_a_snapshot_has_the_names_of_transformers_and_peft(self, lab: Lab, case: Case) -> None:
        spec, state = lab.backbone(case.family).model_spec, lab.trained(case).final[0]
        reference = lab.reference(case)
        if not isinstance(reference, peft.PeftModel):
            assert set(state) <= set(reference.state_dict())
            return
        ours = {f"base_model.model.{name}" for name in case.build().peft_state(state, spec)}
        heads = {f"base_model.model.{name}" for name in spec.head.shapes()}
        ours |= {f"base_model.{name}" for name in case.build().peft_shared(spec)}
        assert ours - heads == set(peft.get_peft_model_state_dict(reference)) - heads

    def test_joining_a_pack_on_its_way_it_trains_as_alone(self, lab: Lab, case: Case) -> None:
        """And the runs that were there go on as they would without it."""
        backbone = lab.backbone(case.family)
        own = joining.entry_of(backbone, SEED, case.build(), batch_size=6, max_steps=STEPS, schedule="constant")
        (first, _), (other, _) = lab.neighbours(case.family)
        if own.member.adaptation.weights:
            with pytest.raises(ValueError, match="pack of one"):
                joining.train(backbone, [first], joining.Schedule({2: [own]}))
            return
        log, _ = joining.train(backbone, [first, other], joining.Schedule({2: [own]}))
        for each, losses in (*lab.neighbours(case.family), joining.with_losses(backbone, own)):
            assert len(losses) == each.training.max_steps
            np.testing.assert_allclose(log.losses[each.run.id], losses, rtol=1e-5)

    def test_packed_it_comes_to_what_it_comes_to_alone(self, lab: Lab, case: Case) -> None:
        backbone, method = lab.backbone(case.family), case.build()
        neighbours = (
            (make_method("bitfit", learning_rate=RATE), 1),
            (make_method("lora", rank=2, dropout=0.2, learning_rate=RATE), 2),
        )
        pack = [neighbours[0], (method, SEED + 5), (method, SEED), neighbours[1]]
        if lab.adaptation(case).weights:
            with pytest.raises(ValueError, match="pack of one"):
                Trained(backbone, pack)
            return
        alone, together = lab.trained(case), Trained(backbone, pack)
        own = [losses[2] for losses in together.losses]
        np.testing.assert_allclose(own, [losses[0] for losses in alone.losses], rtol=1e-5)
        assert own != [losses[1] for losses in together.losses]
        np.testing.assert_allclose(together.logits[2], alone.logits[0], rtol=1e-4, atol=1e-4)
