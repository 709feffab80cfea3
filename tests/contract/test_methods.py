"""What every method promises, whichever it is: each method in the table is held to all of it.

A new method needs an example configuration and a promise here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from manytune import config
from manytune.config import Method, Training, make_method
from manytune.config.plan import Run
from manytune.data.splits import Encoded
from manytune.data.tasks import get_task
from manytune.methods import METHODS, adapt, count_parameters
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Adaptation, BankTensor, Member, PackedModel, build_layout
from manytune.packing.heads import initial_head
from manytune.training import snapshot
from manytune.training.evaluation import predict
from manytune.training.loop import Outcome, PackData, train_pack
from tiny import TINY_FAMILIES, make_tiny, random_rows

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

EXAMPLES: dict[str, dict[str, Any]] = {
    "full": {},
    "bitfit": {},
    "lora": {"rank": 4, "alpha": 12.0, "dropout": 0.1, "targets": ["query", "value"]},
    "head": {},
}
PROMISES: dict[str, Callable[[str], bool]] = {
    "full": lambda name: True,
    "bitfit": lambda name: name.endswith(".bias"),
    "lora": lambda name: ".lora_A." in name or ".lora_B." in name,
    "head": lambda name: False,
}
"""Whether a method trains the backbone tensor of this name."""
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
    """One method with one head mode on one architecture."""

    method: str
    head: str
    family: str

    def build(self) -> Method:
        return make_method(self.method, learning_rate=RATE, head=self.head, **EXAMPLES[self.method])


def cases() -> Iterator[Any]:
    for name in METHODS:
        for head in get_args(config.METHODS[name].model_fields["head"].annotation):
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
        self.trained = cache(lambda case: Trained(self.backbone(case.family), [(case.build(), SEED)]))

    def adaptation(self, case: Case) -> Adaptation:
        return adapt(case.build(), self.backbone(case.family).model_spec)

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
        method = case.build()
        if method.method == "lora":
            model = peft.get_peft_model(model, peft_config(method))
        prefix = self.backbone(case.family).model_spec.prefix
        for name, parameter in model.named_parameters():
            own = shortened(name)
            promise = PROMISES[case.method] if own.startswith(f"{prefix}.") else HEAD_PROMISES[case.head]
            parameter.requires_grad_(promise(own))
        return model


class Trained:
    """A pack after a few steps, and what was seen on the way."""

    def __init__(self, backbone: Backbone, members: Sequence[tuple[Method, int]]) -> None:
        runs = [Run(f"run{i}", "tiny", TASK.name, method, seed) for i, (method, seed) in enumerate(members)]
        adaptations = [adapt(method, backbone.model_spec) for method, _ in members]
        self.model = PackedModel(backbone, [Member(run.seed, own) for run, own in zip(runs, adaptations, strict=True)])
        self.trains = [{t.name for t in self.model.bank.of(i) if t.value.requires_grad} for i in range(len(runs))]
        self.initial = [self.model.bank.state(i) for i in range(len(runs))]
        self.pretrained = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
        self.losses: list[Sequence[float]] = []
        everything = (np.arange(TRAIN.size),) * len(runs), (np.arange(SELECT.size),) * len(runs)
        train_pack(self.model, runs, TASK, PackData(TRAIN, SELECT, *everything), TRAINING, self)
        self.pretrained_after = backbone.model.state_dict()

    def step(self, step: int, losses: Sequence[float]) -> None:
        self.losses.append(losses)

    def evaluated(self, step: int, outcomes: Sequence[Outcome]) -> None:
        rows = [np.arange(SELECT.size)] * len(outcomes)
        self.logits = predict(self.model, SELECT, rows)
        self.final = [self.model.bank.state(run) for run in range(len(outcomes))]

    def ended(self, outcome: Outcome) -> None: ...


def shortened(name: str) -> str:
    """A name of peft's as a bank has it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")


def peft_config(method: Method) -> peft.LoraConfig:
    assert method.method == "lora"
    return peft.LoraConfig(r=method.rank, lora_alpha=method.alpha, target_modules=list(method.targets))


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


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


