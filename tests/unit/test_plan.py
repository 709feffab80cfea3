"""The plan as a user meets it: which runs a study means, how they are named, packed and timed."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.config import MEANS, Study, Training, plan
from manytune.config.plan import (
    Run,
    evaluation_steps,
    plan_packs,
    plan_runs,
    steps_per_epoch,
    total_steps,
    warmup_steps,
)
from manytune.methods import make_method
from manytune.methods.bitfit import BitFit
from manytune.methods.full import Full
from manytune.methods.head_only import Head
from manytune.methods.lora import Lora
from manytune.utils.errors import StudyError
from manytune.utils.text import short_number

FULL = {"method": "full", "learning_rate": 2e-5}
LORA = {"method": "lora", "rank": [2, 8], "learning_rate": 4e-4}


def study(**changes) -> Study:
    return Study.from_dict({"name": "s", "tasks": ["cola"], "seeds": [0], "methods": [FULL, LORA], **changes})


def ids(**changes) -> list[str]:
    return [run.id for run in plan_runs(study(**changes))]


# What a user may vary in a study, small enough to enumerate.
rates = st.lists(st.floats(1e-6, 1e-1), min_size=1, max_size=3, unique=True)
ranks = st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True)
heads = st.lists(st.sampled_from(["full", "bias", "frozen"]), min_size=1, max_size=3, unique=True)
alphas = st.lists(st.floats(0.5, 64), min_size=1, max_size=2, unique=True)
dropouts = st.lists(st.floats(0, 0.9), min_size=1, max_size=2, unique=True)
targets = st.lists(
    st.lists(st.sampled_from(["query", "key", "value"]), min_size=1, max_size=3, unique=True).map(sorted),
    min_size=1,
    max_size=2,
    unique_by=tuple,
)
seeds = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True)
tasks = st.lists(st.sampled_from(["cola", "stsb", "builtin-similarity"]), min_size=1, max_size=3, unique=True)
loras = st.fixed_dictionaries(
    {"method": st.just("lora"), "learning_rate": rates, "rank": ranks},
    optional={"alpha": alphas, "dropout": dropouts, "targets": targets, "head": heads},
)
bitfits = st.fixed_dictionaries({"method": st.just("bitfit"), "learning_rate": rates}, optional={"head": heads})
fulls = st.fixed_dictionaries({"method": st.just("full"), "learning_rate": rates})
head_only = st.fixed_dictionaries({"method": st.just("head"), "learning_rate": rates})
# One entry of each method at most, so that no two entries come to the same run.
studies = st.fixed_dictionaries(
    {
        "name": st.just("s"),
        "tasks": tasks,
        "seeds": seeds,
        "methods": st.tuples(fulls, bitfits, loras, head_only).flatmap(
            lambda entries: st.lists(st.sampled_from(entries), min_size=1, unique_by=lambda e: e["method"])
        ),
    }
).map(Study.from_dict)


def size(study: Study) -> int:
    """Runs of a study, counted without expanding it."""
    return len(study.seeds) * sum(
        math.prod(len(sweep.values(name, task)) for name in sweep.axes)
        for task in study.tasks
        for sweep in study.methods
    )


class TestRuns:
    @given(studies)
    def test_lists_multiply_and_every_run_has_its_own_id(self, study):
        runs = plan_runs(study)
        assert len(runs) == size(study)
        assert len({run.id for run in runs}) == len(runs)
        assert len({(run.task, run.method, run.seed) for run in runs}) == len(runs)
        assert {run.model for run in runs} == {"minilm"}

    @given(studies)
    def test_labels_tell_methods_apart_and_ids_are_file_names(self, study):
        runs = plan_runs(study)
        assert len({(run.task, run.label, run.seed) for run in runs}) == len(runs)
        for run in runs:
            assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*-[0-9a-f]{6}", run.id)

    def test_order_is_task_then_method_then_seed(self):
        runs = plan_runs(study(tasks=["stsb", "cola"], seeds=[3, 1]))
        assert [(run.task, run.label, run.seed) for run in runs][:5] == [
            ("stsb", "full lr 2e-5", 3),
            ("stsb", "full lr 2e-5", 1),
            ("stsb", "lora r=2, lr 4e-4", 3),
            ("stsb", "lora r=2, lr 4e-4", 1),
            ("stsb", "lora r=8, lr 4e-4", 3),
        ]
        assert {run.task for run in runs[6:]} == {"cola"}

    def test_a_mapping_picks_by_task(self):
        entry = {"method": "bitfit", "learning_rate": {"cola": [1e-3, 2e-4], "stsb": 2e-4}}
        runs = plan_runs(study(tasks=["cola", "stsb"], methods=[entry]))
        assert [(run.task, run.method.learning_rate) for run in runs] == [
            ("cola", 1e-3),
            ("cola", 2e-4),
            ("stsb", 2e-4),
        ]

    def test_two_entries_that_come_to_the_same_run_are_refused(self):
        with pytest.raises(StudyError, match=r"methods\.0 and methods\.2 both .*'full lr 2e-5' on cola"):
            plan_runs(study(methods=[FULL, LORA, {"method": "full", "learning_rate": [1e-5, 2e-5]}]))

    def test_the_order_of_targets_makes_no_other_run(self):
        one, other = ({**LORA, "targets": names} for names in (["query", "value"], ["value", "query"]))
        assert ids(methods=[one]) == ids(methods=[other])

    def test_a_clash_of_digests_is_refused_and_not_called_a_duplicate(self, monkeypatch):
        monkeypatch.setattr(plan, "digest", lambda data, digits: "0" * digits)
        with pytest.raises(StudyError, match=r"same id, cola-lora-r2-lr4e-4-s0-000000, by a rare chance.*methods\.0"):
            plan_runs(study(methods=[{**LORA, "alpha": [8, 16]}]))


class TestIds:
    def test_the_readable_part(self):
        assert [re.sub(r"[0-9a-f]{6}$", "", name) for name in ids(seeds=[0, 12])] == [
            "cola-full-lr2e-5-s0-",
            "cola-full-lr2e-5-s12-",
            "cola-lora-r2-lr4e-4-s0-",
            "cola-lora-r2-lr4e-4-s12-",
            "cola-lora-r8-lr4e-4-s0-",
            "cola-lora-r8-lr4e-4-s12-",
        ]

    def test_they_are_the_same_in_every_version(self):
        # A study directory outlives the version that made it: these must never change.
        assert ids(training={"warmup_ratio": 0.1}) == [
            "cola-full-lr2e-5-s0-038b4b",
            "cola-lora-r2-lr4e-4-s0-a3ae74",
            "cola-lora-r8-lr4e-4-s0-4ef7f7",
        ]

    def test_the_defaults_which_they_leave_out_are_the_same_in_every_version(self):
        # Another default would give an old id a new meaning.
        assert Training().model_dump(exclude=MEANS, exclude_none=True) == {
            "batch_size": 16,
            "epochs": 3.0,
            "max_length": 512,
            "warmup_steps": 0,
            "schedule": "linear",
            "weight_decay": 0.0,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
            "accumulate": 1,
            "eval_every": "epoch",
            "class_weights": "none",
            "precision": "auto",
        }
        assert Lora(rank=1, learning_rate=1).hyperparameters() == {
            "rank": 1,
            "alpha": 8.0,
            "dropout": 0.0,
            "targets": ["query", "value"],
            "learning_rate": 1.0,
            "head": "full",
        }
        for kind in (Full, BitFit, Head):
            assert kind(learning_rate=1).hyperparameters() == {"learning_rate": 1.0, "head": "full"}
        assert {name: Study.model_fields[name].default for name in ("template", "selection")} == {
            "template": "native",
            "selection": "dev",
        }

    @pytest.mark.parametrize(
        "growth",
        [
            {"tasks": ["stsb", "cola"]},
            {"seeds": [5, 0]},
            {"methods": [LORA, {"method": "head", "learning_rate": 1e-3}, FULL]},
            {"methods": [FULL, {**LORA, "rank": [1, 2, 8, 64]}]},
            {"methods": [FULL, {**LORA, "learning_rate": {"cola": [1e-3, 4e-4]}}]},
            {"name": "another"},
            {"data_dir": "/elsewhere"},
            {"training": {"max_pack": 3}},
            {"training": {"epochs": 3, "warmup_steps": 0}},
            {"methods": [FULL, {**LORA, "alpha": 8, "head": "full"}]},
        ],
        ids=str,
    )
    def test_a_study_that_grows_renames_nothing(self, growth):
        assert set(ids()) <= set(ids(**growth))

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "roberta-base"},
            {"template": "spaced"},
            {"selection": "train-split"},
            {"methods": [{**FULL, "learning_rate": 2.0001e-5}, {**LORA, "alpha": 9}]},
            {"methods": [{**FULL, "learning_rate": 3e-5}, {**LORA, "dropout": 0.1}]},
            {"methods": [{**FULL, "learning_rate": 3e-5}, {**LORA, "targets": ["key"]}]},
            {"methods": [{**FULL, "learning_rate": 3e-5}, {**LORA, "head": "bias"}]},
            *(
                {"training": {key: value}}
                for key, value in {
                    "batch_size": 8,
                    "epochs": 4,
                    "max_steps": 10,
                    "max_length": 64,
                    "warmup_steps": 1,
                    "warmup_ratio": 0.1,
                    "schedule": "cosine",
                    "weight_decay": 0.1,
                    "adam_beta1": 0.8,
                    "adam_beta2": 0.99,
                    "adam_epsilon": 1e-6,
                    "max_grad_norm": 0,
                    "accumulate": 2,
                    "eval_every": 5,
                    "early_stopping": 1,
                    "class_weights": "balanced",
                    "precision": "fp32",
                }.items()
            ),
        ],
        ids=str,
    )
    def test_whatever_changes_the_result_changes_every_id(self, change):
        assert not set(ids()) & set(ids(**change))

    def test_every_setting_of_the_training_was_tried(self):
        tried = self.test_whatever_changes_the_result_changes_every_id.pytestmark[0].args[1]
        names = {name for change in tried for name in change.get("training", {})}
        assert names == set(Training.model_fields) - MEANS


class TestLabels:
    @pytest.mark.parametrize(
        ("method", "label"),
        [
            (Full(learning_rate=2e-5), "full lr 2e-5"),
            (BitFit(learning_rate=1e-3), "bitfit lr 1e-3"),
            (BitFit(learning_rate=1e-3, head="bias"), "bitfit lr 1e-3, head bias"),
            (Head(learning_rate=0.015), "head lr 1.5e-2"),
            (Lora(rank=8, learning_rate=4e-4), "lora r=8, lr 4e-4"),
            (Lora(rank=8, learning_rate=4e-4, alpha=16), "lora r=8, lr 4e-4, alpha 16"),
            (
                Lora(rank=8, learning_rate=4e-4, alpha=0.5, dropout=0.1, targets=["value"], head="frozen"),
                "lora r=8, lr 4e-4, alpha 0.5, dropout 0.1, targets value, head frozen",
            ),
            (
                Lora(rank=1, learning_rate=1e-3, targets=["query", "key"]),
                "lora r=1, lr 1e-3, targets key+query",
            ),
        ],
        ids=str,
    )
    def test_they_show_what_differs_from_the_defaults(self, method, label):
        assert method.label == label

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (4e-4, "4e-4"),
            (2e-5, "2e-5"),
            (0.00015, "1.5e-4"),
            (1, "1e0"),
            (0.1, "1e-1"),
            (12.5, "1.25e1"),
            (300.0, "3e2"),
            (-0.01, "-1e-2"),
        ],
    )
    def test_numbers_are_short(self, value, text):
        assert short_number(value) == text

    @given(st.floats(min_value=1e-300, max_value=1e300))
    def test_numbers_are_exact(self, value):
        assert float(short_number(value)) == value


class TestPacks:
    @given(studies, st.integers(1, 9))
    def test_they_partition_the_runs_evenly_by_task_and_kind(self, study, max_pack):
        runs = plan_runs(study)
        packs = plan_packs(runs, max_pack)
        assert sorted(run.id for pack in packs for run in pack.runs) == sorted(run.id for run in runs)
        assert len({pack.id for pack in packs}) == len(packs)
        sizes: dict[tuple[str, str], list[int]] = {}
        for pack in packs:
            assert {run.task for run in pack.runs} == {pack.task}
            assert len({run.method.method in ("bitfit", "lora") for run in pack.runs}) == 1
            sizes.setdefault((pack.task, pack.kind), []).append(len(pack.runs))
        for (_, kind), counts in sizes.items():
            most = 1 if kind == "full" else max_pack
            assert max(counts) - min(counts) <= 1
            assert len(counts) == math.ceil(sum(counts) / most)
            assert max(counts) <= most

    @given(studies, st.randoms(use_true_random=False))
    def test_they_do_not_depend_on_the_order_of_the_runs_of_a_task(self, study, random):
        one = dataclasses.replace
        runs = [one(run, task="cola") for run in plan_runs(study)]
        shuffled = random.sample(runs, len(runs))
        assert plan_packs(shuffled, 4) == plan_packs(runs, 4)

    def test_seventeen_runs_make_nine_and_eight(self):
        runs = plan_runs(study(seeds=list(range(17)), methods=[{**LORA, "rank": 2}]))
        assert [len(pack.runs) for pack in plan_packs(runs, 16)] == [8, 9]

    def test_kinds_and_their_order(self):
        entries = [
            {"method": "head", "learning_rate": 1e-3},
            LORA,
            {"method": "bitfit", "learning_rate": 1e-3},
            FULL,
        ]
        packs = plan_packs(plan_runs(study(tasks=["stsb", "cola"], methods=entries)), 16)
        assert [(pack.task, pack.kind, [run.method.method for run in pack.runs]) for pack in packs] == [
            (task, kind, methods)
            for task in ("stsb", "cola")
            for kind, methods in (
                ("full", ["full"]),
                ("adapters", ["bitfit", "lora", "lora"]),
                ("head", ["head"]),
            )
        ]
        assert re.fullmatch(r"stsb-adapters-0-[0-9a-f]{6}", packs[1].id)

    def test_equal_groups_lie_side_by_side(self):
        entry = {
            "method": "lora",
            "rank": [8, 2],
            "dropout": [0.1, 0.0],
            "targets": [["value"], ["key"]],
            "learning_rate": [2e-3, 1e-3],
        }
        (pack,) = plan_packs(plan_runs(study(seeds=[1, 0], methods=[entry])), 64)
        keys = [(m.rank, m.dropout, m.targets, m.learning_rate, run.seed) for run in pack.runs for m in [run.method]]
        assert keys == sorted(keys)
        assert len(keys) == 32

    def test_a_pack_that_holds_other_runs_has_another_id(self):
        runs = plan_runs(study(seeds=[0, 1, 2], methods=[LORA]))
        assert plan_packs(runs, 16)[0].id != plan_packs(runs[1:], 16)[0].id

    def test_no_runs_make_no_packs(self):
        assert plan_packs([], 16) == ()

    def test_a_pack_must_hold_something(self):
        with pytest.raises(ValueError, match="at least 1 run, not 0"):
            plan_packs([], 0)

    def test_every_task_may_have_a_size_of_its_own(self):
        runs = plan_runs(study(tasks=["stsb", "cola"], seeds=list(range(6)), methods=[{**LORA, "rank": 8}]))
        packs = plan_packs(runs, {"stsb": 2, "cola": 6})
        assert [(pack.task, len(pack.runs)) for pack in packs] == [("stsb", 2)] * 3 + [("cola", 6)]


class TestSteps:
    @pytest.mark.parametrize(
        ("n", "batch_size", "accumulate", "steps"),
        [
            (8551, 16, 1, 535),
            (16, 16, 1, 1),
            (17, 16, 1, 2),
            (1, 16, 4, 1),
            (100, 10, 3, 4),
            (5749, 16, 2, 180),
        ],
    )
    def test_the_partial_last_batch_counts(self, n, batch_size, accumulate, steps):
        assert steps_per_epoch(n, batch_size, accumulate) == steps

    def test_there_must_be_samples(self):
        with pytest.raises(ValueError, match="at least 1 training sample, not 0"):
            steps_per_epoch(0, 16)

    @pytest.mark.parametrize(
        ("settings", "total"),
        [
            ({"epochs": 10}, 5350),
            ({"epochs": 0.5}, 268),
            ({"epochs": 2.5, "accumulate": 2}, 670),
            ({"max_steps": 7}, 7),
            ({}, 1605),
        ],
    )
    def test_the_length_of_a_run(self, settings, total):
        assert total_steps(Training(**settings), 8551) == total

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({}, 0),
            ({"warmup_steps": 200}, 200),
            ({"warmup_ratio": 0.06}, 6),
            ({"warmup_ratio": 0.061}, 7),
            ({"warmup_ratio": 0}, 0),
        ],
    )
    def test_the_warm_up(self, settings, steps):
        assert warmup_steps(Training(**settings), 100) == steps

    @pytest.mark.parametrize(
        ("eval_every", "total", "steps"),
        [
            ("epoch", 30, [10, 20, 30]),
            ("epoch", 25, [10, 20, 25]),
            ("epoch", 4, [4]),
            (7, 15, [7, 14, 15]),
            (7, 14, [7, 14]),
            (99, 3, [3]),
        ],
    )
    def test_when_to_evaluate(self, eval_every, total, steps):
        found = evaluation_steps(Training(eval_every=eval_every), 10, total)
        assert [found[index] for index in range(len(found))] == list(found) == steps
        assert [step for step in range(-1, total + 100) if step in found] == steps
        with pytest.raises(IndexError):
            found[-1]

    def test_evaluations_are_never_written_out(self):
        """A list of these would fill the memory of any machine."""
        found = evaluation_steps(Training(eval_every=1), 10, 10**15)
        assert len(found) == 10**15
        assert (found[0], found[10**15 - 1], 10**15 in found, 10**15 + 1 in found) == (1, 10**15, True, False)


def test_a_run_is_frozen():
    run = Run("id", "minilm", "cola", make_method("full", learning_rate=1.0), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1
