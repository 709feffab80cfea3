"""A search in the study file: ranges and choices, its budget, and the spaces that come of it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import yaml
from test_config import BASE, FULL, LORA, conforms, problem, problems, study

from manytune.config import Study, Training, study_json_schema
from manytune.config.extension import extend_study
from manytune.config.plan import plan_runs
from manytune.config.search import Confirm, Halving, Search
from manytune.config.spaces import Choice, Range, search_spaces
from manytune.methods.lora import Lora
from manytune.utils.errors import StudyError

RATE = {"low": 1e-5, "high": 1e-3}
WIDE: dict[str, Any] = {**LORA, "learning_rate": RATE}
OWN = {"name": "own", "train": "rows.csv", "text": "a", "label": "b"}


def searched(**changes: Any) -> Study:
    """A study of a search, which has no seeds."""
    return Study.from_dict({**{key: value for key, value in BASE.items() if key != "seeds"}, **said(changes)})


def said(changes: dict[str, Any]) -> dict[str, Any]:
    return {"search": {"trials": 4}, "methods": [WIDE], **changes}


def refused(**changes: Any) -> str:
    """The one problem of a search's study."""
    with pytest.raises(StudyError) as caught:
        searched(**changes)
    heading, line = str(caught.value).splitlines()
    assert heading == "The study has 1 problem:"
    return line.removeprefix("  ")


def dimensions(entry: dict[str, Any], **changes: Any) -> dict[str, Range | Choice]:
    (space,) = search_spaces(searched(methods=[entry], **changes), "cola")
    return dict(space.dimensions)


