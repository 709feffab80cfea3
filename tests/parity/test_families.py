"""Every family of the table, from a small random config: what all of them promise, and what the docs say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.splits import Encoded
from manytune.data.tasks import get_task
from manytune.inference import export
from manytune.inference.onnx import OnnxModel, write_onnx
from manytune.methods import Method, count_parameters, make_method
from manytune.models.families import FAMILIES, family_of
from manytune.models.loading import Backbone, load_backbone, load_classifier
from manytune.packing import Member, PackedModel, build_layout
from manytune.packing.bank import run_of_dump
from manytune.packing.heads import initial_head
from manytune.storage.record import HistoryRow
from manytune.training import snapshot
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import predict
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Outcome
from manytune.utils.errors import ModelError, StudyError
from plain_adapters import PlainBottleneck, add_adapters
from tiny import make_tiny_of, random_rows

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "modernbert, first token": ("modernbert", {"classifier_pooling": "cls", "norm_bias": True, "attention_bias": True}),
    "albert, two groups": ("albert", {"num_hidden_layers": 4, "num_hidden_groups": 2}),
    "deberta-v2, convolution": (
        "deberta-v2",
        {"conv_kernel_size": 3, "conv_act": "gelu", "share_att_key": False, "position_biased_input": True},
    ),
    # Architectures without a row.
    "ernie": ("ernie", {}),
    "roformer": ("roformer", {}),
}
"""Name of a tiny model → its family and what is special of it."""
OUTPUTS = (1, 2, 3)
STEPS = 4
ROWS = random_rows(12, longest=60, seed=5)
assert int(ROWS.lengths.max()) > 3 * 17  # beyond the 17 tokens that ModernBERT's window lets one see


class Zoo:
    """The tiny models, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.folder = cache(lambda name: make_tiny_of(root / name, VARIANTS[name][0], **VARIANTS[name][1]))
        self.backbone: Callable[[str, int], Backbone] = cache(
            lambda name, outputs: load_backbone(str(self.folder(name)), outputs)
        )

    def theirs(self, name: str, outputs: int, seed: int) -> Any:
        """Transformers' own model with the head that our runs of `seed` start from."""
        model = AutoModelForSequenceClassification.from_pretrained(
            self.folder(name), num_labels=outputs, dtype=torch.float32, ignore_mismatched_sizes=True
        )
        head = initial_head(self.backbone(name, outputs).model_spec.head, seed)
        assert not model.load_state_dict(head, strict=False).unexpected_keys
        return model.eval()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def padded(data: Encoded, rows: np.ndarray, pad: int | None, types: bool) -> dict[str, torch.Tensor]:
    lengths = data.lengths[rows]
    shape = (len(rows), int(lengths.max()))
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "token_type_ids", "attention_mask")}
    batch["input_ids"] += pad or 0
    for index, row in enumerate(rows):
        span = slice(data.offsets[row], data.offsets[row + 1])
        batch["input_ids"][index, : lengths[index]] = torch.from_numpy(data.ids[span])
        batch["token_type_ids"][index, : lengths[index]] = torch.from_numpy(data.types[span])
        batch["attention_mask"][index, : lengths[index]] = 1
    if not types:
        del batch["token_type_ids"]
    return batch


class Trained:
    """A pack that was trained for a few steps; one run's tensors may be spoilt before."""

    def __init__(
        self,
        backbone: Backbone,
        methods: Sequence[tuple[Method, int]],
        *,
        outputs: int = 2,
        spoilt: int | None = None,
        dtype: torch.dtype = torch.float32,
        steps: int = STEPS,
    ) -> None:
        task = get_task("builtin-acceptability" if outputs > 1 else "builtin-similarity")
        data = random_rows(12, longest=60, seed=5, outputs=outputs)
        runs = [Run(f"run{i}", "tiny", task.name, method, seed) for i, (method, seed) in enumerate(methods)]
        members = [Member(seed, method.adapt(backbone.model_spec)) for method, seed in methods]
        self.model = PackedModel(backbone, members, dtype=dtype)
        if spoilt is not None:
            for tensor in self.model.bank.of(spoilt):
                tensor.data(spoilt).fill_(float("nan"))
        self.losses: list[Sequence[float]] = []
        self.ended: list[Outcome] = []
        self.states: list[dict[str, torch.Tensor]] = []
        every = (np.arange(data.size),) * len(runs)
        training = Training(batch_size=5, max_steps=steps, eval_every=steps, warmup_steps=1, max_grad_norm=1.0)
        if outputs == 3:  # no built-in task has three classes, and what an evaluation scores is not asked here
            task = replace(task, labels=("a", "b", "c"))
        train_pack(self.model, runs, task, PackData(data, data, every, every), training, _Recorder(self))


