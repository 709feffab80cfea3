"""Packs that runs join and leave at any step: each run does what it does alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joining import Schedule, entry, train
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import PackedModel
from manytune.storage.record import RunState
from manytune.training.live_run import Entry, ticks_until_end
from manytune.training.outcome import Outcome
from tiny import make_tiny, make_tiny_of


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(make_tiny(tmp_path_factory.mktemp("tiny") / "bert")), 2)


@pytest.fixture(scope="module")
def entries(backbone: Backbone) -> list[Entry]:
    """Runs of every kind that shares packs, of different lengths, batches, rows and settings."""
    lora = {"RANK": 2, "DROPOUT": 0.1}
    return [
        entry(backbone, 0, "lora", max_steps=30, **lora),
        entry(backbone, 1, "bitfit", max_steps=14, batch_size=5, rows=33),
        entry(backbone, 2, "lora", max_steps=9, batch_size=3, accumulate=3, schedule="cosine", **lora),
        entry(backbone, 3, "lora", epochs=3, max_steps=None, warmup_ratio=0.2, warmup_steps=None, **lora, ALPHA=1.0),
        entry(backbone, 4, "lora", RANK=20, DROPOUT=0.2, class_weights="balanced", adam_beta2=0.9),
        entry(backbone, 5, "bitfit", HEAD="bias", max_steps=3, weight_decay=0.0, max_grad_norm=0.0),
        entry(backbone, 6, "lora", LEARNING_RATE=1e30, warmup_steps=0, **lora),  # fails
        entry(backbone, 7, "lora", LEARNING_RATE=1e-12, early_stopping=1, eval_every=2, **lora),  # stops early
    ]


@pytest.fixture(scope="module")
def alone(backbone: Backbone, entries: list[Entry]) -> dict[str, tuple[list[float], Outcome]]:
    """What each run comes to by itself: its losses and its outcome."""
    found = {}
    for each in entries:
        log, outcomes = train(backbone, [each])
        found[each.run.id] = log.losses[each.run.id], outcomes[each.run.id]
    return found


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_joins_and_leaves_a_run_does_what_it_does_alone(
    backbone: Backbone, entries: list[Entry], alone: dict[str, tuple[list[float], Outcome]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(entries))
    begin = data.draw(st.integers(1, 3))
    room = data.draw(st.integers(begin, 6))
    plan: dict[int, list[Entry]] = {}
    # While a run is there: a source is asked as long as the pack has one.
    for each in order[begin:]:
        plan.setdefault(data.draw(st.integers(1, 3)), []).append(each)
    source = Schedule(plan)
    log, outcomes = train(backbone, order[:begin], source, room)
    assert max(map(len, (ids for _, ids in log.rosters))) <= room
    assert sorted(source.ends) == sorted((id, outcome.steps) for id, outcome in outcomes.items())
    for id, outcome in outcomes.items():
        losses, expected = alone[id]
        assert len(log.losses[id]) == len(losses) == outcome.steps == expected.steps
        np.testing.assert_allclose(log.losses[id], losses, rtol=1e-5)
        assert outcome.state is expected.state
        assert outcome.best_step == expected.best_step
        assert [(row.step, row.epoch, row.samples_seen, row.learning_rate) for row in outcome.history] == [
            (row.step, row.epoch, row.samples_seen, row.learning_rate) for row in expected.history
        ]
        found = [row.eval_loss for row in outcome.history]
        np.testing.assert_allclose(found, [row.eval_loss for row in expected.history], rtol=1e-4)


def test_the_runs_end_in_every_way(alone: dict[str, tuple[list[float], Outcome]]) -> None:
    """Without this the agreement above could hold for the wrong reason."""
    outcomes = [outcome for _, outcome in alone.values()]
    assert [outcome.state for outcome in outcomes].count(RunState.FAILED) == 1
    steps = [outcome.steps for outcome in outcomes]
    assert len(set(steps)) >= 6
    assert steps[7] < 12
    assert all(math.isfinite(loss) for losses, outcome in alone.values() if not outcome.failure for loss in losses)


def test_a_checkpoint_is_saved_before_anything_follows_from_a_join(backbone: Backbone, entries: list[Entry]) -> None:
    source = Schedule({2: [entries[5]], 4: [entries[2]]})
    log, outcomes = train(backbone, [entries[1]], source, room=2)
    # At 4 there is no room; at 5 run5 leaves after its three steps, and run2 joins.
    assert log.rosters[:2] == [(2, ["run5", "run1"]), (5, ["run1", "run2"])]
    assert [*outcomes] == ["run5", "run1", "run2"]
    assert log.rosters[-1] == (14, [])


def test_a_pack_begins_empty_where_its_source_has_all_runs(
    backbone: Backbone, entries: list[Entry], alone: dict[str, tuple[list[float], Outcome]]
) -> None:
    log, outcomes = train(backbone, [], Schedule({0: [entries[5], entries[2], entries[1]]}), room=2)
    assert [*outcomes] == ["run5", "run1", "run2"]  # in the order of the pack
    for id in outcomes:
        np.testing.assert_allclose(log.losses[id], alone[id][0], rtol=1e-5)


def test_a_pack_of_two_on_the_padded_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    backbone = load_backbone(str(make_tiny_of(tmp_path_factory.mktemp("deberta"), "deberta-v2")), 2)
    first = entry(backbone, 0, "lora", max_steps=6, RANK=2, DROPOUT=0.1)
    second = entry(backbone, 1, "bitfit", max_steps=4, batch_size=5)
    log, _ = train(backbone, [first], Schedule({2: [second]}))
    for each in (first, second):
        alone, _ = train(backbone, [each])
        np.testing.assert_allclose(log.losses[each.run.id], alone.losses[each.run.id], rtol=1e-5)


def test_heads_alone_share_packs_that_runs_join(backbone: Backbone) -> None:
    first, second = (entry(backbone, seed, "head", max_steps=5 + seed, batch_size=6 + seed) for seed in (0, 1))
    log, _ = train(backbone, [first], Schedule({3: [second]}))
    for each in (first, second):
        alone, _ = train(backbone, [each])
        np.testing.assert_allclose(log.losses[each.run.id], alone.losses[each.run.id], rtol=1e-5)


def test_no_run_joins_one_that_trains_every_weight(backbone: Backbone) -> None:
    whole, other = entry(backbone, 0, "full", max_steps=3), entry(backbone, 1, "head")
    with pytest.raises(ValueError, match="a run that trains every weight is a pack of one"):
        train(backbone, [whole], Schedule({1: [other]}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_after_a_join_a_pack_is_what_it_would_be_if_built_so(
    backbone: Backbone, entries: list[Entry], dtype: torch.dtype
) -> None:
    """To the bit: a pack that is stopped goes on with one that is built anew."""
    members = [each.member for each in (entries[1], entries[0], entries[2], entries[3], entries[4])]
    model = PackedModel(backbone, [each.member for each in entries[:2]], dtype=dtype)
    for run in range(2):
        model.bank.load(run, {name: tensor + run + 0.01 for name, tensor in model.bank.state(run).items()})
    states = [model.bank.state(run) for run in range(2)]
    model.rearrange(members, [1, 0, None, None, None])
    built = PackedModel(backbone, members, dtype=dtype)
    built.bank.load(0, states[1])
    built.bank.load(1, states[0])
    assert [(g.first, g.last) for g in model.bank.groups] == [(g.first, g.last) for g in built.bank.groups]
    for run in range(5):
        one, other = model.bank.state(run), built.bank.state(run)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("steps", "room", "ticks"), [([], 2, 0), ([5], 2, 5), ([5, 3, 4], 2, 7), ([1, 1, 1, 9], 3, 10), ([2, 2], 1, 4)]
)
def test_ticks_until_the_last_run_has_ended(steps: list[int], room: int, ticks: int) -> None:
    assert ticks_until_end(steps, room) == ticks
