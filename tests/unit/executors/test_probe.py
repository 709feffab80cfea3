"""The probe: some steps of a study's own packs say how long it takes, and change nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manytune import Callback, run_study
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors import Inline, job, probe
from manytune.executors.estimate import (
    HardwareProfile,
    _seconds_per_pass,
    counts,
    pack_seconds,
    seconds_of,
    seconds_per_step,
    training_seconds,
)
from manytune.executors.pack_inputs import Backbones
from manytune.executors.probe import Pace, Probe
from manytune.training import loop
from manytune.training.workload import prepare
from manytune.utils import hardware
from study_files import results_in, small_study
from tiny import make_tiny

METHODS = [{"method": "lora", "rank": 2, "learning_rate": 1e-3}, {"method": "full", "learning_rate": 1e-4}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class Messages(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_message(self, text: str, level: str = "info") -> None:
        self.texts.append(text)


def test_it_changes_no_result_and_what_is_expected_is_said_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, messages = small_study(model, methods=METHODS), Messages()
    run_study(study, tmp_path / "plain", executor=Inline("cpu"), callbacks=[])
    monkeypatch.setattr(probe, "_SECONDS", 0.0)
    eager = Probe(shortest=0.0)
    run_study(study, tmp_path / "probed", executor=Inline("cpu"), callbacks=[messages], probe=eager)
    assert results_in(tmp_path / "probed") == results_in(tmp_path / "plain")
    assert {kind for kind, _ in eager.paces} == {"full", "adapters"}
    monkeypatch.setattr(probe, "_probe", lambda *_: pytest.fail("it was measured before"))
    run_study(small_study(model, methods=METHODS, seeds=[2]), tmp_path / "more", callbacks=[], probe=eager)
    baselines, expected, *_ = messages.texts
    assert "without a pretrained model" in baselines
    assert expected.startswith("Training is expected to take about ")
    assert messages.texts[-1].endswith(" were expected.")


def test_measured_steps_correct_each_kind_of_pack(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = small_study(model, methods=METHODS, training={"max_steps": 100, "precision": "fp32"})
    works = {"builtin-similarity": prepare(study, "builtin-similarity")}
    (work,) = works.values()
    packs = plan_packs(plan_runs(study), 16)
    profile = HardwareProfile("cpu", hardware.choose_dtype("fp32", hardware.choose_device("cpu")), 10**12, 1e5, 1)
    backbones = Backbones(study.model)

    def probed_seconds(*args: Any) -> list[float]:
        return Probe().expected(*args)

    slow, fast = profile, replace(profile, products_per_second=1e12)
    rough = seconds_of(packs, works, slow)
    assert probed_seconds(packs, works, fast, backbones) == seconds_of(packs, works, fast), "too short to be probed"
    monkeypatch.setattr(probe, "_SECONDS", 0.0)
    measured = probed_seconds(packs, works, slow, backbones)
    paces = {(pack.kind, round(found / each, 6)) for pack, found, each in zip(packs, measured, rough, strict=True)}
    assert len(paces) == len({pack.kind for pack in packs}) == 2
    assert all(0 < pace < 0.5 for _, pace in paces), "this machine does more than 0.1 MFLOP/s"
    assert pack_seconds(work, packs[0].kind, len(packs[0].runs), slow) == rough[0]

    monkeypatch.setattr(probe, "train_pack", lambda *_: 1 / 0)
    assert probed_seconds(packs, works, slow, backbones) == pytest.approx(rough, rel=1e-6), (
        "what breaks here is reported by training"
    )


@pytest.mark.parametrize("selection", ["dev", "train-split"])
def test_every_row_that_is_scored_is_counted_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str
) -> None:
    """While training the rows that select; at a run's end dev, by its best tensors, and its last if dev selects."""
    seen = Counter[str]()

    def count(module: Any, where: str) -> None:
        def counting(model: Any, task: Any, data: Any, rows: Any, real: Any = module.evaluate) -> Any:
            seen[where] += sum(int(data.lengths[each].sum()) for each in rows)
            return real(model, task, data, rows)

        monkeypatch.setattr(module, "evaluate", counting)

    count(loop, "while training")
    count(job, "at the end")
    training = {"max_steps": 6, "eval_every": 2, "schedule": "constant", "precision": "fp32"}
    study = small_study(model, selection=selection, seeds=[0, 1, 2], training=training)
    unprobed = Probe(shortest=float("inf"))
    records = run_study(study, tmp_path / "out", executor=Inline("cpu"), callbacks=[], probe=unprobed).records
    work = prepare(study, "builtin-similarity")
    found, dev = counts(work), int(work.dev.lengths.sum())
    times = [1 if selection == "train-split" or record.best_step == record.steps else 2 for record in records]
    assert seen["at the end"] == sum(times) * dev
    assert found.scored_tokens == max(times) * dev
    share = pytest.approx(3 * found.evaluations * found.evaluated_tokens, rel=0.0 if selection == "dev" else 0.1)
    assert seen["while training"] == share

    (pack,) = plan_packs(plan_runs(study), 16)
    profile = HardwareProfile("cpu", torch.float32, 10**12, 1e9, 1)
    rough = seconds_of([pack], {pack.task: work}, profile)[0]
    trained = training_seconds(work, pack.kind, 3, profile)
    assert rough == pytest.approx(trained + found.scored_tokens * _seconds_per_pass(work, 3, profile))
    (paced,) = Probe({(pack.kind, 1): Pace(2.0, 5.0)}).measured([pack], {pack.task: work}, profile, Backbones("none"))
    assert paced == pytest.approx(2 * trained + 5 * 3 * found.scored_tokens, rel=1e-6)


def test_slow_steps_end_a_probe_early(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    timer = probe._Timer()
    for seconds in (5.0, 4.0):
        assert timer.step is None
        now[0] += seconds
        try:
            timer.on_step_end("", 0, ())
        except probe._EnoughError:
            break
    assert timer.step == 4.0
    quick = probe._Timer()
    for steps in range(1, 100):
        now[0] += 10.0 if steps == 1 else 0.3
        if steps == 1:
            quick.began = now[0]
        try:
            quick.on_step_end("", 0, ())
        except probe._EnoughError:
            break
    assert steps == probe._WARM_UP + probe._STEPS
    assert quick.step == pytest.approx(0.3)


def test_a_pack_of_mixed_training_is_probed_by_what_its_runs_do(model: Path) -> None:
    entries = [
        {**METHODS[0], "training": {"max_steps": steps, "batch_size": rows}} for steps, rows in ((20, 4), (9, 8))
    ]
    study = small_study(model, methods=entries, seeds=[0], training={"max_steps": 100, "precision": "fp32"})
    work = prepare(study, "builtin-similarity")
    (pack,) = plan_packs(plan_runs(study), 16)
    profile = HardwareProfile("cpu", torch.float32, 10**12, 1e9, 1)
    short, long = (counts(work, run.training) for run in pack.runs)
    assert {short.steps, long.steps} == {20, 9}
    each = [training_seconds(work, pack.kind, 2, profile, run.training) for run in pack.runs]
    (paced,) = Probe({(pack.kind, 1): Pace(2.0, 0.0)}).measured([pack], {pack.task: work}, profile, Backbones("none"))
    assert paced == pytest.approx(sum(each), rel=1e-3)
    alike = [seconds_per_step(replace(pack, runs=(run, run)), work, profile) for run in pack.runs]
    assert alike[0] != alike[1]
    assert seconds_per_step(pack, work, profile) == pytest.approx(sum(alike) / 2)
