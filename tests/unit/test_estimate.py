from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manytune.config import Study, Training
from manytune.config.plan import plan_packs, plan_runs
from manytune.executors import estimate
from manytune.executors.estimate import (
    HardwareProfile,
    PackEstimate,
    estimate_pack,
    largest_packs,
    makespan,
    pack_seconds,
)
from manytune.executors.saturation import full_rows, saturated
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel
from manytune.training import snapshot
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from tiny import make_tiny

CPU = torch.device("cpu")
TASK = "builtin-similarity"
_PROBE, _RESIDENT_BYTES = estimate._products_per_second, estimate._resident_bytes
LORA = {"method": "lora", "rank": 8, "learning_rate": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def _steady_machine() -> Any:
    """No probe of the clock and none of this process: only what the arithmetic makes of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_products_per_second", lambda *_: 1e9)
        patch.setattr(estimate, "_resident_bytes", lambda: 0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that a snapshot is mostly numbers."""
    return make_tiny(tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="module")
def work(folder: Path) -> TaskWork:
    return prepare(study(folder), TASK)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder), 1)


def study(folder: Path, *methods: Mapping[str, Any], seeds: int = 1, **training: Any) -> Study:
    settings = Training(**{"max_steps": 10, "precision": "fp32", **training})
    values = {"name": "s", "model": str(folder), "tasks": [TASK], "seeds": list(range(seeds))}
    return Study.from_dict({**values, "training": settings.model_dump(), "methods": list(methods or [LORA])})


def profile(precision: str = "fp32", free: float = 1e15) -> HardwareProfile:
    dtype = hardware.choose_dtype(precision, CPU)
    return HardwareProfile("cpu", dtype, int(free), products_per_second=1e9)


def estimated(work: TaskWork, *methods: Mapping[str, Any], seeds: int = 1, **training: Any) -> PackEstimate:
    """The estimate of a study's only pack."""
    asked = study(Path(work.study.model), *methods, seeds=seeds, max_pack=100, **training)
    (pack,) = plan_packs(plan_runs(asked), 100)
    return estimate_pack(replace(work, study=asked), pack, profile(asked.training.precision))


