"""Every kind of hook, and all together: fused = transformers' modules = padded = plain torch, packed = alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.activations import ACT2FN

from equal_updates import EqualAdamW
from manytune.methods.adaptation import (
    Adaptation,
    Bottleneck,
    Hook,
    LowRank,
    ScaleInput,
    ScaleOutput,
    SharedLowRank,
    TrainBias,
    TrainGain,
    Weight,
)
from manytune.methods.projections import Projections
from manytune.models.loading import Backbone, load_backbone
from manytune.models.spec import ModelSpec
from manytune.packing import Member, PackedModel, build_layout
from manytune.packing.heads import initial_head
from manytune.packing.layer import PackedLayer
from tiny import make_tiny_of, random_rows

FAMILIES = ("bert", "roberta", "deberta-v2")
FUSED = ("bert", "roberta", "mpnet")
ROWS = random_rows(24, longest=20, seed=3)
STEPS, RATE = 30, 1e-2
LAYER = "encoder.layer.1"
FC2 = f"{LAYER}.output.dense"

Hooks = Callable[[ModelSpec], tuple[Hook, ...]]


def linear(spec: ModelSpec, word: str, layer: int = 1) -> str:
    (path,) = (p for p in spec.linears if f"encoder.layer.{layer}." in p and p.endswith(f".{spec.targets[word]}"))
    return path


def ia3(spec: ModelSpec) -> tuple[Hook, ...]:
    """IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638)."""
    hooks: list[Hook] = []
    for layer in (0, 1):
        hooks += [ScaleOutput(linear(spec, word, layer), 32, "ia3_l") for word in ("key", "value")]
        hooks.append(ScaleInput(f"encoder.layer.{layer}.output.dense", 64, "ia3_l"))
    return tuple(hooks)


def dora(spec: ModelSpec) -> tuple[Hook, ...]:
    """DoRA, with dropout and without, in both layers; one of them with a trained bias."""
    first = FC2.replace(".1.", ".0.")
    return (
        LowRank(linear(spec, "value", 0), 32, 32, rank=3, scale=2.0, dropout=0.2, magnitude=True),
        LowRank(first, 64, 32, rank=2, scale=0.5, magnitude=True),
        TrainBias(first, 32),
        LowRank(linear(spec, "query"), 32, 32, rank=3, scale=2.0, dropout=0.1, magnitude=True),
        LowRank(linear(spec, "key"), 32, 32, rank=3, scale=1.0, magnitude=True),
    )


def vera(spec: ModelSpec) -> tuple[Hook, ...]:
    """VeRA in layers of two shapes, with dropout and without."""
    shared = Projections(seed=5, rank=7, inputs=64, outputs=32)
    return (
        SharedLowRank(linear(spec, "value", 0), 32, 32, shared, dropout=0.2),
        SharedLowRank(linear(spec, "query"), 32, 32, shared, d_initial=0.3),
        SharedLowRank(FC2, 64, 32, shared),
    )


KINDS: Mapping[str, Hooks] = {
    "scale input": lambda spec: (ScaleInput(FC2, 64),),
    "scale output": lambda spec: (ScaleOutput(linear(spec, "value"), 32),),
    "bias": lambda spec: (TrainBias(FC2, 32), TrainBias("embeddings.LayerNorm", 32)),
    "gain": lambda spec: (TrainGain(f"{LAYER}.output.LayerNorm", 32),),
    "low rank": lambda spec: (LowRank(linear(spec, "query"), 32, 32, rank=3, scale=2.0, dropout=0.2),),
    "houlsby": lambda spec: tuple(
        Bottleneck(f"encoder.layer.{layer}.{path}", 32, 5)
        for layer in (0, 1)
        for path in ("attention.dropout" if spec.prefix == "mpnet" else "attention.output.dropout", "output.dropout")
    ),
    "behind the sub-layer": lambda spec: (Bottleneck(f"{LAYER}.output", 32, 4, "gelu"),),
    "pfeiffer": lambda spec: tuple(
        Bottleneck(f"encoder.layer.{layer}.output.LayerNorm", 32, 4, "gelu", renorms=True) for layer in (0, 1)
    ),
    "behind the layer": lambda spec: (Bottleneck(LAYER, 32, 4, "silu"),),
    "ia3": ia3,
    "dora": dora,
    "dora among others": lambda spec: (
        ScaleInput(FC2, 64),
        TrainBias(FC2, 32),
        LowRank(FC2, 64, 32, rank=2, scale=2.0, magnitude=True),
        ScaleOutput(FC2, 32),
    ),
    "vera": vera,
    "all at one layer": lambda spec: (
        ScaleInput(FC2, 64),
        TrainBias(FC2, 32),
        LowRank(FC2, 64, 32, rank=2, scale=2.0, dropout=0.1),
        ScaleOutput(FC2, 32),
        Bottleneck(FC2, 32, 4, "tanh"),
        TrainGain(f"{LAYER}.output.LayerNorm", 32),
        TrainBias(f"{LAYER}.output.LayerNorm", 32),
        Bottleneck(f"{LAYER}.output.LayerNorm", 32, 3),
    ),
}


class Lab:
    def __init__(self, root: Path) -> None:
        self.folder = cache(lambda family: make_tiny_of(root / family, family))
        self.backbone: Callable[[str], Backbone] = cache(lambda family: load_backbone(str(self.folder(family)), 2))

    def padded(self, family: str) -> Backbone:
        """The same backbone, through transformers' whole model in any case."""
        backbone = self.backbone(family)
        return replace(backbone, model_spec=replace(backbone.model_spec, padded=True))

    def theirs(self, family: str, seed: int) -> Any:
        """Transformers' own model with the head that our runs of `seed` start from."""
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder(family), num_labels=2, dtype=torch.float32
        )
        model.load_state_dict(initial_head(self.backbone(family).model_spec.head, seed), strict=False)
        return model.eval()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("hooks"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adaptation(spec: ModelSpec, kind: str, **changes: Any) -> Adaptation:
    return Adaptation(hooks=KINDS[kind](spec), head=tuple(spec.head.shapes()), **changes)


def pack(spec: ModelSpec, kind: str) -> list[Member]:
    """Two runs of a kind between others that train other things, and one after them."""
    own = adaptation(spec, kind)
    other = "low rank" if kind != "low rank" else "houlsby"
    others = [adaptation(spec, other), Adaptation(head=own.head), adaptation(spec, "bias")]
    return [Member(seed, each) for seed, each in enumerate([others[0], own, own, *others[1:]])]


def spread(model: PackedModel, members: Sequence[Member]) -> None:
    """Give each run tensors of its own, by its seed, far from what they start at."""
    for run, member in enumerate(members):
        draw = torch.Generator().manual_seed(member.seed)
        state = model.bank.state(run)
        model.bank.load(run, {name: t + 0.2 * torch.randn(t.shape, generator=draw) for name, t in state.items()})


@dataclass
class Passed:
    """What came of a forward and backward pass: logits [R, B, 2], and each run's gradients by name."""

    logits: Tensor
    grads: list[dict[str, Tensor]]


def passed(model: PackedModel, members: Sequence[Member], step: int | None, *, spoilt: int | None = None) -> Passed:
    spread(model, members)
    if spoilt is not None:
        for tensor in model.bank.of(spoilt):
            tensor.data(spoilt).fill_(float("nan"))
    rows = [(np.arange(5) + 3 * member.seed) % ROWS.size for member in members]
    logits = model.forward(build_layout(ROWS, rows), step=step)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    (logits * weights).sum().backward()
    grads = []
    for run in range(len(members)):
        own = [tensor for tensor in model.bank.of(run) if tensor.value.requires_grad]
        found = {t.name: t.value.grad[run - t.group.first] for t in own if t.value.grad is not None}
        assert found.keys() == {tensor.name for tensor in own}
        grads.append(found)
    return Passed(logits.detach(), grads)


def assert_same(first: Passed, second: Passed, runs: Sequence[int] | None = None) -> None:
    chosen = range(len(first.grads)) if runs is None else runs
    for run in chosen:
        torch.testing.assert_close(first.logits[run], second.logits[run], rtol=1e-5, atol=1e-5)
        assert first.grads[run].keys() == second.grads[run].keys()
        for name, grad in first.grads[run].items():
            torch.testing.assert_close(
                grad, second.grads[run][name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_before_the_first_step_a_run_is_the_base_model(lab: Lab, family: str, kind: str) -> None:
    backbone = lab.backbone(family)
    own = adaptation(backbone.model_spec, kind)
    rows = [np.arange(9)]
    base = PackedModel(backbone, [Member(1, Adaptation(head=own.head))]).forward(build_layout(ROWS, rows))
    model = PackedModel(backbone, [Member(1, own)])
    torch.testing.assert_close(model.forward(build_layout(ROWS, rows)), base, rtol=1e-6, atol=1e-6)
    expected = {f"{backbone.model_spec.prefix}.{name}" for hook in own.hooks for name in hook.names}
    assert {t.name for t in model.bank.of(0) if t.kind != "head"} == expected
    shapes = {n: t.shape for hook in own.hooks for n, t in zip(hook.names, hook.tensors, strict=True)}
    state = model.bank.state(0)
    for name, shape in shapes.items():
        assert state[f"{backbone.model_spec.prefix}.{name}"].shape == shape
    decays = {t.name: t.decays for t in model.bank.of(0)}
    for hook in own.hooks:
        for name, tensor in zip(hook.names, hook.tensors, strict=True):
            assert decays[f"{backbone.model_spec.prefix}.{name}"] is tensor.decays


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("step", [None, 4], ids=["no dropout", "dropout"])
def test_our_layers_equal_transformers_modules(lab: Lab, family: str, kind: str, step: int | None) -> None:
    backbone = lab.backbone(family)
    members = pack(backbone.model_spec, kind)
    ours, modules = (PackedModel(backbone, members, fused=fused) for fused in (True, False))
    assert_same(passed(ours, members, step), passed(modules, members, step))


def test_only_a_layer_with_an_unknown_hook_is_left_to_transformers_modules(lab: Lab) -> None:
    backbone = lab.backbone("bert")
    apart = {
        "behind the layer": [True, False],
        "all at one layer": [True, False],
        "behind the sub-layer": [True, False],
    }
    for kind in KINDS:
        fused = apart.get(kind, [True, True])
        model = PackedModel(backbone, [Member(0, adaptation(backbone.model_spec, kind))])
        assert [isinstance(layer, PackedLayer) for layer in model._passes._layers] == fused, kind


@pytest.mark.parametrize("family", FUSED)
def test_flat_equals_padded(lab: Lab, family: str, kind: str) -> None:
    members = pack(lab.backbone(family).model_spec, kind)
    flat, padded = (PackedModel(backbone, members) for backbone in (lab.backbone(family), lab.padded(family)))
    assert_same(passed(flat, members, None), passed(padded, members, None))


class Reference(nn.Module):
    """One module of transformers' with all that hooks may do to it, written down once more."""

    def __init__(self, module: Any, hooks: Sequence[Hook], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = module
        self.hooks = hooks
        self.own = nn.ParameterDict()
        for hook in hooks:
            for name, tensor in zip(hook.names, hook.tensors, strict=True):
                self.own[name.replace(".", "/")] = nn.Parameter(state[name].clone())
                if tensor.name in ("bias", "weight"):
                    delattr(module, tensor.name)

    def forward(self, *inputs: Tensor, **others: Any) -> Any:
        own = {name.replace("/", "."): tensor for name, tensor in self.own.items()}
        by_kind = {type(hook): [own[name] for name in hook.names] for hook in self.hooks}
        (x, *rest), (one,) = inputs, (torch.ones(()),)
        for kind, attribute in ((TrainBias, "bias"), (TrainGain, "weight")):
            if kind in by_kind:
                setattr(self.module, attribute, by_kind[kind][0])
        x = x * by_kind.get(ScaleInput, [one])[0]
        output = self.module(x, *rest, **others)
        y = output[0] if isinstance(output, tuple) else output
        for hook in self.hooks:
            if isinstance(hook, LowRank) and hook.magnitude:
                a, b, magnitude = by_kind[LowRank]
                weight = self.module.weight + hook.scale * b @ a
                y = F.linear(x, (magnitude / weight.detach().norm(dim=1))[:, None] * weight, self.module.bias)
            elif isinstance(hook, LowRank):
                a, b = by_kind[LowRank]
                y = y + F.linear(F.linear(x, a), b) * hook.scale
            elif isinstance(hook, SharedLowRank):
                lambda_b, lambda_d = by_kind[SharedLowRank]
                drawn = hook.projections.draw()
                a, b = torch.from_numpy(drawn[0][:, : hook.inputs]), torch.from_numpy(drawn[1][: hook.outputs])
                y = y + F.linear(x, lambda_b[:, None] * b @ (lambda_d[:, None] * a))
        y = y * by_kind.get(ScaleOutput, [one])[0]
        for hook in self.hooks:
            if isinstance(hook, Bottleneck):
                down, down_bias, up, up_bias = by_kind[Bottleneck]
                added = F.linear(ACT2FN[hook.activation](F.linear(y, down, down_bias)), up, up_bias)
                y = self.module(x + added) if hook.renorms else y + added
        return (y, *output[1:]) if isinstance(output, tuple) else y


def padded_rows(rows: np.ndarray) -> dict[str, Tensor]:
    spans = [(ROWS.offsets[row], ROWS.offsets[row + 1]) for row in rows]
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(ROWS.ids[a:b]) for a, b in spans], batch_first=True)
    lengths = torch.tensor([b - a for a, b in spans])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_plain_torch(lab: Lab, family: str, kind: str) -> None:
    backbone = lab.backbone(family)
    spec = backbone.model_spec
    members = pack(spec, kind)
    model = PackedModel(backbone, members)
    ours = passed(model, members, None)
    weights = torch.randn(ours.logits.shape, generator=torch.Generator().manual_seed(9))
    for run in (1, 2):
        state = model.bank.state(run)
        theirs = lab.theirs(family, 0)
        theirs.load_state_dict(state, strict=False)
        hooks = members[run].adaptation.hooks
        at: dict[str, list[Hook]] = {}
        for hook in hooks:
            at.setdefault(hook.path, []).append(hook)
        references = []
        for path in sorted(at, key=len, reverse=True):  # what lies inside another module first
            parent, _, child = path.rpartition(".")
            names = {name: state[f"{spec.prefix}.{name}"] for hook in at[path] for name in hook.names}
            new = Reference(theirs.base_model.get_submodule(path), at[path], names)
            if hasattr(new.module, "attention_type"):
                new.attention_type = new.module.attention_type
            setattr(theirs.base_model.get_submodule(parent), child, new)
            references.append(new)
        rows = (np.arange(5) + 3 * members[run].seed) % ROWS.size
        logits = theirs(**padded_rows(rows)).logits
        torch.testing.assert_close(ours.logits[run], logits, rtol=1e-5, atol=1e-5)
        (logits * weights[run]).sum().backward()
        seen = 0
        for reference in references:
            for name, tensor in reference.own.items():
                grad = ours.grads[run][f"{spec.prefix}.{name.replace('/', '.')}"]
                grad = grad.mT if grad.dim() == 2 else grad
                assert tensor.grad is not None
                torch.testing.assert_close(grad, tensor.grad, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
                assert tensor.grad.any()
                seen += 1
        assert seen == sum(len(hook.tensors) for hook in hooks) > 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", FUSED)
def test_scales_are_those_of_pefts_ia3(lab: Lab, family: str) -> None:
    backbone = lab.backbone(family)
    prefix = backbone.model_spec.prefix
    members = pack(backbone.model_spec, "ia3")
    model = PackedModel(backbone, members)
    ours = passed(model, members, None)
    state = model.bank.state(1)
    feedforward = [f"{prefix}.encoder.layer.{layer}.output.dense" for layer in (0, 1)]
    scaled = [backbone.model_spec.targets[word] for word in ("key", "value")]
    config = peft.IA3Config(target_modules=[*scaled, *feedforward], feedforward_modules=feedforward)
    base = lab.theirs(family, 0)
    base.load_state_dict(state, strict=False)
    theirs = peft.get_peft_model(base, config).eval()
    scales = {n: p for n, p in theirs.named_parameters() if "ia3_l" in n}
    assert len(scales) == 6
    own = {n: n.removeprefix("base_model.model.").replace(".ia3_l.default", ".ia3_l") for n in scales}
    with torch.no_grad():
        for name, parameter in scales.items():
            parameter.copy_(state[own[name]].view(parameter.shape))
    logits = theirs(**padded_rows((np.arange(5) + 3) % ROWS.size)).logits
    torch.testing.assert_close(ours.logits[1], logits, rtol=1e-5, atol=1e-5)
    (logits * torch.randn(ours.logits.shape, generator=torch.Generator().manual_seed(9))[1]).sum().backward()
    for name, parameter in scales.items():
        torch.testing.assert_close(ours.grads[1][own[name]], parameter.grad.flatten(), rtol=1e-4, atol=2e-5)


def train(backbone: Backbone, members: Sequence[Member]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Losses [R] of each step, and each run's last tensors; dropout on."""
    model = PackedModel(backbone, members)
    optimizer = EqualAdamW(model.bank, model.context.kernels, weight_decay=0.1, max_grad_norm=1.0)
    losses = []
    for step in range(STEPS):
        rows = [np.random.default_rng((member.seed, step)).permutation(ROWS.size)[:6] for member in members]
        logits = model.forward(build_layout(ROWS, rows), step=step)
        labels = torch.from_numpy(np.stack([ROWS.labels[own] for own in rows]))
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(len(members), -1).mean(1)
        each.sum().backward()
        losses.append(each.detach())
        optimizer.step([RATE / (1 + run.seed % 3) for run in members])
    return losses, [model.bank.state(run) for run in range(len(members))]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_a_run_comes_to_what_it_comes_to_alone(lab: Lab, family: str, kind: str) -> None:
    backbone = lab.backbone(family)
    members = pack(backbone.model_spec, kind)
    together, states = train(backbone, members)
    for run in (1, 2):
        alone, (state,) = train(backbone, [members[run]])
        np.testing.assert_allclose([losses[run] for losses in together], torch.cat(alone), rtol=1e-5)
        for name, tensor in state.items():
            assert (states[run][name] - tensor).abs().max() <= 0.02 * RATE, name
    assert len({float(losses[1]) for losses in together}) == STEPS
    assert not torch.equal(together[0][1], together[0][2])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_spoilt_neighbour_changes_nothing_and_runs_may_leave(lab: Lab, family: str, kind: str) -> None:
    backbone = lab.backbone(family)
    members = pack(backbone.model_spec, kind)
    clean = passed(PackedModel(backbone, members), members, 2)
    spoilt = passed(PackedModel(backbone, members), members, 2, spoilt=1)
    assert spoilt.logits[1].isnan().all()
    assert_same(clean, spoilt, [0, 2, 3, 4])
    for kept in ([0, 2, 4], [0, 3, 4]):  # one of the kind, or none, is left
        model = PackedModel(backbone, members)
        model.keep(kept)
        fewer = passed(model, [members[run] for run in kept], None)
        alone = passed(PackedModel(backbone, [members[0]]), [members[0]], None)
        torch.testing.assert_close(fewer.logits[0], alone.logits[0], rtol=1e-5, atol=1e-5)
        if 2 in kept:
            whole = passed(PackedModel(backbone, members), members, None)
            torch.testing.assert_close(fewer.logits[1], whole.logits[2], rtol=1e-5, atol=1e-5)


def test_a_layer_without_a_bias_gets_one(tmp_path: Path) -> None:
    """ModernBERT has no biases, neither in its linear layers nor in its norms."""
    backbone = load_backbone(str(make_tiny_of(tmp_path / "modernbert", "modernbert")), 2)
    spec = backbone.model_spec
    assert not spec.biases
    hooks = (TrainBias("layers.1.mlp.Wo", 32), TrainBias("layers.1.mlp_norm", 32), TrainGain("layers.1.mlp_norm", 32))
    own = Adaptation(hooks=hooks, head=tuple(spec.head.shapes()))
    members = [Member(0, Adaptation(head=own.head)), Member(1, own), Member(2, own)]
    fresh = PackedModel(backbone, members)
    assert not fresh.bank.state(1)["model.layers.1.mlp.Wo.bias"].any()
    flat = passed(fresh, members, None)
    padded = replace(backbone, model_spec=replace(spec, padded=True))
    assert_same(flat, passed(PackedModel(padded, members), members, None))
    assert all(flat.grads[1][f"model.{name}"].any() for hook in hooks for name in hook.names)


def test_in_bf16_hooks_are_trained_in_fp32(lab: Lab, kind: str) -> None:
    for family in FAMILIES:
        backbone = lab.backbone(family)
        members = pack(backbone.model_spec, kind)
        exact, low = (PackedModel(backbone, members, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
        assert {tensor.value.dtype for tensor in low.bank.tensors} == {torch.float32}
        a, b = passed(exact, members, 1), passed(low, members, 1)
        assert 0 < float((a.logits - b.logits).abs().max()) < 0.2 * float(a.logits.abs().max())


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ((ScaleInput(FC2, 32),), "ScaleInput is for a linear layer"),
        ((ScaleOutput(FC2, 64),), "ScaleOutput is for a linear layer"),
        ((LowRank(FC2, 32, 64, 2, 1.0),), "LowRank is for a linear layer"),
        ((ScaleInput(f"{LAYER}.output.LayerNorm", 32),), "is a LayerNorm"),
        ((TrainBias(FC2, 33),), "TrainBias is for a bias"),
        ((TrainGain(f"{LAYER}.output.dropout", 32),), "TrainGain is for a weight .* has nothing"),
        ((TrainBias(f"{LAYER}.output.dropout", 32),), "can stand on"),
        ((TrainBias(FC2, 32, "extra_bias"),), "can stand on"),
        ((Bottleneck("embeddings", 32, 2),), "can stand on"),
    ],
)
def test_a_hook_that_does_not_fit_is_refused(lab: Lab, hooks: tuple[Hook, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedModel(lab.backbone("bert"), [Member(0, Adaptation(hooks=hooks))])


def test_hooks_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"more than once: .*\.output\.dense\.scale"):
        Adaptation(hooks=(ScaleInput(FC2, 64, "scale"), ScaleOutput(FC2, 32, "scale")))
    with pytest.raises(ValueError, match="Bottleneck of"):
        Adaptation(hooks=(Bottleneck(FC2, 32, 2, name="a"), Bottleneck(FC2, 32, 2, name="b")))
    with pytest.raises(ValueError, match="own weights"):
        Adaptation(weights=(Weight("embeddings.LayerNorm.weight"),), hooks=(TrainBias(FC2, 32),))