class TestDimensions:
    @pytest.mark.parametrize(
        ("setting", "written", "read"),
        [
            ("learning_rate", {"low": 1e-5, "high": 1}, Range(1e-5, 1.0, log=True, whole=False)),
            ("learning_rate", {"low": 1, "high": 2, "log": False}, Range(1.0, 2.0, log=False, whole=False)),
            ("learning_rate", {"low": 1, "high": 2, "log": None}, Range(1.0, 2.0, log=True, whole=False)),
            ("alpha", {"low": 8, "high": 64}, Range(8.0, 64.0, log=True, whole=False)),
            ("rank", {"low": 2, "high": 64}, Range(2, 64, log=False, whole=True)),
            ("rank", {"low": 2, "high": 64, "log": True}, Range(2, 64, log=True, whole=True)),
            ("dropout", {"low": 0, "high": 0.5}, Range(0.0, 0.5, log=False, whole=False)),
            ("training.weight_decay", {"low": 0, "high": 1}, Range(0.0, 1.0, log=False, whole=False)),
            ("training.weight_decay", {"low": 1e-3, "high": 1}, Range(1e-3, 1.0, log=True, whole=False)),
            ("training.epochs", {"low": 3, "high": 10}, Range(3, 10, log=False, whole=True)),
            ("training.epochs", {"low": 0.5, "high": 3}, Range(0.5, 3.0, log=False, whole=False)),
            ("training.max_steps", {"low": 30, "high": 90}, Range(30, 90, log=False, whole=True)),
            ("training.warmup_ratio", {"low": 0.0, "high": 0.2}, Range(0.0, 0.2, log=False, whole=False)),
            ("rank", {"choice": [2, 8]}, Choice((2, 8))),
            ("alpha", {"choice": [16, {"of_rank": 2}]}, Choice((16.0, {"of_rank": 2.0}))),
            ("targets", {"choice": [["query"], ["value", "key"]]}, Choice((["query"], ["key", "value"]))),
            ("head", {"choice": ["full", "bias"]}, Choice(("full", "bias"))),
            ("training.schedule", {"choice": ["linear", "cosine"]}, Choice(("linear", "cosine"))),
            ("training.eval_every", {"choice": ["epoch", 50]}, Choice(("epoch", 50))),
            ("training.class_weights", {"choice": ["none", [1, 2.5]]}, Choice(("none", [1.0, 2.5]))),
        ],
        ids=str,
    )
    def test_a_range_and_a_choice(self, setting, written, read):
        first, _, second = setting.rpartition(".")
        entry = {**LORA, "training": {second: written}} if first else {**LORA, second: written}
        found = dimensions(entry)
        assert list(found) == [setting]
        assert (found[setting], type(getattr(found[setting], "low", None))) == (read, type(getattr(read, "low", None)))

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            (
                {"rank": {"low": 8, "high": 8}},
                "rank: received {'high': 8, 'low': 8}; low must be below high, but it is",
            ),
            ({"rank": {"low": 0, "high": 8}}, "rank.low: received 0; it must be at least 1."),
            ({"rank": {"low": 1, "high": 2.5}}, "rank.high: received 2.5; it must be a whole number."),
            ({"rank": {"low": 1}}, "rank.high: this key is missing."),
            ({"rank": {"low": 1, "hihg": 2}}, "rank.high: this key is missing."),
            (
                {"rank": {"low": 1, "high": 2, "step": 2}},
                "rank.step: unknown key. 'step' is not one of: low, high, log.",
            ),
            ({"rank": {"log": 1, "low": 1, "high": 2}}, "rank.log: received 1; it must be true or false."),
            ({"dropout": {"low": 0, "high": 1}}, "dropout.high: received 1; it must be below 1."),
            ({"dropout": {"low": 0, "high": 0.1, "log": True}}, "a logarithmic scale begins above 0"),
            ({"learning_rate": {"low": 0, "high": 1}}, "learning_rate.low: received 0; it must be above 0."),
            (
                {"head": {"low": 0, "high": 1}},
                "head: received {'high': 1, 'low': 0}; it is no number, so it has no range",
            ),
            ({"rank": {"choice": [8]}}, "rank: received {'choice': [8]}; a choice is between two values or more"),
            ({"rank": {"choice": []}}, "rank.choice: received []; it must not be empty."),
            ({"rank": {"choice": [8, 8]}}, "rank.choice: received [8, 8]; it must not hold 8 twice."),
            ({"rank": {"choice": [8, 0]}}, "rank.choice.1: received 0; it must be at least 1."),
            ({"rank": {"choice": [8, {"of_rank": 1}]}}, "rank.choice.1: received {'of_rank': 1}; it must be a whole"),
            ({"rank": {"choice": 8}}, "rank.choice: received 8; it must be a list."),
            ({"alpha": {"of_rank": 0}}, "alpha.of_rank: received 0; it must be above 0."),
            ({"alpha": {"of_rnk": 1}}, "alpha.of_rnk: this is no task of the study."),
            ({"rank": {"cola": {"low": 0, "high": 8}}}, "rank.cola.low: received 0; it must be at least 1."),
            ({"training": {"precision": "fp32"}}, "training.precision: unknown key. All runs of a study have the same"),
            ({"training": {"max_length": 32}}, "it belongs under 'training' at the top level of the file."),
            ({"training": {"epoch": 3}}, "Did you mean 'epochs'?"),
            ({"training": {"epochs": 0}}, "training.epochs: received 0; it must be above 0."),
            ({"training": {"epochs": 3, "max_steps": {"choice": [2, 3]}}}, "max_steps contradicts epochs"),
            ({"training": 3}, "training: received 3; it must be a mapping"),
        ],
        ids=str,
    )
    def test_what_no_entry_can_say(self, changes, line):
        with pytest.raises(StudyError) as caught:
            searched(methods=[{**WIDE, **changes}])
        assert line in str(caught.value)
        assert "methods.0." in str(caught.value)

    def test_lists_and_tasks_may_hold_them(self):
        entry = {**LORA, "learning_rate": {"cola": [1e-3, RATE], "stsb": 1e-4}}
        made = searched(tasks=["cola", "stsb"], methods=[entry])
        assert [space.dimensions for space in search_spaces(made, "stsb")] == [{}]
        assert [space.dimensions for space in search_spaces(made, "cola")] == [
            {},
            {"learning_rate": Range(1e-5, 1e-3, log=True, whole=False)},
        ]

    def test_a_multiple_of_another_setting(self):
        assert Lora(rank=16, learning_rate=1e-3, alpha={"of_rank": 2}).alpha == 32.0
        with pytest.raises(StudyError, match=r"alpha: received \{'of_rank': 'x'\}; it must be a number"):
            Lora(rank=16, learning_rate=1e-3, alpha={"of_rank": "x"})
        made = study(methods=[{**LORA, "rank": [2, 8], "alpha": [4, {"of_rank": 0.25}]}])
        found = [(run.method.rank, run.method.alpha) for run in plan_runs(made)]
        assert found == [(2, 4.0), (2, 0.5), (8, 4.0), (8, 2.0)]