def test_every_method_has_an_example_and_a_promise() -> None:
    assert METHODS.keys() == config.METHODS.keys() == EXAMPLES.keys() == PROMISES.keys()
    modes = [get_args(config.METHODS[name].model_fields["head"].annotation) for name in METHODS]
    assert {mode for some in modes for mode in some} == HEAD_PROMISES.keys()
    assert all(modes)


def test_exactly_the_promised_parameters_train(lab: Lab, case: Case) -> None:
    model = lab.fresh(case)
    held = model.bank.of(0)
    expected = {shortened(n) for n, p in lab.reference(case).named_parameters() if p.requires_grad}
    assert expected
    assert {tensor.name for tensor in held if tensor.value.requires_grad} == expected
    logits = model.forward(build_layout(TRAIN, [np.arange(4)]), step=0)
    assert leaves(logits) == {id(tensor.value) for tensor in held if tensor.value.requires_grad}


def test_the_count_is_what_really_trains_and_what_transformers_and_peft_count(lab: Lab, case: Case) -> None:
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


def test_what_trains_moves_and_what_is_frozen_does_not_change_a_bit(lab: Lab, case: Case) -> None:
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


def test_before_the_first_step_a_run_is_the_base_model(lab: Lab, case: Case) -> None:
    ours = predict(lab.fresh(case), SELECT, [np.arange(SELECT.size)])[0]
    with torch.no_grad():
        theirs = lab.unpacked(case)(input_ids=unpadded(SELECT)).logits
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_snapshot_predicts_what_the_run_predicted(lab: Lab, case: Case, tmp_path: Path) -> None:
    trained = lab.trained(case)
    snapshot.save(tmp_path / "best", trained.final[0], {"run_id": "run0"})
    state, facts = snapshot.load(tmp_path / "best")
    assert facts["run_id"] == "run0"
    # Under another seed, so that whatever the snapshot lacked would be drawn anew.
    model = snapshot.restore(lab.backbone(case.family), lab.adaptation(case), state, seed=SEED + 1)
    assert np.array_equal(predict(model, SELECT, [np.arange(SELECT.size)])[0], trained.logits[0])


def test_merged_into_plain_transformers_it_predicts_the_same(lab: Lab, case: Case) -> None:
    trained, method = lab.trained(case), case.build()
    model = lab.unpacked(case)
    tensors = model.state_dict()
    for name, tensor in trained.final[0].items():
        path, is_update, _ = name.partition(".lora_A.weight")
        if is_update:
            assert method.method == "lora"
            update = trained.final[0][f"{path}.lora_B.weight"] @ tensor
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"] + method.alpha / method.rank * update
        elif ".lora_B." not in name:
            tensors[name] = tensor
    model.load_state_dict(tensors)
    with torch.no_grad():
        merged = model(input_ids=unpadded(SELECT)).logits
        base = lab.unpacked(case)(input_ids=unpadded(SELECT)).logits
    np.testing.assert_allclose(merged, trained.logits[0], rtol=1e-5, atol=1e-5)
    assert float((merged - base).abs().max()) > 1e-3


def test_names_are_those_of_transformers_and_peft(lab: Lab, case: Case) -> None:
    names = set(lab.trained(case).final[0])
    adapters = {name for name in names if ".lora_" in name}
    assert names - adapters <= set(lab.unpacked(case).state_dict())
    reference = lab.reference(case)
    theirs = peft.get_peft_model_state_dict(reference) if isinstance(reference, peft.PeftModel) else {}
    assert {f"base_model.model.{name}" for name in adapters} == set(theirs)
    assert {n: t.shape for n, t in theirs.items()} == {
        f"base_model.model.{n}": t.shape for n, t in lab.trained(case).final[0].items() if n in adapters
    }


def test_packed_it_comes_to_what_it_comes_to_alone(lab: Lab, case: Case) -> None:
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


def test_loras_a_waits_for_b(lab: Lab) -> None:
    """While B is zero, A has no gradient: after one step only B has moved."""
    model = lab.fresh(Case("lora", "full", "bert"))
    model.forward(build_layout(TRAIN, [np.arange(6)]), step=0).square().sum().backward()
    factors = [tensor for tensor in model.bank.of(0) if tensor.kind == "adapter"]
    assert len(factors) == 8
    for tensor in factors:
        grad = tensor.value.grad
        assert grad is not None
        assert bool(grad.any()) is (".lora_B." in tensor.name)
