from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import matthews_corrcoef

from manytune.data import metrics
from manytune.data.splits import Encoded
from manytune.data.tasks import Task, get_task
from manytune.methods import make_method
from manytune.models.loading import load_backbone
from manytune.packing import Layout, Member, PackedModel, build_layout
from manytune.training import evaluation as module
from manytune.training.evaluation import Evaluation, beats, evaluate, predict
from tiny import make_tiny, random_rows

CLASSES = get_task("builtin-acceptability")
NUMBERS = get_task("builtin-similarity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "bert")


def make_model(folder: Path, task: Task, seeds: Sequence[int] = (0, 1, 2)) -> PackedModel:
    backbone = load_backbone(str(folder), task.num_outputs)
    adaptation = make_method("head", learning_rate=1.0).adapt(backbone.model_spec)
    return PackedModel(backbone, [Member(seed, adaptation) for seed in seeds])


def data_of(task: Task) -> Encoded:
    return random_rows(30, outputs=task.num_outputs, longest=40, seed=3)


def centre(model: PackedModel, data: Encoded) -> None:
    """Shift each run's logits to a mean of 0, so that a classifier predicts more than one class."""
    runs = len(model.seeds)
    means = predict(model, data, [np.arange(data.size)] * runs).mean(1)
    for run in range(runs):
        (bias,) = (tensor for tensor in model.bank.of(run) if tensor.name == "classifier.bias")
        bias.data(run).sub_(torch.from_numpy(means[run]))


def draws(runs: int, count: int) -> list[np.ndarray]:
    """Rows of each run's own, in no order."""
    return [np.random.default_rng(run).permutation(30)[:count] for run in range(runs)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Layout]:
    """The layouts of all batches that go through the backbone."""
    seen: list[Layout] = []

    def build(*arguments: Any, **options: Any) -> Layout:
        seen.append(build_layout(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(module, "build_layout", build)
    return seen


def test_predictions_are_in_the_order_of_the_rows(folder: Path) -> None:
    model, data = make_model(folder, CLASSES), data_of(CLASSES)
    rows = draws(3, 20)
    logits = predict(model, data, rows)
    assert logits.shape == (3, 20, 2)
    assert logits.dtype == np.float32
    for run in range(3):
        for place, row in enumerate(rows[run]):
            with torch.no_grad():
                alone = model.forward(build_layout(data, [np.array([row])] * 3))[run, 0]
            np.testing.assert_allclose(logits[run, place], alone, rtol=1e-4, atol=1e-5)
    assert len(np.unique(logits[0].round(4), axis=0)) == 20


@pytest.mark.parametrize("budget", [1, 150, 400])
def test_what_fits_into_a_batch_changes_no_prediction(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: list[Layout], budget: int
) -> None:
    model, data = make_model(folder, CLASSES), data_of(CLASSES)
    rows = draws(3, 20)
    whole = predict(model, data, rows)
    assert len(batches) == 1
    monkeypatch.setitem(module._TOKENS_PER_BATCH, "cpu", budget)
    np.testing.assert_allclose(predict(model, data, rows), whole, rtol=1e-4, atol=1e-5)
    parts = batches[1:]
    assert len(parts) > 1
    assert sum(layout.sequence_bounds[1] for layout in parts) == 20
    for layout in parts:
        assert layout.tokens <= budget or layout.sequence_bounds[1] == 1


class TestMemoryThatRunsOut:
    def test_a_batch_is_cut_in_halves(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, data, rows = make_model(folder, CLASSES), data_of(CLASSES), draws(3, 20)
        whole, tried = predict(model, data, rows), self.room_for(monkeypatch, model, 150)
        np.testing.assert_allclose(predict(model, data, rows), whole, rtol=1e-4, atol=1e-5)
        too_large = [tokens for tokens in tried if tokens > 150]
        assert too_large == sorted(too_large, reverse=True)
        assert sum(tokens for tokens in tried if tokens <= 150) == sum(data.lengths[own].sum() for own in rows)
        assert tried[: len(too_large)] == too_large, "what was found to fit is kept"

    def test_a_single_row_cannot_be_cut(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(folder, CLASSES)
        tried = self.room_for(monkeypatch, model, 0)
        with pytest.raises(RuntimeError, match="out of memory"):
            predict(model, data_of(CLASSES), draws(3, 20))
        assert len(tried) > 3

    def test_another_failure_is_not_taken_for_it(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_model(folder, CLASSES)
        tried = self.room_for(monkeypatch, model, 0, "no such kernel")
        with pytest.raises(RuntimeError, match="no such kernel"):
            predict(model, data_of(CLASSES), draws(3, 20))
        assert len(tried) == 1

    def room_for(
        self, monkeypatch: pytest.MonkeyPatch, model: PackedModel, tokens: int, text: str = "CUDA out of memory."
    ) -> list[int]:
        """Let larger batches fail; returns the tokens of each batch, as they are tried."""
        tried: list[int] = []
        forward = model.forward

        def limited(layout: Layout, **named: Any) -> torch.Tensor:
            tried.append(layout.tokens)
            if layout.tokens > tokens:
                raise RuntimeError(text)
            return forward(layout, **named)

        monkeypatch.setattr(model, "forward", limited)
        return tried


def test_on_a_gpu_a_batch_follows_the_memory_that_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(folder, CLASSES)
    monkeypatch.setattr(model, "device", torch.device("cuda"))
    each = model.spec.evaluated_bytes(4, 30)
    assert model.spec.evaluated_bytes(4, 300) > each > model.spec.evaluated_bytes(2, 30)

    def tokens(free: float) -> int:
        monkeypatch.setattr(module.hardware, "free_memory", lambda device: int(free))
        return module._tokens_per_batch(model, 30)

    assert tokens(1e12) == tokens(2.01 * 65536 * each) == 65536
    assert tokens(1.9 * 65536 * each) == tokens(1.1 * 65536 * each) == 32768, "few sizes: they decide how sums round"
    assert tokens(0) == 1024


def test_a_run_without_rows_is_left_out_and_costs_no_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: list[Layout]
) -> None:
    """In a pack whose runs are at different steps, some are evaluated and others are not."""
    monkeypatch.setitem(module._TOKENS_PER_BATCH, "cpu", 150)
    model, data, rows = make_model(folder, CLASSES), data_of(CLASSES), draws(3, 20)
    everything = evaluate(model, CLASSES, data, rows)
    batches.clear()
    nothing = np.empty(0, dtype=np.int64)
    some = evaluate(model, CLASSES, data, [rows[0], nothing, rows[2]])
    assert sum(layout.tokens for layout in batches) == data.lengths[np.concatenate([rows[0], rows[2]])].sum()
    assert max(layout.tokens for layout in batches) > 120
    assert len(some) == 2
    for found, expected in zip(some, (everything[0], everything[2]), strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_rows_go_through_the_backbone_sorted_by_length(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: list[Layout]
) -> None:
    """Long ones together, so that no batch pads much."""
    monkeypatch.setitem(module._TOKENS_PER_BATCH, "cpu", 60)
    data = data_of(CLASSES)
    predict(make_model(folder, CLASSES, [0]), data, [np.arange(30)])
    lengths = [length for layout in batches for length in layout.lengths.tolist()]
    assert lengths == sorted(data.lengths.tolist())


def test_evaluation_leaves_no_gradients_and_no_dropout(folder: Path) -> None:
    model, data = make_model(folder, CLASSES), data_of(CLASSES)
    rows = draws(3, 5)
    assert np.array_equal(predict(model, data, rows), predict(model, data, rows))
    assert torch.is_grad_enabled()
    training = model.forward(build_layout(data, rows), step=0)
    assert training.requires_grad
    assert not np.allclose(predict(model, data, rows), training.detach())


def test_scores_and_loss_of_a_classification(folder: Path) -> None:
    model, data = make_model(folder, CLASSES), data_of(CLASSES)
    centre(model, data)
    rows = draws(3, 20)
    logits = predict(model, data, rows)
    found = evaluate(model, CLASSES, data, rows)
    assert len(found) == 3
    for own, at, evaluation in zip(logits, rows, found, strict=True):
        labels = data.labels[at]
        assert np.array_equal(evaluation.predictions, own.argmax(-1))
        assert set(evaluation.predictions) == {0, 1}
        assert evaluation.collapsed is False
        assert list(evaluation.scores) == list(CLASSES.metrics)
        expected = matthews_corrcoef(labels, own.argmax(-1))
        assert evaluation.scores["matthews_correlation"] == pytest.approx(expected)
        loss = F.cross_entropy(torch.from_numpy(own), torch.from_numpy(labels))
        assert evaluation.loss == pytest.approx(float(loss), rel=1e-6)


def test_scores_and_loss_of_a_regression(folder: Path) -> None:
    model, data = make_model(folder, NUMBERS), data_of(NUMBERS)
    rows = draws(3, 20)
    logits = predict(model, data, rows)
    assert logits.shape == (3, 20, 1)
    for own, at, evaluation in zip(logits, rows, evaluate(model, NUMBERS, data, rows), strict=True):
        numbers, labels = own[:, 0], data.labels[at]
        assert np.array_equal(evaluation.predictions, numbers)
        assert evaluation.scores == {
            "pearson": pytest.approx(pearsonr(numbers, labels).statistic, rel=1e-5),
            "spearman": pytest.approx(spearmanr(numbers, labels).statistic, rel=1e-5),
        }
        assert evaluation.loss == pytest.approx(float(np.mean((numbers - labels) ** 2)), rel=1e-5)
        assert evaluation.collapsed is False


@pytest.mark.parametrize("task", [CLASSES, NUMBERS], ids=lambda task: task.kind)
def test_a_constant_prediction_has_collapsed(folder: Path, task: Task) -> None:
    model, data = make_model(folder, task, [0, 1]), data_of(task)
    centre(model, data)
    for tensor in model.bank.of(1):
        tensor.data(1).zero_()
    live, dead = evaluate(model, task, data, draws(2, 20))
    assert (live.collapsed, dead.collapsed) == (False, True)
    assert dead.scores[task.primary_metric] == 0.0
    assert live.scores[task.primary_metric] != 0.0


@pytest.mark.parametrize("task", [CLASSES, NUMBERS], ids=lambda task: task.kind)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_score_none_and_are_no_collapse(folder: Path, task: Task, value: float) -> None:
    model, data = make_model(folder, task, [0, 1]), data_of(task)
    for tensor in model.bank.of(1):
        tensor.data(1).fill_(value)
    sound, broken = evaluate(model, task, data, draws(2, 20))
    assert np.isfinite(list(sound.scores.values())).all()
    assert broken.scores.keys() == sound.scores.keys()
    assert np.isnan(list(broken.scores.values())).all()
    assert broken.collapsed is False


def test_example_losses_are_torchs_a_row_each() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [3, 3, 0]])
    losses = CLASSES.type.losses(logits, labels)
    assert losses.shape == (2, 3)
    for run in range(2):
        for row in range(3):
            expected = F.cross_entropy(logits[run, row], labels[run, row])
            torch.testing.assert_close(losses[run, row], expected)
    targets = torch.tensor([[0.5, 1.0, 2.0], [3.0, 3.5, 0.0]])
    numbers = logits[..., :1]
    expected = F.mse_loss(numbers[..., 0], targets, reduction="none")
    torch.testing.assert_close(NUMBERS.type.losses(numbers, targets), expected)


def test_predictions_are_classes_or_numbers() -> None:
    logits = np.array([[0.1, 0.9], [2.0, -1.0]], dtype=np.float32)
    assert CLASSES.type.decode(logits).tolist() == [1, 0]
    assert np.array_equal(NUMBERS.type.decode(logits[:, :1]), logits[:, 0])


def found(score: float, collapsed: bool = False) -> Evaluation:
    return Evaluation({"pearson": score}, 0.5, collapsed, np.arange(2))


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        (found(0.2), found(0.1), True),
        (found(0.1), found(0.1), False),
        (found(0.1), found(0.2), False),
        (found(-0.3), None, True),
        (found(float("nan")), None, False),
        (found(float("nan")), found(0.0, collapsed=True), False),
        (found(-0.3), found(0.0, collapsed=True), True),
        (found(0.0, collapsed=True), found(-0.3), False),
        (found(0.0, collapsed=True), None, True),
        (found(0.0, collapsed=True), found(0.0, collapsed=True), False),
    ],
)
def test_which_of_two_evaluations_is_better(new: Evaluation, old: Evaluation | None, better: bool) -> None:
    assert beats("pearson", new, old) is better


def test_the_metric_says_which_direction_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    error = metrics.Metric("pearson", "Error", False, lambda predictions, labels: 0.0)
    monkeypatch.setattr(metrics, "METRICS", {"pearson": error})
    assert beats("pearson", found(0.1), found(0.2))
    assert not beats("pearson", found(0.2), found(0.1))