class TestSpaces:
    def test_each_combination_of_lists_is_one(self):
        made = searched(
            methods=[{**WIDE, "rank": [2, 8]}, {**FULL, "learning_rate": RATE}, {**FULL, "learning_rate": 1}]
        )
        spaces = search_spaces(made, "cola")
        assert [space.name for space in spaces] == ["lora r=2", "lora r=8", "full lr 1e-5..1e-3", "full lr 1e0"]
        assert {space.task for space in spaces} == {"cola"}
        assert [len(space.dimensions) for space in spaces] == [1, 1, 1, 0]

    def test_the_only_space_of_a_method_has_its_name(self):
        made = searched(methods=[WIDE, {**FULL, "learning_rate": RATE}])
        assert [space.name for space in search_spaces(made, "cola")] == ["lora", "full"]

    def test_names_tell_whatever_differs(self):
        entries = [{**WIDE, "alpha": {"of_rank": 2}}, {**WIDE, "alpha": {"choice": [1, {"of_rank": 2}]}}]
        entries += [{**WIDE, "targets": ["key", "query"]}, {**WIDE, "training": {"epochs": 5}}]
        made = searched(methods=entries)
        assert [space.name for space in search_spaces(made, "cola")] == [
            "lora alpha 2*rank, targets query+value",
            "lora alpha 1|2*rank, targets query+value",
            "lora alpha 8, targets key+query",
            "lora alpha 8, targets query+value, epochs 5",
        ]

    def test_a_space_gives_methods_and_training(self):
        entry = {**WIDE, "rank": {"choice": [2, 8]}, "alpha": {"of_rank": 2}}
        entry["training"] = {"max_steps": {"low": 5, "high": 9}, "batch_size": 8}
        (space,) = search_spaces(searched(methods=[entry], training={"epochs": 4, "weight_decay": 0.1}), "cola")
        method, training = space.at({"rank": 8, "learning_rate": 2e-4, "training.max_steps": 7})
        assert method == Lora(rank=8, alpha=16, learning_rate=2e-4)
        assert training == Training(max_steps=7, batch_size=8, weight_decay=0.1)
        with pytest.raises(KeyError, match="takes values of"):
            space.at({"rank": 8})
        with pytest.raises(StudyError, match="rank: received 0"):
            space.at({"rank": 0, "learning_rate": 2e-4, "training.max_steps": 7})

    def test_training_like_the_study_s_is_none_of_its_own(self):
        entry = {**WIDE, "training": {"epochs": {"choice": [3, 4]}}}
        (space,) = search_spaces(searched(methods=[entry]), "cola")
        assert space.at({"learning_rate": 1.0, "training.epochs": 3})[1] is None
        assert space.at({"learning_rate": 1.0, "training.epochs": 4})[1] == Training(epochs=4)

    def test_points(self):
        entry = {**LORA, "rank": {"choice": [2, 8]}, "alpha": {"choice": [1, 2, 3]}}
        assert search_spaces(searched(methods=[entry]), "cola")[0].points == 6
        assert search_spaces(searched(), "cola")[0].points is None

    def test_the_same_twice(self):
        line = refused(methods=[WIDE, FULL, WIDE])
        assert line.startswith("methods: methods.0 and methods.2 both come to the same search space of lora on cola.")

    def test_a_search_plans_no_runs(self):
        assert plan_runs(searched()) == ()
        with pytest.raises(StudyError, match="A search is not extended by seeds or methods"):
            extend_study(searched(), methods=["full learning_rate=1e-4"])