def test_steps_evaluations_and_tokens_are_those_of_the_plan(work: TaskWork) -> None:
    rows, tokens = work.train.size, int(work.train.lengths.sum())
    per_epoch = -(-rows // 16)
    whole = estimated(work, seeds=3, max_steps=None, epochs=2.0)
    assert (whole.steps, whole.evaluations) == (2 * per_epoch, 2)
    assert whole.tokens == 2 * tokens * 3
    part = estimated(work, max_steps=10, eval_every=4)
    assert (part.steps, part.evaluations) == (10, 3)
    assert part.tokens == pytest.approx(tokens * 160 / rows, abs=1)
    micro = estimated(work, max_steps=10, accumulate=2)
    assert micro.tokens == pytest.approx(tokens * 320 / rows, abs=1)


@given(
    runs=st.integers(1, 12),
    more_runs=st.integers(1, 12),
    steps=st.integers(1, 200),
    more_steps=st.integers(1, 200),
)
def test_more_runs_and_more_steps_take_more(
    work: TaskWork, runs: int, more_runs: int, steps: int, more_steps: int
) -> None:
    small = estimated(work, seeds=runs, max_steps=steps)
    wide = estimated(work, seeds=runs + more_runs, max_steps=steps)
    long = estimated(work, seeds=runs, max_steps=steps + more_steps)
    assert min(small.steps, small.tokens, small.seconds, small.memory_bytes, small.disk_bytes) > 0
    for name in ("tokens", "seconds", "memory_bytes", "disk_bytes"):
        assert getattr(wide, name) > getattr(small, name)
    assert len(wide.parameters) == runs + more_runs
    assert long.tokens > small.tokens
    assert long.seconds > small.seconds
    assert (long.memory_bytes, long.disk_bytes) == (small.memory_bytes, small.disk_bytes)


def test_packing_pays(work: TaskWork) -> None:
    assert estimated(work, seeds=8).seconds < 8 * estimated(work).seconds


def test_full_takes_most_and_the_head_alone_least(work: TaskWork) -> None:
    taken = [estimated(work, {"method": method, "learning_rate": 1e-3}) for method in ("head", "bitfit", "full")]
    assert [one.seconds for one in taken] == sorted({one.seconds for one in taken})
    assert [one.memory_bytes for one in taken] == sorted({one.memory_bytes for one in taken})


@pytest.mark.parametrize(
    "method",
    [
        {"method": "full", "learning_rate": 1e-3},
        LORA,
        {**LORA, "head": "frozen", "rank": 32},
        {"method": "bitfit", "learning_rate": 1e-3},
    ],
    ids=["full", "lora", "lora, frozen head", "bitfit"],
)
def test_disk_is_what_snapshots_take(
    work: TaskWork, backbone: Backbone, tmp_path: Path, method: Mapping[str, Any]
) -> None:
    asked = study(Path(work.study.model), method)
    (run,) = plan_runs(asked)
    model = PackedModel(backbone, [Member(run.seed, work.adaptation(run))])
    snapshot.save(tmp_path / "best", model.bank.state(0), {})
    real = (tmp_path / "best" / "snapshot.safetensors").stat().st_size
    assert estimated(work, method).disk_bytes == pytest.approx(real, rel=0.05, abs=4096)


@pytest.mark.parametrize("avx512", [True, False])
def test_half_precision_takes_three_copies_of_the_matrices_more(
    work: TaskWork, avx512: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 without AVX-512 they are there once more, transposed."""
    monkeypatch.setattr(hardware, "has_avx512", lambda: avx512)
    names = [name for name in work.model_spec.tensors if name.removesuffix(".weight") in work.model_spec.linears]
    frozen = sum(torch.Size(work.model_spec.tensors[name]).numel() for name in names if "pooler" not in name)
    more = {
        batch_size: estimated(work, precision="bf16", batch_size=batch_size).memory_bytes
        - estimated(work, precision="fp32", batch_size=batch_size).memory_bytes
        for batch_size in (1, 2, 64)
    }
    saved = more[1] - more[2]  # what the activations of one row take less
    longest = int(work.dev.lengths.max())
    fp32, bf16 = (work.model_spec.evaluated_bytes(size, longest) for size in (4, 2))
    saved += (fp32 - bf16) * min(4096, work.evaluated_tokens)
    assert more[1] == pytest.approx((3 * 2 if avx512 else 3 * 2 - 4) * frozen - saved, abs=2)
    assert more[64] < 0


def test_packs_are_sized_by_what_is_asked_for_or_by_speed_and_memory(work: TaskWork) -> None:
    def largest(*methods: Mapping[str, Any], free: float = 1e15, **training: Any) -> int:
        asked = study(Path(work.study.model), *methods, seeds=2, **training)
        return largest_packs(plan_runs(asked), {TASK: replace(work, study=asked)}, profile(free=free))[TASK]

    assert largest(max_pack=3) == 3
    assert largest() == 16
    assert largest(free=0) == 1
    assert largest({"method": "full", "learning_rate": 1e-3}, free=0) == 1
    some = 1.001 * estimated(work, seeds=10).memory_bytes / 0.7
    assert largest(free=some) == 10
    assert largest(free=some / 2) < largest(free=some)
    assert largest({**LORA, "rank": 256}, free=some) < 10


def test_on_a_gpu_packs_hold_as_many_runs_as_fill_it(work: TaskWork) -> None:
    def largest(full_rows: int, free: float = 1e15, *methods: Mapping[str, Any]) -> int:
        gpu = HardwareProfile("cuda", torch.bfloat16, int(free), 1e12, full_rows=full_rows)
        asked = study(Path(work.study.model), *methods)
        return largest_packs(plan_runs(asked), {TASK: replace(work, study=asked)}, gpu)[TASK]

    batch = 16 * float(work.train.lengths.mean())
    assert largest(round(80.5 * batch)) == 81
    assert largest(round(4.5 * batch)) == 5
    assert largest(1) == 1
    assert largest(round(80.5 * batch), 1e8) < 81, "its memory is a bound too"
    half = {**LORA, "training": {"batch_size": 8}}
    assert largest(round(40.5 * batch), 1e15, half) == 81


def test_an_evaluation_takes_memory_too(work: TaskWork) -> None:
    (pack,) = plan_packs(plan_runs(work.study), 1)
    long = replace(work, dev=replace(work.dev, offsets=np.concatenate([work.dev.offsets[:1], work.dev.offsets[-1:]])))
    each = [made.model_spec.evaluated_bytes(4, int(made.dev.lengths.max())) for made in (work, long)]
    more = estimate_pack(long, pack, profile()).memory_bytes - estimate_pack(work, pack, profile()).memory_bytes
    assert more == pytest.approx((each[1] - each[0]) * min(4096, work.evaluated_tokens), rel=1e-6)
    gpu = HardwareProfile("cuda", torch.float32, 10_000_000, 1e12, full_rows=1)
    tight, roomy = (estimate_pack(long, pack, replace(gpu, free_bytes=free)).memory_bytes for free in (10**7, 10**12))
    assert tight < roomy, "its batches follow the memory that is left"


class TestSaturation:
    def test_rows_are_doubled_while_that_is_faster(self) -> None:
        def speed(rows: int) -> float:
            return rows / (3.0 + rows / 1000)  # seconds: launches, and the work itself

        asked: list[int] = []
        assert saturated(lambda rows: asked.append(rows) or speed(rows), 65536) == 16384  # type: ignore[func-returns-value]
        assert asked == [256 * 2**power for power in range(8)]
        assert saturated(speed, 5000) == 4096
        assert saturated(lambda rows: 1.0, 65536) == 256
        assert saturated(speed, 0) == 256, "one size is always there"

    def test_a_measurement_comes_to_one_of_the_sizes(self) -> None:
        assert full_rows(8, torch.float32, CPU, 4 * 48 * 8 * 1024) in (256, 512, 1024)
        assert HardwareProfile.measure(CPU, "fp32", 8).full_rows is None


def test_runs_that_take_turns_are_packed_one_by_one(work: TaskWork) -> None:
    padded = replace(work, model_spec=replace(work.model_spec, padded=True))
    runs = plan_runs(study(Path(work.study.model), seeds=4))
    assert largest_packs(runs, {TASK: work}, profile())[TASK] > 1
    assert largest_packs(runs, {TASK: padded}, profile()) == {TASK: 1}
    (pack,) = plan_packs(runs, 4)
    assert estimate_pack(padded, pack, profile()).seconds > estimate_pack(work, pack, profile()).seconds


def test_layers_that_are_one_and_the_same_are_counted_as_often_as_they_are_used(work: TaskWork) -> None:
    albert = replace(work, model_spec=replace(work.model_spec, passes=2 * work.model_spec.passes))
    (pack,) = plan_packs(plan_runs(work.study), 1)
    once, twice = (estimate_pack(each, pack, profile()) for each in (work, albert))
    assert twice.seconds == pytest.approx(2 * once.seconds)
    assert twice.memory_bytes > once.memory_bytes


def test_the_probe_measures_once_a_device() -> None:
    speed = _PROBE(8, torch.float32, CPU, 1)
    assert speed > 1e6
    assert _PROBE(8, torch.float32, CPU, 1) == speed


def test_a_site_is_what_a_pack_has_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 1000)
    seen: list[int] = []
    monkeypatch.setattr(estimate, "_products_per_second", lambda *_: seen.append(torch.get_num_threads()) or 5.0)
    before = torch.get_num_threads()
    assert HardwareProfile.measure(CPU, "fp32", 8, threads=before + 1, sharing=4) == HardwareProfile(
        "cpu", torch.float32, 250, 5.0, before + 1
    )
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_makespan_is_that_of_the_longest_first() -> None:
    assert makespan([3, 1, 2], 1) == 6
    assert makespan([1, 1, 1, 3], 2) == 3
    assert makespan([], 3) == 0
    assert makespan([5], 3) == 5


@pytest.mark.parametrize("capacity", [1, 2, 4, 16, 100])
def test_with_more_places_packs_are_smaller_where_that_ends_sooner(work: TaskWork, capacity: int) -> None:
    runs = plan_runs(study(Path(work.study.model), seeds=16))

    def ends(size: int) -> float:
        packs = plan_packs(runs, size)
        return makespan((pack_seconds(work, p.kind, len(p.runs), profile()) for p in packs), capacity)

    chosen = largest_packs(runs, {TASK: work}, profile(), capacity)[TASK]
    assert ends(chosen) == min(map(ends, range(1, 17)))
    assert (chosen == 16) is (capacity == 1)
    if capacity >= 16:
        assert chosen == 1


def test_a_size_that_was_asked_for_stays_whatever_the_places(work: TaskWork) -> None:
    asked = study(Path(work.study.model), seeds=8, max_pack=8)
    assert largest_packs(plan_runs(asked), {TASK: replace(work, study=asked)}, profile(), 8) == {TASK: 8}


def test_a_process_has_a_size() -> None:
    assert _RESIDENT_BYTES() > 2**24


def test_runs_with_training_of_their_own_are_estimated_by_it(work: TaskWork) -> None:
    """A pack of two runs takes the mean of what it would take if both trained as the one, or as the other."""
    entries = [{**LORA, "training": {"max_steps": 40}}, {**LORA, "training": {"batch_size": 32, "eval_every": 1}}]
    longer, wider = (estimated(work, {**entry, "rank": [4, 8]}) for entry in entries)
    both = estimated(work, *entries)
    assert (longer.steps, wider.steps, both.steps) == (40, 10, 40)
    assert both.evaluations == wider.evaluations == 10
    assert both.tokens == pytest.approx((longer.tokens + wider.tokens) / 2, abs=2)
    assert both.seconds == pytest.approx((longer.seconds + wider.seconds) / 2)
    assert longer.memory_bytes < both.memory_bytes < wider.memory_bytes
    asked = study(Path(work.study.model), *entries)
    own = replace(work, study=study(Path(work.study.model), batch_size=32))
    room = replace(profile(), free_bytes=int(1.2e9))
    assert largest_packs(plan_runs(asked), {TASK: work}, room) == largest_packs(plan_runs(own.study), {TASK: own}, room)