class _Recorder(PackCallback):
    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.trained.losses.append(losses)

    def on_evaluate(
        self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float] | None
    ) -> None:
        self.trained.states = [self.trained.model.bank.state(run) for run in range(len(rows))]

    def on_run_trained(self, outcome: Outcome) -> None:
        self.trained.ended.append(outcome)


def mixed(backbone: Backbone) -> list[tuple[Method, int]]:
    """Ranks, rates and biases of one pack."""
    lora = [
        (make_method("lora", rank=rank, alpha=8.0, dropout=0.1, learning_rate=rate), seed)
        for rank, rate, seed in ((2, 1e-2, 0), (2, 3e-3, 1), (8, 1e-2, 0))
    ]
    other = "bitfit" if backbone.model_spec.biases else "head"
    return [*lora, (make_method(other, learning_rate=1e-2), 2)]


def test_logits_and_gradients_are_those_of_transformers(zoo: Zoo, name: str) -> None:
    backbone = zoo.backbone(name, 2)
    rows = np.arange(ROWS.size)
    data = random_rows(12, longest=60, seed=5, types=backbone.model_spec.token_types > 1)
    full = make_method("full", learning_rate=1.0).adapt(backbone.model_spec)
    model = PackedModel(backbone, [Member(3, full)])
    logits = model.forward(build_layout(data, [rows]))
    theirs = zoo.theirs(name, 2, seed=3)
    batch = padded(data, rows, theirs.config.pad_token_id, types=backbone.model_spec.token_types > 0)
    expected = theirs(**batch).logits
    torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-5)

    labels = torch.from_numpy(data.labels)
    torch.nn.functional.cross_entropy(logits[0], labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    wanted = dict(theirs.named_parameters())
    ours = {tensor.name: tensor.value.grad for tensor in model.bank.tensors}
    assert ours.keys() == wanted.keys()
    seen = 0
    for key, grad in ours.items():
        if wanted[key].grad is None:
            assert grad is None or not grad.to_dense().any(), key
            continue
        assert grad is not None, key
        own = grad.to_dense()
        own = own[0] if own.dim() > wanted[key].dim() else own
        torch.testing.assert_close(own, wanted[key].grad, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        seen += 1
    assert seen > 0.9 * len(wanted)


def test_packed_it_comes_to_what_it_comes_to_alone(zoo: Zoo, name: str) -> None:
    backbone = zoo.backbone(name, 2)
    methods = mixed(backbone)
    together = Trained(backbone, methods)
    assert len(together.losses) == STEPS
    for run, member in enumerate(methods):
        alone = Trained(backbone, [member])
        own = [losses[run] for losses in together.losses]
        np.testing.assert_allclose(own, [losses[0] for losses in alone.losses], rtol=1e-5)
        assert len(set(own)) == STEPS
    assert len(set(together.losses[-1])) == len(methods)  # at first, B is zero and equal seeds are equal runs


def test_dropout_is_on_and_is_keyed_by_the_runs_seed(zoo: Zoo, name: str) -> None:
    """Without this the agreement above could hold for the wrong reason."""
    backbone = zoo.backbone(name, 2)
    head = make_method("head", learning_rate=1.0).adapt(backbone.model_spec)
    rows = np.arange(5)
    model = PackedModel(backbone, [Member(seed, head) for seed in (1, 1, 2)])
    first, same, other = model.forward(build_layout(ROWS, [rows] * 3), step=0)
    torch.testing.assert_close(first, same, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(first, other, atol=1e-3)
    torch.manual_seed(1)  # the global generator has no say
    again = model.forward(build_layout(ROWS, [rows] * 3), step=0)[0]
    assert torch.equal(first, again)
    assert not torch.allclose(first, model.forward(build_layout(ROWS, [rows] * 3), step=1)[0], atol=1e-3)
    assert not torch.allclose(first, model.forward(build_layout(ROWS, [rows] * 3))[0], atol=1e-3)


def test_a_batch_in_parts_has_the_same_masks(zoo: Zoo, name: str) -> None:
    """Whatever it is padded to: the parts have other longest sequences."""
    backbone = zoo.backbone(name, 2)
    model = PackedModel(backbone, [Member(1, make_method("head", learning_rate=1.0).adapt(backbone.model_spec))])
    rows = np.argsort(ROWS.lengths)[-6:]
    whole = model.forward(build_layout(ROWS, [rows]), step=2)[0]
    parts = [model.forward(build_layout(ROWS, [rows[i : i + 2]], first_index=i), step=2)[0] for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_a_poisoned_neighbour_changes_nothing(zoo: Zoo, name: str) -> None:
    backbone = zoo.backbone(name, 2)
    methods = mixed(backbone)
    clean = Trained(backbone, methods)
    for spoilt in (0, 3):
        poisoned = Trained(backbone, methods, spoilt=spoilt)
        others = [run for run in range(len(methods)) if run != spoilt]
        assert np.isnan(poisoned.losses[0][spoilt])
        assert [len(losses) for losses in poisoned.losses] == [len(methods), *[len(others)] * (STEPS - 1)]
        for step in range(1, STEPS):  # the spoilt run has left
            expected = [clean.losses[step][run] for run in others]
            np.testing.assert_allclose(poisoned.losses[step], expected, rtol=1e-5)


def beside_lora() -> list[Method]:
    """Methods that train other things than low-rank updates, biases and whole weights."""
    return [
        make_method("ia3", learning_rate=3e-2),
        make_method("ln-tuning", learning_rate=1e-2),
        make_method("adapter", reduction_factor=8, learning_rate=1e-2),
        make_method("adapter", kind="houlsby", reduction_factor=5, activation="tanh", learning_rate=1e-2),
    ]


@torch.no_grad()
def test_other_methods_train_in_one_pack_and_round_trip(zoo: Zoo, name: str, tmp_path: Path) -> None:
    """As alone; from the snapshot; in transformers' model, merged or hooked; by peft, if it has the method."""
    backbone = zoo.backbone(name, 2)
    parts, rows = backbone.model_spec, np.arange(ROWS.size)
    methods = beside_lora()
    with torch.enable_grad():
        together = Trained(backbone, [(method, 6) for method in methods], steps=2)
    for run, method in enumerate(methods):
        with torch.enable_grad():
            alone = Trained(backbone, [(method, 6)], steps=2)
        np.testing.assert_allclose([losses[run] for losses in together.losses], np.ravel(alone.losses), rtol=1e-5)
        state, adaptation = together.states[run], method.adapt(parts)
        ours = predict(snapshot.restore(backbone, [Member(7, adaptation)], [state]), ROWS, [rows])[0]
        fresh = predict(PackedModel(backbone, [Member(6, adaptation)]), ROWS, [rows])[0]
        assert np.abs(ours - fresh).max() > 1e-3

        whole, _, _ = load_classifier(str(zoo.folder(name)), 2)
        export._take_over(whole, parts, method, state)
        found = export._logits(whole.eval(), ROWS, types=parts.token_types > 0)
        np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5)
        if "peft" not in method.exports:
            continue
        base, _, _ = load_classifier(str(zoo.folder(name)), 2)
        folder, task = tmp_path / method.method, get_task("builtin-acceptability")
        export._write_adapter(base, parts, method, state, folder, str(zoo.folder(name)), task)
        again = peft.AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, is_trainable=True, ignore_mismatched_sizes=True
        ).eval()
        np.testing.assert_allclose(export._logits(again, ROWS, types=parts.token_types > 0), ours, rtol=0, atol=1e-5)
        assert count_parameters(parts, adaptation).trainable == again.get_nb_trainable_parameters()[0]


def test_onnx_carries_what_cannot_be_merged(zoo: Zoo, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="manytune[onnx] is not installed")
    backbone, method = zoo.backbone("bert", 2), make_method("adapter", reduction_factor=8, learning_rate=1e-2)
    (state,) = Trained(backbone, [(method, 6)], steps=2).states
    whole, parts, _ = load_classifier(str(zoo.folder("bert")), 2)
    export._take_over(whole, parts, method, state)
    write_onnx(whole, ("input_ids", "attention_mask", "token_type_ids"), tmp_path)
    found = export._logits(OnnxModel(tmp_path, whole.config), ROWS, types=True)
    model = snapshot.restore(backbone, [Member(6, method.adapt(parts))], [state])
    np.testing.assert_allclose(found, predict(model, ROWS, [np.arange(ROWS.size)])[0], rtol=0, atol=1e-5)


REFERENCES = ("bert", "distilbert", "albert", "modernbert", "mpnet", "deberta-v2")
"""Families whose layers differ in where their sub-layers end."""


@pytest.mark.parametrize("kind", ["pfeiffer", "houlsby"])
@pytest.mark.parametrize("family", REFERENCES)
def test_adapters_are_those_of_the_papers(zoo: Zoo, family: str, kind: str) -> None:
    """Logits and gradients beside plain modules inside transformers' layers, from tensors far from zero."""
    backbone = zoo.backbone(family, 2)
    method = make_method("adapter", kind=kind, reduction_factor=4, learning_rate=1.0)
    model = PackedModel(backbone, [Member(3, method.adapt(backbone.model_spec))])
    draw = torch.Generator().manual_seed(1)
    model.bank.load(0, {n: t + 0.2 * torch.randn(t.shape, generator=draw) for n, t in model.bank.state(0).items()})
    theirs = zoo.theirs(family, 2, seed=3)
    activation = {"pfeiffer": "relu", "houlsby": "silu"}[kind]
    plain = add_adapters(theirs, family, kind, lambda: PlainBottleneck(32, 8, activation))
    state = model.bank.state(0)
    theirs.load_state_dict({name: tensor for name, tensor in state.items() if ".adapter." not in name}, strict=False)
    for path, network in plain.items():
        network.load_state_dict({name: state.pop(f"{path}.{name}") for name in network.state_dict()})
    assert not [name for name in state if ".adapter." in name]
    assert len(plain) == len(backbone.model_spec.layer_ends) * (1 if kind == "pfeiffer" else 2)

    rows = np.arange(ROWS.size)
    logits = model.forward(build_layout(ROWS, [rows]))[0]
    types = backbone.model_spec.token_types > 0
    expected = theirs(**padded(ROWS, rows, theirs.config.pad_token_id, types=types)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for each in (logits, expected):
        torch.nn.functional.cross_entropy(each, torch.from_numpy(ROWS.labels)).backward()
    grads = {tensor.name: tensor.value.grad for tensor in model.bank.tensors}
    for path, network in plain.items():
        for name, parameter in network.named_parameters():
            grad = grads[f"{path}.{name}"]
            assert grad is not None
            assert parameter.grad is not None
            own = grad[0].mT if parameter.dim() == 2 else grad[0]
            torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-6, msg=lambda m, p=path: f"{p}: {m}")


ROUND_TRIPS = ("full", "bitfit", "lora", "head")


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_round_trips(zoo: Zoo, name: str, outputs: int, tmp_path: Path) -> None:
    backbone = zoo.backbone(name, outputs)
    parts = backbone.model_spec
    rows = np.arange(ROWS.size)
    methods = {
        "full": make_method("full", learning_rate=1e-3),
        "bitfit": make_method("bitfit", learning_rate=1e-2),
        "lora": make_method("lora", rank=2, alpha=4.0, learning_rate=1e-2),
        "head": make_method("head", learning_rate=1e-2, head="bias"),
    }
    if not parts.biases:
        with pytest.raises(StudyError, match="this backbone has none"):
            methods.pop("bitfit").adapt(parts)
    for method_name, method in methods.items():
        (state,) = Trained(backbone, [(method, 6)], outputs=outputs, steps=2).states
        adaptation = method.adapt(parts)
        snapshot.save(tmp_path / method_name, state, {"method": method_name})
        loaded, _ = snapshot.load(tmp_path / method_name)
        ours = predict(snapshot.restore(backbone, [Member(7, adaptation)], [loaded]), ROWS, [rows])[0]
        assert ours.shape == (ROWS.size, outputs)
        fresh = predict(PackedModel(backbone, [Member(6, adaptation)]), ROWS, [rows])[0]
        assert np.abs(ours - fresh).max() > 1e-3  # what was trained is really there

        whole, _, _ = load_classifier(str(zoo.folder(name)), outputs)
        export._take_over(whole, parts, method, loaded)
        whole.save_pretrained(tmp_path / f"{method_name}-plain")
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{method_name}-plain").eval()
        found = export._logits(plain, ROWS, types=parts.token_types > 0)
        np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4 if "peft" in method.exports else 1e-5)
        if "peft" not in method.exports:
            continue
        base, _, _ = load_classifier(str(zoo.folder(name)), outputs)
        folder, task = tmp_path / f"{method_name}-adapter", get_task("builtin-acceptability")  # its type is what counts
        export._write_adapter(base, parts, method, loaded, folder, str(zoo.folder(name)), task)
        again = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=outputs).eval()
        adapted = export._logits(again, ROWS, types=parts.token_types > 0)
        np.testing.assert_allclose(adapted, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "head"])