class TestSearch:
    def test_defaults(self):
        made = searched()
        assert made.search == Search(trials=4, sampler="random", pruning=Halving(), select="train-split", seed=0)
        assert made.confirm == Confirm(seeds=10, on="dev")
        assert made.seeds == ()
        assert searched(confirm="none").confirm is None
        assert searched(confirm=None).confirm == Confirm()
        assert searched(search={"seconds": 600, "pruning": "none"}).search.halving is None
        assert searched(search={"trials": 4, "pruning": {"factor": 3}}).search.halving == Halving(factor=3)

    @pytest.mark.parametrize("confirm", [None, "none", {"seeds": 3}])
    def test_it_reads_back_what_it_writes(self, confirm):
        entry = {**WIDE, "alpha": [{"choice": [1, {"of_rank": 2}]}, 3], "targets": {"choice": [["key"], ["query"]]}}
        entry["training"] = {"early_stopping": None, "epochs": {"low": 2, "high": 8, "log": True}}
        made = searched(methods=[entry], confirm=confirm, tasks=["cola", {**OWN, "test": "test.csv"}])
        again = Study.from_dict(yaml.safe_load(made.to_yaml()))
        assert again == made
        assert (again.hash, again.to_yaml()) == (made.hash, made.to_yaml())
        assert pickle.loads(pickle.dumps(made)) == made

    def test_a_study_without_one_is_as_before(self):
        text = study(tasks=[OWN]).to_yaml()
        assert not any(f"\n{key}:" in text for key in ("search", "confirm"))
        assert "test:" not in text
        assert study().hash == "73bd689960c5"

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"seeds": [0]}, "seeds: received [0]; each trial of a search has a seed of its own, and confirm.seeds"),
            ({"selection": "dev"}, "selection: a search has its own: search.select says"),
            (
                {"search": {}},
                "search: received {}; it needs one budget, the same for every method: either trials or sec",
            ),
            ({"search": {"trials": 2, "seconds": 3}}, "it needs one budget"),
            ({"search": {"trials": 0}}, "search.trials: received 0; it must be at least 1."),
            ({"search": {"seconds": 0}}, "search.seconds: received 0; it must be above 0."),
            ({"search": {"seconds": 9, "sampler": "grid"}}, "a grid is tried as a whole: give trials"),
            (
                {"search": {"trials": 4, "sampler": "bohb"}},
                "search.sampler: 'bohb' is not one of: random, sobol, tpe, gri",
            ),
            (
                {"search": {"trials": 4, "sampler": "grid"}},
                "a grid needs choices, and learning_rate of lora on cola is a",
            ),
            (
                {"search": {"trials": 4, "pruning": "hyperband"}},
                "search.pruning: received 'hyperband'; it must be halving",
            ),
            (
                {"search": {"trials": 4, "pruning": {"rungs": [0.5, 0.5]}}},
                "search.pruning.rungs: received [0.5, 0.5]; ea",
            ),
            (
                {"search": {"trials": 4, "pruning": {"fctor": 2}}},
                "search.pruning.fctor: unknown key. 'fctor' is not one",
            ),
            ({"search": {"trials": 4, "seeds": 2}}, "search.seeds: unknown key. It belongs under 'confirm'"),
            ({"search": {"trials": 4, "select": "dev"}}, "confirm.on: dev rows that compare the trials cannot confirm"),
            (
                {"methods": [LORA]},
                "search: nothing is to be searched: no setting under methods has a range or a choice.",
            ),
            (
                {"confirm": {"on": "test"}},
                "tasks.0: cola has no labelled test rows, which confirm: {on: test} judges by.",
            ),
            (
                {"confirm": {"on": "test"}, "tasks": [OWN]},
                "tasks.0: own has no test, the file that confirm: {on: test}",
            ),
            ({"confirm": 3}, "confirm: received 3; it must be a mapping"),
            ({"training": {"early_stopping": 2}}, "training.early_stopping: a search ends trials by its own rule"),
            (
                {"methods": [{**WIDE, "training": {"early_stopping": [None, 2]}}]},
                "methods.0.training.early_stopping: a search ends trials by its own rule",
            ),
            ({"trials": 3}, "trials: unknown key. It belongs under 'search': search.trials."),
            ({"search": {"trials": 99_999}}, "as a whole: it comes to 100009 runs"),
        ],
        ids=str,
    )
    def test_what_it_cannot_be(self, changes, line):
        assert line in refused(**changes)

    @pytest.mark.parametrize(
        ("points", "trials"),
        [([2, 8], 3), ([2, 8, 16, 32, 64], 4)],
    )
    def test_a_grid_is_tried_as_a_whole(self, points, trials):
        entry = {**LORA, "rank": {"choice": points}}
        assert searched(methods=[entry], search={"trials": len(points), "sampler": "grid"})
        line = refused(methods=[entry], search={"trials": trials, "sampler": "grid"})
        assert line == (
            f"search.trials: received {trials}, but the grid of lora on cola has {len(points)} points, and all of them "
            f"are tried. Give trials: {len(points)}."
        )

    def test_sobol_is_for_ranges(self):
        line = refused(methods=[{**LORA, "rank": {"choice": [2, 8]}}], search={"trials": 4, "sampler": "sobol"})
        assert line.startswith("search.sampler: sobol spreads trials over ranges, and lora on cola has choices alone.")

    def test_dev_may_select_where_another_file_judges(self):
        changes = {"search": {"trials": 4, "select": "dev"}, "tasks": [{**OWN, "test": "test.csv"}]}
        assert searched(confirm={"on": "test"}, **changes)
        assert searched(confirm="none", **changes)

    def test_the_test_file_is_no_part_of_a_run_and_found_beside_the_study_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "test.csv").touch()
        task = {**OWN, "test": "test.csv"}
        (tmp_path / "there" / "study.yaml").write_text(yaml.safe_dump({**BASE, "tasks": [task]}))
        found = Study.from_file("there/study.yaml")
        assert found.tasks[0].test == str(tmp_path / "there" / "test.csv")
        assert [run.id for run in plan_runs(found)] == [run.id for run in plan_runs(study(tasks=[OWN]))]

    def test_without_a_search_there_is_nothing_to_draw_or_confirm(self):
        assert problem(methods=[WIDE]) == (
            "methods.0.learning_rate: a range is drawn from by a search, and this study has none. Add search: "
            "{trials: 24}, or give a value, or a list to try all of."
        )
        assert "add search: {trials: 24}" in problem(confirm={"seeds": 3})
        assert len(problems(methods=[{**WIDE, "rank": {"choice": [2, 8]}}, WIDE])) == 3


