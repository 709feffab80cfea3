from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from manytune.config import Training
from manytune.config.plan import Run
from manytune.data.splits import Encoded, epoch_order
from manytune.data.tasks import get_task
from manytune.methods import Method, make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Layout, Member, PackedModel, build_layout, plan_batch
from manytune.packing.kernels.compiled import compiled_kernels
from manytune.packing.layout import Plan
from manytune.packing.transfer import put_all
from manytune.storage.record import HistoryRow, RunState
from manytune.training.callbacks import PackCallback
from manytune.training.evaluation import Evaluation
from manytune.training.loop import PackData, class_weights, train_pack
from manytune.training.outcome import Outcome
from manytune.training.step import RunBatch, forward_backward, plan_step
from tiny import make_tiny, random_rows

RATE = 1e-2
TASK = get_task("builtin-acceptability")
METRIC = TASK.primary_metric
DATA = random_rows(50, seed=5)
LORA = make_method("lora", rank=4, dropout=0.1, learning_rate=RATE)
BITFIT = make_method("bitfit", learning_rate=RATE)
HEAD = make_method("head", learning_rate=RATE)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(make_tiny(tmp_path_factory.mktemp("tiny") / "bert")), TASK.num_outputs)


class Recorder(PackCallback):
    """Keeps everything, and calls `at_step` after each step."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        self.at_step = at_step
        self.losses: list[list[float]] = []
        self.evaluations: list[tuple[int, list[str]]] = []
        self.bests: list[tuple[str, float] | None] = []
        self.ends: list[tuple[str, int]] = []

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        assert step == len(self.losses) + 1
        self.losses.append(list(losses))
        self.at_step(step)

    def on_evaluate(
        self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float] | None
    ) -> None:
        assert {row.step for row in rows.values()} == {step}
        self.evaluations.append((step, list(rows)))
        self.bests.append(best)

    def on_run_trained(self, outcome: Outcome) -> None:
        self.ends.append((outcome.run.id, outcome.steps))


class Pack:
    """A pack ready to train: each run is called after its seed."""

    def __init__(self, backbone: Backbone, members: Sequence[tuple[Method, int]], rows: int = 50) -> None:
        self.runs = [Run(f"seed{seed}", "tiny", TASK.name, method, seed) for method, seed in members]
        self.model = PackedModel(
            backbone, [Member(run.seed, run.method.adapt(backbone.model_spec)) for run in self.runs]
        )
        self.data = PackData(DATA, DATA, (np.arange(rows),) * len(self.runs), (np.arange(20),) * len(self.runs))
        self.recorder = Recorder()

    def train(self, **settings: Any) -> list[Outcome]:
        return train_pack(self.model, self.runs, TASK, self.data, Training(**settings), self.recorder)


def final(outcome: Outcome) -> dict[str, Tensor]:
    """The run's tensors at its end."""
    return outcome.last_state or outcome.best_state


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # A key bias has no true gradient: Adam makes steps of its rounding.
        if not name.endswith("key.bias"):
            difference = float((tensor - other[name]).abs().max())
            assert difference <= 0.02 * RATE, f"{name}: {difference}"


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]]:
    """Replaces evaluation by scores that are given for each run, by its seed.

    Returns, filled in while training, the state of every run at each evaluation.
    """

    def install(scores: Mapping[int, Sequence[float]]) -> list[dict[int, Any]]:
        states: list[dict[int, Any]] = []

        def scripted(model: PackedModel, *_: object) -> tuple[Evaluation, ...]:
            at = len(states)
            states.append({seed: model.bank.state(run) for run, seed in enumerate(model.seeds)})
            return tuple(
                Evaluation({METRIC: scores[seed][at]}, loss=0.5, collapsed=False, predictions=np.arange(2))
                for seed in model.seeds
            )

        monkeypatch.setattr("manytune.training.loop.evaluate", scripted)
        return states

    return install