def test_bf16(zoo: Zoo, name: str, method: str) -> None:
    backbone = zoo.backbone(name, 2)
    if method == "bitfit" and not backbone.model_spec.biases:
        pytest.skip("no biases")
    rank = {"rank": 2} if method == "lora" else {}
    built = make_method(method, learning_rate=1e-3, **rank)
    low, exact = (Trained(backbone, [(built, 3)], dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    np.testing.assert_allclose([*low.losses], [*exact.losses], rtol=0.05)
    assert (low.losses[0] != exact.losses[0]) is family_of(VARIANTS[name][0]).bf16
    assert all(tensor.value.dtype == torch.float32 for tensor in low.model.bank.tensors)


def test_a_pack_goes_on_from_what_was_dumped_and_runs_leave_it(zoo: Zoo, name: str) -> None:
    backbone = zoo.backbone(name, 2)
    members = [Member(seed, method.adapt(backbone.model_spec)) for method, seed in mixed(backbone)]
    model, other = PackedModel(backbone, members), PackedModel(backbone, [replace(m, seed=9) for m in members])
    for tensor in model.bank.tensors:
        tensor.value.detach().add_(0.1)
    rows = [np.arange(4) + run for run in range(4)]
    before = model.forward(build_layout(ROWS, rows)).detach()
    for run in range(4):
        other.bank.restore(run, run_of_dump(model.bank.dump(), run))
    assert torch.equal(other.forward(build_layout(ROWS, rows)).detach(), before)
    model.keep([0, 3])
    kept = model.forward(build_layout(ROWS, [rows[0], rows[3]])).detach()
    torch.testing.assert_close(kept, before[[0, 3]], rtol=1e-5, atol=1e-5)
    model.keep([1])
    torch.testing.assert_close(model.forward(build_layout(ROWS, [rows[3]])).detach(), before[[3]], rtol=1e-5, atol=1e-5)


def test_the_docs_say_of_every_family_what_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert list(rows) == list(FAMILIES)
    for name, family in FAMILIES.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        targets = ", ".join(f"`{target}`" for target in family.layers(("query", "value")))
        assert cells == [f"`{name}`", family.checkpoint, family.path, targets, "yes" if family.is_fused else "no"]


@pytest.mark.parametrize("family", ["fnet", "convbert", "nystromformer"])
def test_an_architecture_whose_rows_depend_on_their_padding_is_refused(family: str, tmp_path: Path) -> None:
    folder = make_tiny_of(tmp_path / family, family)
    with pytest.raises(ModelError, match=f"architecture {family}, whose predictions change with the padding"):
        load_backbone(str(folder), 2)