class TestOwnTraining:
    def test_runs_have_it_in_id_and_label(self):
        entry = {**LORA, "training": {"epochs": [5, 3], "early_stopping": None}}
        made = study(methods=[entry, FULL], training={"early_stopping": 2})
        long, short, full = plan_runs(made)
        assert long.training == Training(epochs=5)
        assert long.label == "lora r=8, lr 4e-4, epochs 5, early_stopping none"
        assert short.label == "lora r=8, lr 4e-4, early_stopping none"
        assert full.training is None
        assert full.label == "full lr 2e-5"
        assert long.id.rpartition("-")[0] == short.id.rpartition("-")[0] == "cola-lora-r8-lr4e-4-s0"
        assert len({long.id, short.id}) == 2

    def test_the_run_is_the_same_as_where_the_study_says_so(self):
        (long,) = plan_runs(study(methods=[{**LORA, "training": {"max_steps": 5}}]))
        (other,) = plan_runs(study(methods=[LORA], training={"max_steps": 5}))
        assert long.id == other.id
        (same,) = plan_runs(study(methods=[{**LORA, "training": {"epochs": 3}}]))
        assert same == plan_runs(study(methods=[LORA]))[0]

    @pytest.mark.parametrize("nothing", [{}, None])
    def test_none_given_is_none(self, nothing):
        assert study(methods=[{**LORA, "training": nothing}]) == study(methods=[LORA])

    def test_two_entries_that_come_to_the_same(self):
        with pytest.raises(StudyError, match="both come to the run 'lora r=8, lr 4e-4'"):
            plan_runs(study(methods=[LORA, {**LORA, "training": {"epochs": 3}}]))

    def test_class_weights_are_checked_there_too(self):
        line = problem(methods=[{**FULL, "training": {"class_weights": [1, 2, 3]}}])
        assert line.startswith("methods.0.training.class_weights: received 3 numbers, but cola has 2 classes.")


class TestSchema:
    schema = study_json_schema()

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"search": {"seconds": 600, "sampler": "tpe", "pruning": "halving", "select": "dev"}, "confirm": "none"},
            {"search": {"trials": 9, "pruning": {"rungs": [0.2]}}, "confirm": {"seeds": 3}},
            {"methods": [{**WIDE, "rank": {"choice": [2, 8]}, "alpha": [1, {"of_rank": 1}]}]},
            {"methods": [{**LORA, "alpha": {"cola": {"choice": [1, {"of_rank": 1}]}}}]},
            {"methods": [{**WIDE, "training": {"epochs": {"low": 1, "high": 3}, "early_stopping": None}}]},
        ],
        ids=str,
    )
    def test_what_a_search_may_say_conforms(self, changes):
        assert searched(**changes)
        data = {**{key: value for key, value in BASE.items() if key != "seeds"}, **said(changes)}
        assert conforms(data, self.schema, self.schema)

    @pytest.mark.parametrize(
        "changes",
        [
            {"seeds": [0]},
            {"search": {"trials": 0}},
            {"search": {"trials": 1, "sampler": "bohb"}},
            {"search": {"trials": 1, "pruning": "hyperband"}},
            {"confirm": {"on": "train"}},
            {"methods": [{**LORA, "rank": {"low": 2}}]},
            {"methods": [{**LORA, "rank": {"choice": [2]}}]},
            {"methods": [{**LORA, "head": {"low": 2, "high": 3}}]},
            {"methods": [{**WIDE, "training": {"precision": "fp32"}}]},
        ],
        ids=str,
    )
    def test_what_it_may_not_say_does_not(self, changes):
        assert refused(**changes)
        data = {**{key: value for key, value in BASE.items() if key != "seeds"}, **said(changes)}
        assert not conforms(data, self.schema, self.schema)