@pytest.fixture
def seen_rows(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The rows of every run in each batch that is laid out for training."""
    seen: list[list[list[int]]] = []

    def plan(data: Encoded, rows: Sequence[np.ndarray], **options: Any) -> Plan:
        seen.append([own.tolist() for own in rows])
        return plan_batch(data, rows, **options)

    monkeypatch.setattr("manytune.training.step.plan_batch", plan)
    return seen


# The order of rows


def test_each_epoch_is_every_row_once_in_an_order_of_each_runs_own(
    backbone: Backbone, seen_rows: list[list[list[int]]]
) -> None:
    pack = Pack(backbone, [(HEAD, 1), (HEAD, 2)])
    own = (np.arange(3, 13), np.arange(20, 40, 2))
    pack.data = PackData(DATA, DATA, own, pack.data.select_rows)
    pack.train(batch_size=4, epochs=2)
    assert [len(batch[0]) for batch in seen_rows] == [4, 4, 2, 4, 4, 2]
    orders = []
    for run, rows in enumerate(own):
        for first in (0, 3):
            epoch = [row for batch in seen_rows[first : first + 3] for row in batch[run]]
            assert sorted(epoch) == rows.tolist()
            orders.append(tuple(np.searchsorted(rows, epoch)))
    assert len({*orders, tuple(range(10))}) == 5


# Micro-batches


@pytest.mark.parametrize("method", [make_method("full", learning_rate=RATE), LORA], ids=["full", "lora"])
def test_where_kernels_multiply_training_is_the_same_without_padding_rows(
    backbone: Backbone, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = compiled_kernels()
    if kernels is None:
        pytest.skip("no C++ compiler on this machine: there are no compiled kernels")
    ends, padding = [], []
    for multiplies in (False, True):
        monkeypatch.setattr(kernels, "multiplies", multiplies)
        pack = Pack(backbone, [(method, 0)], rows=24)
        forward, layouts = pack.model.forward, list[Layout]()

        def noted(layout: Layout, forward: Any = forward, seen: Any = layouts, **options: Any) -> Tensor:
            seen.append(layout)
            found: Tensor = forward(layout, **options)
            return found

        monkeypatch.setattr(pack.model, "forward", noted)
        (outcome,) = pack.train(epochs=1, batch_size=8, schedule="constant")
        ends.append(final(outcome))
        assert len(layouts) >= 4  # of three steps and of an evaluation
        padding.append([layout.rows - layout.tokens for layout in layouts])
    assert_close(*ends)
    assert any(padding[0])
    assert not any(padding[1])


def test_accumulated_micro_batches_equal_one_batch(backbone: Backbone, seen_rows: list[list[list[int]]]) -> None:
    members = [(LORA, 0), (LORA, 1), (BITFIT, 2)]
    whole, parts = Pack(backbone, members), Pack(backbone, members)
    settings = {"epochs": 2, "eval_every": 20}
    one = whole.train(batch_size=8, class_weights=[1.0, 3.0], **settings)
    assert len(seen_rows) == 14
    two = parts.train(batch_size=4, accumulate=2, class_weights=[1.0, 3.0], **settings)
    # The last step of an epoch has 2 rows: one micro-batch.
    assert [len(batch[0]) for batch in seen_rows[14:]] == [*[4] * 12, 2] * 2
    assert len(whole.recorder.losses) == len(parts.recorder.losses) == 14
    np.testing.assert_allclose(parts.recorder.losses, whole.recorder.losses, rtol=1e-5)
    for left, right in zip(one, two, strict=True):
        assert_close(final(left), final(right))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_micro_batch_counts_where_all_weights_train(backbone: Backbone, dtype: torch.dtype) -> None:
    member = Member(0, make_method("full", learning_rate=RATE).adapt(backbone.model_spec))

    def gradients(batch_size: int) -> dict[str, Tensor]:
        model = PackedModel(backbone, [member], dtype=dtype)
        plan = plan_step(model, TASK, DATA, [RunBatch(np.arange(12), batch_size, 0)])
        forward_backward(model, TASK, plan, put_all(plan.arrays, model.device))
        found = {tensor.name: tensor.grad for tensor in model.bank.tensors}
        return {name: grad.to_dense().float() for name, grad in found.items() if grad is not None}

    whole, parts = gradients(12), gradients(4)
    assert whole.keys() == parts.keys()
    for name, grad in whole.items():
        if not name.endswith("key.bias"):  # the true gradient is zero
            off = float((parts[name] - grad).norm() / grad.norm())
            assert off < (1e-5 if dtype == torch.float32 else 0.05), f"{name}: {off}"


# Class weights


@pytest.mark.parametrize("weights", ["balanced", [1.0, 3.0]])
def test_weighted_losses_are_torchs(backbone: Backbone, weights: str | list[float]) -> None:
    pack = Pack(backbone, [(LORA, 0), (HEAD, 1)])
    rows = (np.arange(0, 15), np.arange(15, 30))
    pack.data = PackData(DATA, DATA, rows, pack.data.select_rows)
    layout = build_layout(DATA, _first_batch(pack.runs, rows, 6))
    with torch.no_grad():
        logits = pack.model.forward(layout, step=0)
    expected = []
    for run, own in enumerate(_first_batch(pack.runs, rows, 6)):
        labels = DATA.labels[own]
        assert set(labels) == {0, 1}
        if weights == "balanced":
            chosen = compute_class_weight("balanced", classes=np.arange(2), y=DATA.labels[rows[run]])
            assert chosen[0] != chosen[1]
        else:
            chosen = np.array(weights)
        weight = torch.tensor(chosen, dtype=torch.float32)
        expected.append(float(F.cross_entropy(logits[run], torch.from_numpy(labels), weight=weight)))
        assert expected[-1] != pytest.approx(float(F.cross_entropy(logits[run], torch.from_numpy(labels))))
    pack.train(batch_size=6, max_steps=1, class_weights=weights)
    assert pack.recorder.losses == [pytest.approx(expected, rel=1e-6)]


def _first_batch(runs: Sequence[Run], rows: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    return [own[epoch_order(len(own), run.seed, 0)][:size] for run, own in zip(runs, rows, strict=True)]


def test_class_weights_of_each_runs_own_rows() -> None:
    rows = (np.flatnonzero(DATA.labels == 1)[:9], np.arange(50))
    rows = (np.concatenate([rows[0], np.flatnonzero(DATA.labels == 0)[:3]]), np.arange(12))
    data = PackData(DATA, DATA, rows, rows)
    balanced = class_weights(TASK, Training(class_weights="balanced"), data)
    assert balanced is not None
    assert balanced.dtype == np.float32
    for own, expected in zip(rows, balanced, strict=True):
        theirs = compute_class_weight("balanced", classes=np.arange(2), y=DATA.labels[own])
        np.testing.assert_allclose(expected, theirs, rtol=1e-6)
    np.testing.assert_allclose(balanced[0], [2.0, 2 / 3], rtol=1e-6)
    given = class_weights(TASK, Training(class_weights=[1.0, 3.0]), data)
    assert given is not None
    assert given.tolist() == [[1.0, 3.0], [1.0, 3.0]]


def test_a_class_without_rows_has_a_finite_weight() -> None:
    rows = (np.flatnonzero(DATA.labels == 1)[:4],)
    balanced = class_weights(TASK, Training(class_weights="balanced"), PackData(DATA, DATA, rows, rows))
    assert balanced is not None
    assert np.isfinite(balanced).all()


def test_without_classes_or_weights_there_are_none() -> None:
    rows = (np.arange(4),)
    data = PackData(DATA, DATA, rows, rows)
    assert class_weights(TASK, Training(), data) is None
    assert class_weights(get_task("stsb"), Training(class_weights="balanced"), data) is None


# Evaluations and history


def test_history_counts_a_partial_last_batch_as_it_is(backbone: Backbone) -> None:
    pack = Pack(backbone, [(HEAD, 1), (make_method("head", learning_rate=RATE / 2), 2)], rows=10)
    outcomes = pack.train(batch_size=4, epochs=2, eval_every=2, warmup_steps=2)
    assert [step for step, _ in pack.recorder.evaluations] == [2, 4, 6]
    for index, outcome in enumerate(outcomes):
        history = outcome.history
        assert [row.step for row in history] == [2, 4, 6]
        assert [row.samples_seen for row in history] == [8, 14, 20]
        assert [row.epoch for row in history] == pytest.approx([0.8, 1.4, 2.0])
        # The rates of the updates 1, 3 and 5 (from 0): half way up, then 3/4 and 1/4 of the way down to 0.
        shares = [0.5, 0.75, 0.25]
        assert [row.learning_rate for row in history] == pytest.approx([s * RATE / (1 + index) for s in shares])
        losses = [losses[index] for losses in pack.recorder.losses]
        means = [sum(losses[at : at + 2]) / 2 for at in (0, 2, 4)]
        assert [row.train_loss for row in history] == pytest.approx(means)
        assert all(row.metrics.keys() == set(TASK.metrics) for row in history)
        assert all(row.eval_loss is not None and row.eval_loss > 0 for row in history)
        assert outcome.steps == 6
        seconds = [row.seconds for row in history if row.seconds is not None]
        assert seconds == sorted(seconds)
        assert seconds[-1] >= sum(each.train_seconds + each.eval_seconds for each in outcomes)


def test_the_last_step_is_evaluated_though_it_is_none_of_the_others(backbone: Backbone) -> None:
    pack = Pack(backbone, [(HEAD, 1)], rows=10)
    (outcome,) = pack.train(batch_size=4, max_steps=5)
    assert [row.step for row in outcome.history] == [3, 5]
    assert [row.epoch for row in outcome.history] == pytest.approx([1.0, 1.8])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.5, 0.5, 0.3], 1),
        ([0.2, 0.1, 0.1, 0.2], 0),
        ([-0.5, -0.3, -0.4, -0.1], 3),
        ([np.nan, 0, 0, 0], 1),
    ],
)
def test_the_best_snapshot_is_that_of_the_best_evaluation_the_earlier_of_equals(
    backbone: Backbone,
    script: Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]],
    scores: list[float],
    best: int,
) -> None:
    states = script({7: [0.0, 1.0, 0.0, 0.0], 8: scores})
    pack = Pack(backbone, [(LORA, 7), (LORA, 8)])
    outcome = pack.train(batch_size=4, max_steps=8, eval_every=2, schedule="constant")[1]
    assert outcome.best_step == 2 * (best + 1)
    assert outcome.best is not None
    assert outcome.best.scores == {METRIC: scores[best]}
    assert outcome.last is not None
    assert outcome.last.scores == {METRIC: scores[-1]}
    assert_same(outcome.best_state, states[best][8])
    if best == 3:
        assert outcome.last_state == {}
    else:
        assert_same(outcome.last_state, states[3][8])
        assert any(not torch.equal(t, outcome.best_state[name]) for name, t in outcome.last_state.items())
    assert outcome.state is RunState.FINISHED


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_best_score_so_far_may_be_of_a_run_that_has_left(
    backbone: Backbone, script: Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]]
) -> None:
    script({1: [0.9, 0.1], 2: [0.2, 0.3, 0.4, 0.5]})
    pack = Pack(backbone, [(HEAD, 1), (HEAD, 2)])
    pack.train(batch_size=4, max_steps=8, eval_every=2, early_stopping=1)
    assert [runs for _, runs in pack.recorder.evaluations] == [["seed1", "seed2"]] * 2 + [["seed2"]] * 2
    assert pack.recorder.bests == [("seed1", 0.9)] * 4


# How a run ends


def test_a_run_that_stops_early_leaves_and_the_others_go_on_unchanged(
    backbone: Backbone, script: Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]]
) -> None:
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    # Two evaluations in a row without improvement end a run; an equal score is none.
    scores = {0: [0.2, 0.1, 0.2, 0.9, 0.9, 0.9], 1: [0.1, 0.3, 0.2, 0.4, 0.4, 0.5], 2: rising, 3: rising}
    # Rates, rows and class weights are each run's own, so that a mix-up of the runs that stay would show.
    members = [
        (LORA, 0),
        (LORA, 1),
        (BITFIT, 2),
        (make_method("bitfit", learning_rate=RATE / 3), 3),
    ]
    settings = {"batch_size": 4, "max_steps": 12, "eval_every": 2, "class_weights": "balanced"}
    packs = []
    for patience in (2, None):
        script(scores)
        pack = Pack(backbone, members)
        rows = tuple(np.arange(5 * run, 5 * run + 30) for run in range(4))
        pack.data = PackData(DATA, DATA, rows, rows)
        packs.append((pack, pack.train(early_stopping=patience, **settings)))
    (pack, stopped), (reference, whole) = packs

    assert [outcome.steps for outcome in stopped] == [6, 12, 12, 12]
    assert [outcome.best_step for outcome in stopped] == [2, 12, 12, 12]
    assert [len(outcome.history) for outcome in stopped] == [3, 6, 6, 6]
    assert all(outcome.state is RunState.FINISHED for outcome in stopped)
    assert pack.recorder.ends == [("seed0", 6), ("seed1", 12), ("seed2", 12), ("seed3", 12)]
    everyone = ["seed0", "seed1", "seed2", "seed3"]
    assert pack.recorder.evaluations[2:4] == [(6, everyone), (8, everyone[1:])]
    assert [len(losses) for losses in pack.recorder.losses] == [4] * 6 + [3] * 6
    remaining = [losses[-3:] for losses in pack.recorder.losses]
    np.testing.assert_allclose(remaining, [losses[1:] for losses in reference.recorder.losses], rtol=1e-5)
    for index in (1, 2, 3):
        assert_close(final(stopped[index]), final(whole[index]))
    assert pack.model.seeds == []


def test_training_ends_when_no_run_is_left(
    backbone: Backbone, script: Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]]
) -> None:
    script({0: [0.5, 0.4, 0.3], 1: [0.5, 0.4, 0.3]})
    pack = Pack(backbone, [(HEAD, 0), (HEAD, 1)])
    outcomes = pack.train(batch_size=4, max_steps=40, eval_every=1, early_stopping=1)
    assert [outcome.steps for outcome in outcomes] == [2, 2]
    assert len(pack.recorder.losses) == 2


def test_a_loss_that_is_no_number_fails_the_run_with_its_step_and_advice(backbone: Backbone) -> None:
    members = [(LORA, 0), (LORA, 1), (BITFIT, 2)]
    clean, spoilt = Pack(backbone, members), Pack(backbone, members)

    def poison(step: int) -> None:
        if step == 4:
            for tensor in spoilt.model.bank.of(1):
                tensor.data(1).fill_(float("nan"))

    spoilt.recorder.at_step = poison
    settings = {"batch_size": 4, "max_steps": 8, "eval_every": 3}
    expected, outcomes = clean.train(**settings), spoilt.train(**settings)
    failed = outcomes[1]
    assert failed.state is RunState.FAILED
    assert failed.failure is not None
    assert "nan at step 5." in failed.failure
    for advice in ("learning rate", "0.01", "warm-up", "max_grad_norm"):
        assert advice in failed.failure
    assert spoilt.recorder.ends[0] == ("seed1", 5)
    assert failed.steps == 5
    # What it had found before stays.
    assert failed.best_step == 3
    assert all(tensor.isfinite().all() for tensor in failed.best_state.values())
    for index in (0, 2):
        assert outcomes[index].state is not RunState.FAILED
        assert outcomes[index].steps == 8
        assert_close(final(outcomes[index]), final(expected[index]))


def test_a_run_whose_scores_are_no_numbers_has_failed(
    backbone: Backbone, script: Callable[[Mapping[int, Sequence[float]]], list[dict[int, Any]]]
) -> None:
    script({0: [float("nan")] * 2})
    (outcome,) = Pack(backbone, [(HEAD, 0)]).train(batch_size=4, max_steps=2, eval_every=1)
    assert outcome.state is RunState.FAILED
    assert outcome.failure == "No evaluation gave a score that is a number."
    assert outcome.best_state == {}
    assert [row.metrics for row in outcome.history] == [{METRIC: None}] * 2


def test_a_run_that_breaks_in_its_last_update_has_not_collapsed(backbone: Backbone) -> None:
    """Its loss was a number still; the logits of its evaluation are not."""
    pack = Pack(backbone, [(HEAD, 0)])

    def poison(step: int) -> None:
        for tensor in pack.model.bank.of(0):
            tensor.data(0).fill_(float("nan"))

    pack.recorder.at_step = poison
    (outcome,) = pack.train(batch_size=4, max_steps=1)
    assert outcome.state is RunState.FAILED


def test_whether_a_run_collapsed_is_not_settled_while_it_trains(backbone: Backbone) -> None:
    """Its snapshot's last score settles it, on dev and in fp32."""
    pack = Pack(backbone, [(make_method("head", learning_rate=1e-9, head="bias"), 0)])
    for tensor in pack.model.bank.of(0):
        tensor.data(0).zero_()
    (outcome,) = pack.train(batch_size=4, max_steps=2)
    assert outcome.best is not None
    assert outcome.best.collapsed
    assert outcome.state is RunState.FINISHED


def test_an_evaluation_that_is_not_constant_is_better_than_a_constant_one() -> None:
    constant = Evaluation({METRIC: 0.0}, loss=0.5, collapsed=True, predictions=np.zeros(2))
    outcome = Outcome(Run("run", "tiny", TASK.name, HEAD, 0), best=constant)
    outcome.last = Evaluation({METRIC: -0.3}, loss=0.9, collapsed=False, predictions=np.arange(2))
    assert outcome.improved(METRIC)
    outcome.best, outcome.last = outcome.last, constant
    assert not outcome.improved(METRIC)
    assert not outcome.exhausted(2)
    assert outcome.exhausted(1)


def test_a_callback_is_called_at_every_step_and_every_end(backbone: Backbone) -> None:
    pack = Pack(backbone, [(HEAD, 0), (HEAD, 1)])
    outcomes = pack.train(batch_size=4, max_steps=3)
    assert [len(losses) for losses in pack.recorder.losses] == [2, 2, 2]
    assert pack.recorder.ends == [("seed0", 3), ("seed1", 3)]
    assert [outcome.run for outcome in outcomes] == pack.runs
