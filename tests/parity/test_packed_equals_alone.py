"""A run's result does not depend on the pack that it trained in: dropout on, mixed ranks, rates and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from manytune.config import Training
from manytune.config.plan import Run, plan_packs
from manytune.data.tasks import get_task
from manytune.methods import Method, make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.storage.record import RunState
from manytune.training.callbacks import PackCallback
from manytune.training.loop import PackData, train_pack
from manytune.training.outcome import Outcome
from tiny import FLAT_FAMILIES, make_small, make_tiny, random_rows

STEPS = 30
RATE = 1e-2
TASK = get_task("builtin-acceptability")
TRAINING = Training(batch_size=6, max_steps=STEPS, warmup_steps=5, weight_decay=0.1, eval_every=10, max_grad_norm=1.0)


class Recorder(PackCallback):
    """Keeps every loss and outcome; can spoil a run's tensors before a step."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.outcomes: dict[str, Outcome] = {}

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.losses.append(list(losses))

    def on_run_trained(self, outcome: Outcome) -> None:
        self.outcomes[outcome.run.id] = outcome


def runs_of(methods: Sequence[tuple[Method, int]]) -> list[Run]:
    runs = [Run(f"run{i}", "tiny", TASK.name, method, seed) for i, (method, seed) in enumerate(methods)]
    (pack,) = plan_packs(runs, 32)
    return list(pack.runs)


def train(
    backbone: Backbone, runs: Sequence[Run], poison: int | None = None
) -> tuple[dict[str, list[float]], dict[str, dict[str, torch.Tensor]], dict[str, Outcome]]:
    """Losses by run, final tensors by run, outcomes by run."""
    data = random_rows(50, seed=5)
    everything = np.arange(50)
    model = PackedModel(backbone, [Member(run.seed, run.method.adapt(backbone.model_spec)) for run in runs])
    if poison is not None:
        for tensor in model.bank.of(poison):
            tensor.data(poison).fill_(float("nan"))
    final: dict[str, dict[str, torch.Tensor]] = {}
    recorder = Recorder()
    alive = list(runs)
    keep = model.keep

    def keep_and_note(kept: Sequence[int]) -> None:
        for position, run in enumerate(alive):
            if position not in kept:
                final[run.id] = model.bank.state(position)
        alive[:] = [alive[position] for position in kept]
        keep(kept)

    model.keep = keep_and_note  # type: ignore[method-assign]
    splits = PackData(data, data, (everything,) * len(runs), (everything,) * len(runs))
    train_pack(model, runs, TASK, splits, TRAINING, recorder)
    losses: dict[str, list[float]] = {}
    if poison is None:
        losses = {run.id: [row[i] for row in recorder.losses] for i, run in enumerate(runs)}
    return losses, final, recorder.outcomes


def mixed() -> list[tuple[Method, int]]:
    lora = [
        (make_method("lora", rank=rank, alpha=8.0, dropout=0.1, learning_rate=rate), seed)
        for rank, rate, seed in (
            (2, RATE, 0),
            (2, RATE / 3, 1),
            (8, RATE, 0),
            (8, RATE / 2, 2),
            (16, RATE, 1),
        )
    ]
    bitfit = [(make_method("bitfit", learning_rate=rate), seed) for rate, seed in ((RATE, 0), (RATE / 4, 3))]
    return [*lora, *bitfit, (make_method("bitfit", learning_rate=RATE, head="bias"), 1)]


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_losses_and_weights_agree(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(make_small(tmp_path / family, family)), 2)
    runs = runs_of(mixed())
    packed_losses, packed_final, _ = train(backbone, runs)
    assert len(packed_final) == len(runs)
    for run in runs:
        losses, final, _ = train(backbone, [run])
        assert len(losses[run.id]) == STEPS
        np.testing.assert_allclose(packed_losses[run.id], losses[run.id], rtol=1e-5)
        for name, tensor in final[run.id].items():
            # A key bias adds the same to all scores of a query, which softmax ignores: its true gradient is
            # zero, and Adam turns the rounding of zero into steps of full size.
            if name.endswith(("key.bias", "attn.k.bias")):
                continue
            difference = (packed_final[run.id][name] - tensor).abs().max()
            assert difference <= 0.02 * run.method.learning_rate, f"{run.id} {name}: {difference}"


def test_dropout_is_really_on(tmp_path: Path) -> None:
    """Without this the agreement above could hold for the wrong reason."""
    runs = runs_of(mixed()[:1])
    with_dropout, _, _ = train(load_backbone(str(make_tiny(tmp_path / "on")), 2), runs)
    without, _, _ = train(load_backbone(str(make_tiny(tmp_path / "off", dropout=0.0)), 2), runs)
    first = runs[0].id
    assert abs(with_dropout[first][0] - without[first][0]) > 1e-3


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_a_poisoned_neighbour_changes_nothing(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(make_small(tmp_path / family, family)), 2)
    runs = runs_of(mixed())
    clean_losses, clean, _ = train(backbone, runs)
    assert all(np.isfinite(clean_losses[run.id]).all() for run in runs)
    for poison in (0, 3, len(runs) - 1):
        _, poisoned, outcomes = train(backbone, runs, poison)
        for index, run in enumerate(runs):
            if index == poison:
                assert outcomes[run.id].state is RunState.FAILED
                assert "step 1" in str(outcomes[run.id].failure)
                continue
            assert outcomes[run.id].state is not RunState.FAILED
            for name, tensor in poisoned[run.id].items():
                assert tensor.isfinite().all()
                if not name.endswith(("key.bias", "attn.k.bias")):
                    difference = (clean[run.id][name] - tensor).abs().max()
                    assert difference <= 0.02 * run.method.learning_rate, f"{run.id} {name}: {difference}"
