"""The study file: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from manytune import config
from manytune.config import Study, Training, digest, study_json_schema
from manytune.config.plan import plan_runs
from manytune.config.study_file import Source, apply_overrides, dump, read
from manytune.data.tasks import TASKS
from manytune.methods import METHODS, AnyMethod, make_method
from manytune.methods.bitfit import BitFit
from manytune.methods.full import Full
from manytune.methods.head_only import Head
from manytune.methods.lora import Lora
from manytune.utils.errors import StudyError

FULL = {"method": "full", "learning_rate": 2e-5}
LORA = {"method": "lora", "rank": 8, "learning_rate": 4e-4}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COUNTS = ("batch_size", "max_length", "warmup_steps", "accumulate", "early_stopping")
BASE = {"name": "s", "tasks": ["cola"], "seeds": [0], "methods": [FULL]}


def study(**changes) -> Study:
    return Study.from_dict({**BASE, **changes})


def problems(**changes) -> list[str]:
    """The lines of the message about a study, without its heading and their indentation."""
    with pytest.raises(StudyError) as caught:
        study(**changes)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"The study has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.removeprefix("  ") for line in lines]


def problem(**changes) -> str:
    (line,) = problems(**changes)
    return line


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


GOOD = """\
name: s
tasks: [cola, stsb]
seeds: [0]
training:
  epochs: 10
methods:
  - {method: full, learning_rate: 2e-5}
  - method: lora
    rank: [2, 8]
    learning_rate: {cola: 1e-3, stsb: [1.e-4, 2.0e-04]}
"""


class TestRead:
    def test_a_whole_study(self, write):
        text = GOOD.replace("epochs: 10", "warmup_ratio: 6E-2\n  adam_epsilon: 1e-6\n  max_grad_norm: null")
        read = Study.from_file(write(text))
        assert (read.name, read.model, read.tasks, read.seeds) == ("s", "minilm", ("cola", "stsb"), (0,))
        assert read.training == Training(warmup_ratio=0.06, adam_epsilon=1e-6, max_grad_norm=0.0)
        assert [run.method for run in plan_runs(read) if run.task == "stsb"] == [
            Full(learning_rate=2e-5),
            *(Lora(rank=rank, learning_rate=rate) for rank in (2, 8) for rate in (1e-4, 2e-4)),
        ]

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("1e-3", 0.001),
            ("-4E+2", -400.0),
            (".5", 0.5),
            ("2.", 2.0),
            ("1_0", "1_0"),
            ("010", 10),
            ("12:30", "12:30"),
            ("on", "on"),
            ("no", "no"),
            ("True", True),
            ("null", None),
            ("~", None),
            ("", None),
            ("2024-01-01", "2024-01-01"),
            ("e5", "e5"),
            ("0x10", "0x10"),
            ("'1e-3'", "1e-3"),
        ],
    )
    def test_scalars_are_what_people_expect_today(self, write, written, value):
        result = read(write(f"key: {written}")).data["key"]
        assert (result, type(result)) == (value, type(value))

    def test_anchors_and_merges_work_and_may_override(self, write):
        path = write("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a")
        assert read(path).data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name: x\nseeds: [0]\nname: y", "line 3: the key name is given twice (first on line 1)"),
            ("a: {b: 1, b: 2}", "line 1: the key a.b is given twice (first on line 1)"),
            ("a:\n  - b: 1\n    b: 2", "line 3: the key a.0.b is given twice (first on line 2)"),
            (
                "a: 1\n\tb: 2",
                "line 2, column 1: found character '\\t' that cannot start any token. Indent with",
            ),
            ("a: [1,\n2", "line 2, column 2: expected ',' or ']'"),
            ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
            ("--- {}\n--- {}", "line 2, column 1: but found another document"),
            ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
            ("a: !!timestamp x", "could not determine a constructor for the tag"),
            ("a: !!int x", "invalid literal for int"),
            ("a: !!bool x", "is not a usable YAML file"),
            ("a: " + "9" * 5000, "4300 digits"),
            ("[" * 5000, "nested too deeply"),
            ("a: \x00", "unacceptable character"),
            ("- a", "its top level is a list"),
            ("3", "its top level is the single value 3"),
            ("", "is empty"),
            ("# only a comment\n", "is empty"),
        ],
    )
    def test_what_is_no_study_file(self, write, text, message):
        path = write(text)
        with pytest.raises(StudyError, match=re.escape(message)) as caught:
            Study.from_file(path)
        assert str(caught.value).startswith(str(path))

    def test_files_that_cannot_be_read(self, tmp_path):
        with pytest.raises(StudyError, match=r"no study file .*absent\.yaml.* manytune init"):
            Study.from_file(tmp_path / "absent.yaml")
        with pytest.raises(StudyError, match="cannot be read: Is a directory"):
            Study.from_file(tmp_path)
        (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
        with pytest.raises(StudyError, match="not a text file in UTF-8"):
            Study.from_file(tmp_path / "latin.yaml")

    def test_a_study_that_is_copied_with_its_data_has_the_same_runs(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        task = {"name": "own", "train": "rows.csv", "dev": "dev.csv", "text": "a", "label": "b"}
        ids = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            (folder / "rows.csv").touch()
            (folder / "dev.csv").touch()
            (folder / "study.yaml").write_text(yaml.safe_dump({**BASE, "tasks": [task]}))
            study = Study.from_file(folder / "study.yaml")
            assert study.tasks[0].train == str(folder / "rows.csv")
            ids.append([run.id for run in plan_runs(study)])
        assert ids[0] == ids[1] != []

    def test_relative_paths_are_found_beside_the_file_where_they_lead_nowhere_else(self, tmp_path, monkeypatch):
        beside, here = tmp_path / "study", tmp_path / "here"
        for folder in (beside / "model", here):
            folder.mkdir(parents=True)
        (beside / "rows.csv").touch()
        (beside / "dev.csv").touch()
        (here / "dev.csv").touch()
        data = {**BASE, "model": "model", "data_dir": "glue"}
        data["tasks"] = [{"name": "own", "train": "rows.csv", "dev": "dev.csv", "text": "a", "label": "b"}]
        (beside / "study.yaml").write_text(yaml.safe_dump(data))
        monkeypatch.chdir(here)
        study = Study.from_file("../study/study.yaml")
        assert (study.model, study.data_dir) == (str(beside / "model"), "glue")
        assert (study.tasks[0].train, study.tasks[0].dev) == (str(beside / "rows.csv"), "dev.csv")

    def test_a_byte_order_mark_and_windows_line_ends_are_fine(self, tmp_path):
        path = tmp_path / "study.yaml"
        path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        assert Study.from_file(path).name == "s"

    def test_a_value_that_holds_itself_is_named(self, write):
        with pytest.raises(StudyError, match=r"model \(line 11\): received .*; it must be text"):
            Study.from_file(write(GOOD + "model: &a [*a]"))

    def test_problems_name_the_file_and_the_line(self, write):
        path = write(GOOD.replace("epochs", "epoch").replace("rank: [2, 8]", "rank:\n      - 2\n      - 0"))
        with pytest.raises(StudyError) as caught:
            Study.from_file(path)
        assert str(caught.value).splitlines() == [
            f"{path} has 2 problems:",
            "  training.epoch (line 5): unknown key. "
            f"'epoch' is not one of: {', '.join(Training.model_fields)}. Did you mean 'epochs'?",
            "  methods.1.rank.1 (line 11): received 0; it must be at least 1.",
        ]


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "path", "value"),
        [
            ("name=x", ("name",), "x"),
            ("training.epochs=2.5", ("training", "epochs"), 2.5),
            ("training.schedule = cosine", ("training", "schedule"), "cosine"),
            ("seeds=[3, 4]", ("seeds",), (3, 4)),
            ("training={max_steps: 7}", ("training", "max_steps"), 7),
            ("methods.1.rank=[2,4]", ("methods", 1, "rank"), (2, 4)),
            ("methods.1.rank.1=16", ("methods", 1, "rank"), (2, 16)),
            ("methods.1.learning_rate.stsb=3e-4", ("methods", 1, "learning_rate", "stsb"), (3e-4,)),
            ("methods.0={method: head, learning_rate: 1}", ("methods", 0, "method"), "head"),
            ("data_dir=/a=b", ("data_dir",), "/a=b"),
        ],
    )
    def test_they_set_a_value(self, write, override, path, value):
        reached = Study.from_file(write(GOOD), [override])
        for key in path:
            reached = reached[key] if isinstance(reached, (dict, tuple)) else getattr(reached, key)
        assert reached == value

    def test_the_last_one_wins_and_missing_mappings_are_made(self, write):
        path = write(GOOD.replace("training:\n  epochs: 10\n", ""))
        overrides = ["training.epochs=5", "training.batch_size=8", "training.epochs=6"]
        assert Study.from_file(path, overrides).training == Training(epochs=6, batch_size=8)

    def test_an_empty_mapping_is_filled_and_the_source_stays_as_it_is(self):
        source = Source("s", {"training": None, "methods": [{"rank": 2}]})
        changed = apply_overrides(source, ["training.epochs=5", "methods.0.rank=4"])
        assert changed.data == {"training": {"epochs": 5}, "methods": [{"rank": 4}]}
        assert source.data == {"training": None, "methods": [{"rank": 2}]}

    def test_null_takes_a_value_back(self, write):
        path = write(GOOD)
        assert Study.from_file(path, ["training.epochs=", "training.max_steps=7"]).training.epochs is None

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("epochs", "write key=value or key.sub=value"),
            ("=3", "write key=value or key.sub=value"),
            ("training..epochs=3", "write key=value or key.sub=value"),
            ("name.first=x", "name is the single value 's', so it has no 'first' inside. Set name itself."),
            ("methods.2.rank=4", "methods is a list; its entries go by number (0 to 1), not '2'"),
            ("methods.lora.rank=4", "methods is a list; its entries go by number (0 to 1), not 'lora'"),
            ("methods.-1.rank=4", "not '-1'"),
            ("seeds=[0", "the value of the override 'seeds=[0' is not valid YAML: line 1, column 3"),
            ("training={a: 1, a: 2}", "the key a is given twice"),
        ],
    )
    def test_those_that_lead_nowhere(self, write, override, message):
        with pytest.raises(StudyError, match=re.escape(message)):
            Study.from_file(write(GOOD), [override])

    def test_problems_name_the_override_and_the_nearest_key(self, write):
        overrides = ["methods.1.rank=[2,0]", "trainin.epochs=3"]
        with pytest.raises(StudyError) as caught:
            Study.from_file(write(GOOD), overrides)
        first, second = str(caught.value).splitlines()[1:]
        assert first == ("  methods.1.rank.1 (override methods.1.rank=[2,0]): received 0; it must be at least 1.")
        assert second.startswith("  trainin (override trainin.epochs=3): unknown key.")
        assert second.endswith("Did you mean 'training'?")


class TestRefused:
    """Each with the key path as the user wrote it, the value received and what is allowed."""

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            (
                {"name": "a/b"},
                (
                    "name: received 'a/b'; it must be letters, digits and . _ - (first a letter or digit), "
                    "at most 100 characters."
                ),
            ),
            ({"name": "..", "model": "m"}, "name: received '..'; it must be letters"),
            ({"name": "x\n"}, r"name: received 'x\n'; it must be letters"),
            ({"name": "x" * 101}, "at most 100 characters."),
            ({"name": 3}, "name: received 3; it must be text. If it is meant as text, put it in quotes."),
            ({"model": ""}, "model: received ''; it must not be empty."),
            ({"model": None}, "model: received null; it must be text."),
            ({"tasks": []}, "tasks: received []; it must not be empty."),
            ({"tasks": "cola"}, "tasks: received 'cola'; it must be a list."),
            (
                {"tasks": ["colla"]},
                (f"tasks.0: 'colla' is not one of: {', '.join(TASKS)}. Did you mean 'cola'?"),
            ),
            ({"tasks": ["cola", "cola"]}, "tasks: received ['cola', 'cola']; it must not hold 'cola' twice."),
            ({"data_dir": 3}, "data_dir: received 3; it must be text."),
            ({"seeds": []}, "seeds: received []; it must not be empty."),
            ({"seeds": 0}, "seeds: received 0; it must be a list."),
            ({"seeds": [0, 1, 0]}, "seeds: received [0, 1, 0]; it must not hold 0 twice."),
            ({"seeds": [0, -1]}, "seeds.1: received -1; it must be at least 0."),
            ({"seeds": [2**32]}, "seeds.0: received 4294967296; it must be below 4294967296."),
            ({"seeds": [True]}, "seeds.0: received true; it must be a whole number."),
            (
                {"template": "spacd"},
                "template: 'spacd' is not one of: native, spaced. Did you mean 'spaced'?",
            ),
            ({"selection": 1}, "selection: received 1; it must be one of: dev, train-split, none."),
            ({"training": [1]}, "training: received [1]; it must be a mapping (key: value)."),
            ({"methods": []}, "methods: received []; it must not be empty."),
            ({"methods": {"full": 1}}, "methods: received {'full': 1}; it must be a list."),
            (
                {"methods": ["full"]},
                (
                    "methods.0: received 'full'; it must be a mapping with a key method, one of: "
                    f"{', '.join(METHODS)}; such as {{method: full, learning_rate: 2e-5}}."
                ),
            ),
            (
                {"methods": [{"learning_rate": 1e-3}]},
                "methods.0: received {'learning_rate': 0.001}; it must be a mapping with a key method",
            ),
            ({"methods": [{"method": ["full"]}]}, "it must be a mapping with a key method"),
            (
                {"methods": [{"method": "lorra"}]},
                f"methods.0: 'lorra' is not one of: {', '.join(METHODS)}. Did you mean 'lora'?",
            ),
            ({"methods": [{"method": "full"}]}, "methods.0.learning_rate: this key is missing."),
        ],
        ids=str,
    )
    def test_at_the_top(self, changes, line):
        assert line in problem(**changes)

    @pytest.mark.parametrize(
        ("key", "value", "what"),
        [
            ("batch_size", 0, "received 0; it must be at least 1."),
            ("batch_size", 16.0, "received 16.0; it must be a whole number."),
            ("batch_size", "16", "received '16'; it must be a whole number. Write it without quotes."),
            ("epochs", 0, "received 0; it must be above 0."),
            ("epochs", True, "received true; it must be a number."),
            ("epochs", "1e-3", "received '1e-3'; it must be a number. Write it without quotes."),
            ("epochs", "many", "received 'many'; it must be a number."),
            ("epochs", float("inf"), "received inf; it must be a finite number."),
            ("max_steps", 0, "received 0; it must be at least 1."),
            ("max_length", 3, "received 3; it must be at least 4."),
            ("warmup_steps", -1, "received -1; it must be at least 0."),
            ("warmup_ratio", 1, "received 1; it must be below 1."),
            ("schedule", "cosin", "'cosin' is not one of: linear, constant, cosine. Did you mean 'cosine'?"),
            ("weight_decay", -0.1, "received -0.1; it must be at least 0."),
            ("weight_decay", None, "received null; it must be a number."),
            ("adam_beta1", 1.0, "received 1.0; it must be below 1."),
            ("adam_beta2", -0.5, "received -0.5; it must be at least 0."),
            ("adam_epsilon", 0, "received 0; it must be above 0."),
            ("max_grad_norm", -1, "received -1; it must be at least 0."),
            ("accumulate", 0, "received 0; it must be at least 1."),
            ("eval_every", 0, "received 0; it must be epoch, or a number of optimizer steps, at least 1"),
            ("eval_every", 10**9 + 1, "received 1000000001; it must be epoch, or a number of optimizer steps"),
            ("eval_every", "epochs", "received 'epochs'; it must be epoch, or a number"),
            ("eval_every", True, "received true; it must be epoch, or a number"),
            ("early_stopping", 0, "received 0; it must be at least 1."),
            (
                "class_weights",
                "even",
                ("received 'even'; it must be none, balanced, or a list with a number above 0 for each class."),
            ),
            ("class_weights", [], "received []; it must be none, balanced, or a list"),
            ("class_weights", [1, 0], "received [1, 0]; it must be none, balanced, or a list"),
            ("class_weights", [1, True], "it must be none, balanced, or a list"),
            ("class_weights", [1, float("inf")], "it must be none, balanced, or a list"),
            (
                "class_weights",
                [1.0, 2.0, 3.0],
                "received 3 numbers, but cola has 2 classes. Give one number a class.",
            ),
            ("precision", "fp16", "'fp16' is not one of: auto, fp32, bf16."),
            ("max_pack", 0, "received 0; it must be auto, or a number of runs, at least 1 and at most 1000000000."),
            # More than floats and arrays can count
            ("epochs", 1e300, "received 1e+300; it must be at most 1000000."),
            ("max_steps", 10**20 - 1, "received 99999999999999999999; it must be at most 1000000000."),
            *((key, 10**9 + 1, "it must be at most 1000000000.") for key in COUNTS),
        ],
    )
    def test_in_the_training(self, key, value, what):
        line = problem(training={key: value})
        assert line.startswith(f"training.{key}: ")
        assert what in line

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            ({"rank": 0}, "methods.0.rank: received 0; it must be at least 1."),
            ({"rank": 10**20}, "methods.0.rank: received 100000000000000000000; it must be at most 1000000000."),
            ({"rank": [2, 0]}, "methods.0.rank.1: received 0; it must be at least 1."),
            ({"rank": []}, "methods.0.rank: received []; it must not be empty."),
            ({"rank": [[2]]}, "methods.0.rank.0: received [2]; it must be a whole number."),
            ({"rank": None}, "methods.0.rank: received null; it must be a whole number."),
            ({"rank": [2, 2]}, "methods.0.rank: received [2, 2]; it must not hold 2 twice."),
            ({"rank": {"cola": 0}}, "methods.0.rank.cola: received 0; it must be at least 1."),
            ({"rank": {"cola": [2, 0]}}, "methods.0.rank.cola.1: received 0; it must be at least 1."),
            ({"rank": {"cola": []}}, "methods.0.rank.cola: received []; it must not be empty."),
            ({"rank": {}}, "methods.0.rank: received {}; it must not be empty."),
            ({"learning_rate": 0}, "methods.0.learning_rate: received 0; it must be above 0."),
            (
                {"learning_rate": {"cola": "x"}},
                "methods.0.learning_rate.cola: received 'x'; it must be a number.",
            ),
            ({"alpha": 0}, "methods.0.alpha: received 0; it must be above 0."),
            ({"dropout": 1}, "methods.0.dropout: received 1; it must be below 1."),
            ({"dropout": [0, -0.1]}, "methods.0.dropout.1: received -0.1; it must be at least 0."),
            ({"targets": []}, "methods.0.targets: received []; it must not be empty."),
            ({"targets": "query"}, "methods.0.targets: received 'query'; it must be a list."),
            ({"targets": [["query"], []]}, "methods.0.targets.1: received []; it must not be empty."),
            ({"targets": [["query"], "key"]}, "methods.0.targets.1: received 'key'; it must be a list."),
            (
                {"targets": ["query", "query"]},
                ("methods.0.targets: received ['query', 'query']; it must not hold 'query' twice."),
            ),
            (
                {"targets": ["key", "a b"]},
                "methods.0.targets.1: received 'a b'; it must be the name of a layer, such as query",
            ),
            ({"targets": [["key"], ["key", 3]]}, "methods.0.targets.1.1: received 3; it must be text."),
            ({"targets": {"cola": ["key", 3]}}, "methods.0.targets.cola.1: received 3; it must be text."),
            (
                {"alpha": {"cola": {"cola": 3}}},
                "methods.0.alpha.cola: received {'cola': 3}; it must be a number.",
            ),
            (
                {"head": "froze"},
                "methods.0.head: 'froze' is not one of: full, bias, frozen. Did you mean 'frozen'?",
            ),
            ({"head": ["full", "x"]}, "methods.0.head.1: 'x' is not one of: full, bias, frozen."),
        ],
        ids=str,
    )
    def test_in_a_sweep(self, changes, line):
        assert line in problem(methods=[{**LORA, **changes}])

    @pytest.mark.parametrize(
        ("entry", "line"),
        [
            (
                {**FULL, "head": "frozen"},
                "received 'frozen'; it must be full, since this method trains all of the head.",
            ),
            (
                {**FULL, "head": "bias"},
                "received 'bias'; it must be full, since this method trains all of the head.",
            ),
            ({**FULL, "head": "x"}, "'x' is not one of: full."),
            (
                {**FULL, "method": "head", "head": ["full", "frozen"]},
                (
                    "methods.0.head.1: received 'frozen'; it must be full or bias, since with a "
                    "frozen head nothing would train."
                ),
            ),
        ],
        ids=str,
    )
    def test_heads_that_contradict_the_method(self, entry, line):
        assert line in problem(methods=[entry])

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            (
                {"epochs": 3, "max_steps": 10},
                (
                    "training.max_steps: received 10; it contradicts epochs, which is 3.0: give one of "
                    "the two, and leave the other out or set it to null."
                ),
            ),
            (
                {"warmup_steps": 0, "warmup_ratio": 0.1},
                "training.warmup_ratio: received 0.1; it contradicts warmup_steps, which is 0:",
            ),
        ],
    )
    def test_two_forms_of_one_setting(self, settings, line):
        assert line in problem(training=settings)

    @pytest.mark.parametrize("weights", ["balanced", [1.0, 2.0]])
    def test_class_weights_without_classes(self, weights):
        line = problem(tasks=["stsb"], training={"class_weights": weights})
        assert line == (
            f"training.class_weights: received {tuple(weights) if isinstance(weights, list) else weights!r}, "
            "but no task of this study is a classification. Leave it out."
        )
        assert study(tasks=["stsb", "cola"], training={"class_weights": weights})

    def test_a_mapping_that_does_not_fit_the_tasks(self):
        entry = {**FULL, "learning_rate": {"stsb": 1e-3, "sts-b": 1e-3}}
        assert problems(tasks=["cola", "stsb", "builtin-similarity"], methods=[FULL, entry]) == [
            "methods.1.learning_rate.sts-b: this is no task of the study. "
            "'sts-b' is not one of: cola, stsb, builtin-similarity. Did you mean 'stsb'?",
            "methods.1.learning_rate: it chooses by task, but has nothing for cola, builtin-similarity. "
            "Every task needs a value.",
        ]

    @pytest.mark.parametrize(
        ("changes", "line"),
        [
            (
                {"training": {"batch_sise": 3}},
                "training.batch_sise: unknown key. 'batch_sise' is not one of: batch_size, epochs, ",
            ),
            ({"training": {"batch_sise": 3}}, "Did you mean 'batch_size'?"),
            (
                {"training": {"learning_rate_": 0.1}},
                (
                    "training.learning_rate_: unknown key. Did you mean 'learning_rate'? "
                    f"It belongs to an entry of 'methods' ({', '.join(METHODS)})."
                ),
            ),
            (
                {"training": {"rank": 3}},
                "training.rank: unknown key. It belongs to an entry of 'methods' (lora, dora, vera).",
            ),
            (
                {"training": {"seeds": [0]}},
                "training.seeds: unknown key. It belongs at the top level of the file.",
            ),
            ({"epochs": 3}, "epochs: unknown key. It belongs under 'training': training.epochs."),
            (
                {"zzz": 3},
                (
                    "zzz: unknown key. 'zzz' is not one of: name, model, tasks, data_dir, search, confirm, seeds, "
                    "template, selection, limit, training, methods, report, tracking."
                ),
            ),
            (
                {"methods": [{**FULL, "rank": 3}]},
                "methods.0.rank: unknown key. It belongs to lora, dora, vera; full takes: method, layers, "
                "layerwise_decay, reinit_top, learning_rate, head, head_learning_rate, training.",
            ),
            (
                {"methods": [{**FULL, "epochs": 3}]},
                "methods.0.epochs: unknown key. It belongs under 'training': training.epochs.",
            ),
            ({"methods": [{**LORA, "Rank": 3}]}, "Did you mean 'rank'?"),
            (
                {"methods": [{**LORA, "lora": 3}]},
                "methods.0.lora: unknown key. 'lora' is not one of: method, rank, ",
            ),
        ],
    )
    def test_unknown_keys(self, changes, line):
        assert line in problem(**changes)

    def test_all_problems_come_at_once(self):
        lines = problems(name="", seeds=[-1], training={"epochs": 0, "x": 1}, methods=[{"method": "lora"}, 3])
        assert [line.partition(":")[0] for line in lines] == [
            "name",
            "seeds.0",
            "training.epochs",
            "training.x",
            "methods.0.rank",
            "methods.0.learning_rate",
            "methods.1",
        ]

    def test_what_is_no_mapping_at_all(self):
        with pytest.raises(StudyError, match=r"as a whole: received \[\]; it must be a mapping"):
            Study.from_dict([])

    def test_keys_that_are_not_text(self):
        with pytest.raises(StudyError, match="received 1; keys must be text"):
            Study.from_dict({**BASE, 1: 2})

    def test_required_keys(self):
        with pytest.raises(StudyError) as caught:
            Study.from_dict({})
        assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
            f"{key}: this key is missing." for key in ("name", "tasks", "seeds", "methods")
        ]

    def test_long_values_are_shortened(self):
        assert len(problem(name="x" * 5000)) < 300

    def test_none_of_it_speaks_pydantic(self):
        text = "\n".join(
            problems(name=3, seeds="x", tasks=[3], training={"epochs": "x"}, methods=[{"method": 3}, LORA, 4])
        )
        assert not re.search("[Ii]nput|valid|instance|tuple|discriminator|union|pydantic|<", text)


class TestTraining:
    def test_defaults(self):
        training = study().training
        assert (training.epochs, training.max_steps) == (3.0, None)
        assert (training.warmup_steps, training.warmup_ratio) == (0, None)
        assert study(training=None).training == study(training={}).training == training

    def test_each_length_replaces_the_other(self):
        assert Training(max_steps=5).epochs is None
        assert Training(epochs=None, max_steps=5) == Training(max_steps=5)
        assert Training(epochs=2, max_steps=None) == Training(epochs=2)
        assert Training(epochs=None).epochs == 3.0
        assert Training(warmup_ratio=0.1).warmup_steps is None
        assert Training(warmup_steps=None, warmup_ratio=0).warmup_ratio == 0.0

    def test_no_clipping_has_one_form(self):
        assert Training(max_grad_norm=None) == Training(max_grad_norm=0)

    def test_evaluation_and_weights_take_either_form(self):
        assert Training(eval_every=10).eval_every == 10
        assert Training(class_weights=[1, 2.5]).class_weights == (1.0, 2.5)

    def test_numbers_are_floats_where_fractions_are_allowed(self):
        assert isinstance(Training(epochs=10).epochs, float)


class TestStudy:
    def test_home_is_expanded(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        made = study(data_dir="~/glue", model=Path("~/encoder"))
        assert (made.data_dir, made.model) == ("/home/me/glue", "/home/me/encoder")

    def test_it_takes_concrete_methods_as_well(self):
        methods = [Full(learning_rate=2e-5), Lora(rank=8, learning_rate=4e-4)]
        made = Study(name="s", tasks=["cola"], seeds=[0], methods=methods)
        assert made == study(methods=[FULL, LORA])
        assert Study(name="s", tasks=["cola"], seeds=[0], methods=made.methods) == made

    def test_its_own_constructor_gives_the_same_messages(self):
        with pytest.raises(StudyError, match=r"The study has 1 problem:\n  seeds: received \[\]"):
            Study(name="s", tasks=["cola"], seeds=[], methods=[FULL])

    def test_it_is_frozen(self):
        with pytest.raises(ValueError, match="frozen"):
            study().name = "other"

    def test_it_can_be_pickled(self):
        made = study(methods=[FULL, {**LORA, "rank": [2, 4], "alpha": {"cola": 3}}])
        assert pickle.loads(pickle.dumps(made)) == made

    def test_its_hash_depends_on_what_it_says_and_not_on_how(self):
        assert re.fullmatch("[0-9a-f]{12}", study().hash)
        same = study(training={"epochs": 3}, methods=[{"learning_rate": [2e-5], "method": "full"}])
        assert same.hash == study().hash
        assert study(training={"max_pack": 4, "checkpoint_every": 7}).hash == study().hash
        others = [{"name": "t"}, {"seeds": [1]}, {"training": {"epochs": 4}}, {"methods": [LORA]}]
        assert len({study(**changes).hash for changes in others} | {study().hash}) == 5

    def test_the_hash_is_the_same_everywhere(self):
        assert digest({"b": [1, 2.5, None], "a": "é"}, 12) == "d764fee2563d"


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
rates = st.floats(min_value=1e-12, max_value=1e6)


def axis(values):
    several = values | st.lists(values, min_size=1, max_size=3, unique_by=repr)
    return several | st.fixed_dictionaries({"cola": several, "stsb": several})


class TestYaml:
    @given(
        st.fixed_dictionaries(
            {
                "name": names | st.sampled_from(["1e5", "on", "null", "1.5", "2024-01-01"]),
                "tasks": st.just(["cola", "stsb"]),
                "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
                "methods": st.lists(
                    st.fixed_dictionaries(
                        {
                            "method": st.just("lora"),
                            "rank": axis(st.integers(1, 999)),
                            "learning_rate": axis(rates),
                        },
                        optional={
                            "alpha": axis(rates),
                            "head": axis(st.sampled_from(["full", "bias", "frozen"])),
                            "targets": axis(st.just(["query"]) | st.just(["key", "value"])),
                        },
                    ),
                    min_size=1,
                    max_size=3,
                ),
            },
            optional={
                "model": st.text(min_size=1).filter(lambda text: not text.startswith("~")),
                "training": st.fixed_dictionaries(
                    {},
                    optional={
                        "epochs": rates,
                        "warmup_ratio": st.floats(0, 0.99),
                        "eval_every": st.just("epoch") | st.integers(1, 99),
                        "class_weights": st.sampled_from(["none", "balanced", [0.5, 2]]),
                        "max_grad_norm": st.none() | rates,
                        "early_stopping": st.none() | st.integers(1, 9),
                    },
                ),
            },
        )
    )
    def test_it_round_trips(self, tmp_path_factory, data):
        made = Study.from_dict(data)
        path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
        path.write_text(made.to_yaml(), encoding="utf-8")
        again = Study.from_file(path)
        assert again == made
        assert (again.hash, again.to_yaml()) == (made.hash, made.to_yaml())

    def test_it_reads_well_and_other_readers_read_the_same(self):
        text = study(
            methods=[
                FULL,
                {**LORA, "rank": [2, 8], "targets": [["key", "query"], ["value"]]},
            ]
        ).to_yaml()
        assert text.startswith("name: s\nmodel: minilm\ntasks: [cola]\nseeds: [0]\n")
        assert "\ntraining:\n  batch_size: 16\n  epochs: 3.0\n" in text
        assert "\n- {method: full, learning_rate: 2.0e-05, head: full}\n" in text
        assert "\n  rank: [2, 8]\n  alpha: 8.0\n" in text
        assert "null" not in text
        assert Study.from_dict(yaml.safe_load(text)).to_yaml() == text

    def test_equal_values_are_written_in_full(self):
        shared = [1, 2]
        assert dump({"a": shared, "b": {"c": shared}}) == "a: [1, 2]\nb:\n  c: [1, 2]\n"


class TestMethods:
    def test_the_table_names_every_method(self):
        for name, kind in METHODS.items():
            assert kind.model_fields["method"].default == name
            assert all(info.description for info in kind.model_fields.values())
            assert kind.__doc__

    def test_make_method(self):
        assert make_method("bitfit", learning_rate=1e-3, head="bias") == BitFit(learning_rate=1e-3, head="bias")
        with pytest.raises(StudyError, match=r"There is no such method: 'lorra' is not one of: .*'lora'"):
            make_method("lorra")
        with pytest.raises(StudyError) as caught:
            make_method("lora", rank=0, rnk=3)
        assert str(caught.value).splitlines() == [
            "The method Lora has 3 problems:",
            "  rank: received 0; it must be at least 1.",
            "  learning_rate: this key is missing.",
            "  rnk: unknown key. 'rnk' is not one of: method, rank, alpha, scaling, dropout, targets, layers, init, "
            "freeze_a, bias, b_learning_rate_ratio, learning_rate, head, head_learning_rate. Did you mean 'rank'?",
        ]

    def test_hyperparameters_are_json_and_make_the_method_again(self):
        method = Lora(rank=8, learning_rate=4e-4, targets=["value", "key"])
        facts = json.loads(json.dumps(method.hyperparameters()))
        assert facts["targets"] == ["key", "value"]
        assert make_method("lora", **facts) == method
        assert TypeAdapter(AnyMethod).validate_python({"method": "lora", **facts}) == method

    def test_they_can_be_keys(self):
        assert len({Head(learning_rate=1.0), Head(learning_rate=1.0), Full(learning_rate=1.0)}) == 2

    def test_a_value_for_a_list_needs_no_list_of_lists(self):
        (sweep,) = study(methods=[{**LORA, "targets": ["value", "query"]}]).methods
        assert sweep.values("targets", "cola") == (("query", "value"),)
        (sweep,) = study(methods=[{**LORA, "targets": [["value"], ["query"]]}]).methods
        assert sweep.values("targets", "cola") == (("value",), ("query",))


def conforms(value, schema, root) -> bool:
    """A small JSON Schema validator: the keywords that our schema uses, and a complaint about any other."""
    silent = {"description", "default", "title", "$schema", "$defs"}
    checks = {
        "$ref": lambda ref: conforms(value, root["$defs"][ref.removeprefix("#/$defs/")], root),
        "anyOf": lambda options: any(conforms(value, option, root) for option in options),
        "oneOf": lambda options: sum(conforms(value, option, root) for option in options) == 1,
        "const": lambda constant: value == constant,
        "enum": lambda allowed: value in allowed,
        "type": lambda kinds: any(is_a(value, k) for k in ([kinds] if isinstance(kinds, str) else kinds)),
        "minimum": lambda bound: not is_a(value, "number") or value >= bound,
        "maximum": lambda bound: not is_a(value, "number") or value <= bound,
        "exclusiveMinimum": lambda bound: not is_a(value, "number") or value > bound,
        "exclusiveMaximum": lambda bound: not is_a(value, "number") or value < bound,
        "minLength": lambda least: len(value) >= least,
        "maxLength": lambda most: len(value) <= most,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "minItems": lambda least: len(value) >= least,
        "maxItems": lambda most: len(value) <= most,
        "minProperties": lambda least: len(value) >= least,
        "items": lambda item: all(conforms(entry, item, root) for entry in value),
        "properties": lambda known: all(conforms(value[k], known[k], root) for k in value if k in known),
        "required": lambda keys: all(key in value for key in keys),
        "not": lambda schema: not conforms(value, schema, root),
        "propertyNames": lambda names: all(conforms(key, names, root) for key in value),
        "additionalProperties": lambda rest: all(
            rest is not False and conforms(value[key], rest, root)
            for key in value
            if key not in schema.get("properties", {})
        ),
    }
    if "type" in schema and not checks["type"](schema["type"]):
        return False
    return all(checks[key](allowed) for key, allowed in schema.items() if key not in silent)


def is_a(value, kind: str) -> bool:
    kinds = {"string": str, "array": list, "object": dict, "null": type(None), "boolean": bool}
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kinds[kind])


class TestJsonSchema:
    schema = study_json_schema()

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"model": "roberta-base", "data_dir": None, "template": "spaced"},
            {"training": {"epochs": 0.5, "eval_every": 10, "class_weights": [1, 2], "max_grad_norm": None}},
            {"training": {"max_steps": 3, "eval_every": "epoch", "class_weights": "balanced"}},
            {"methods": [{**LORA, "rank": [2, 8], "targets": ["query"], "learning_rate": {"cola": [1, 2]}}]},
            {"methods": [{**LORA, "targets": [["query"], ["key", "value"]]}]},
            {"methods": [{**LORA, "targets": {"cola": [["query"], ["value"]]}}]},
            {"methods": [{"method": "bitfit", "learning_rate": {"cola": 1}, "head": ["bias", "full"]}]},
            {"methods": [{"method": "head", "learning_rate": 1e-3, "head": "bias"}]},
            {"seeds": {"looks": [5, 10, 20]}, "report": {"margin": 0.02}},
            {"seeds": {"looks": [5, 10], "list": [7, 8]}, "report": {"margin": {"cola": 1}}},
        ],
        ids=str,
    )
    def test_what_a_study_may_say_conforms(self, changes):
        assert study(**changes)
        assert conforms({**BASE, **changes}, self.schema, self.schema)

    @pytest.mark.parametrize(
        "changes",
        [
            {"nam": "x"},
            {"name": "a/b"},
            {"tasks": ["colla"]},
            {"tasks": []},
            {"seeds": [-1]},
            {"seeds": {"looks": [5]}},
            {"seeds": {"looks": [5, 10], "lst": [0]}},
            {"seeds": {"list": [0]}},
            {"report": {"margin": 0}},
            {"report": {"margin": {}}},
            {"template": "spacd"},
            {"training": {"batch_sise": 3}},
            {"training": {"eval_every": "often"}},
            {"training": {"class_weights": []}},
            {"training": {"epochs": 1e300}},
            {"training": {"max_steps": 10**20}},
            {"training": {"eval_every": 10**20}},
            {"methods": []},
            {"methods": [{"learning_rate": 1e-3}]},
            {"methods": [{"method": "lorra", "learning_rate": 1e-3}]},
            {"methods": [{**FULL, "rank": 3}]},
            {"methods": [{**FULL, "head": "frozen"}]},
            {"methods": [{**LORA, "rank": 0}]},
            {"methods": [{**LORA, "rank": []}]},
            {"methods": [{**LORA, "rank": {}}]},
            {"methods": [{**LORA, "targets": "query"}]},
        ],
        ids=str,
    )
    def test_what_it_may_not_say_does_not(self, changes):
        assert problems(**changes)
        assert not conforms({**BASE, **changes}, self.schema, self.schema)

    def test_the_examples_conform(self):
        files = [*EXAMPLES.glob("*.yaml"), Path(config.__file__).with_name("study_template.yaml")]
        assert len(files) == 9
        for path in files:
            assert conforms(read(path).data, self.schema, self.schema), path.name

    def test_it_says_which_dialect_it_is_and_is_json(self):
        assert self.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert json.loads(json.dumps(self.schema)) == self.schema

    def test_every_key_is_described_and_shows_its_default(self):
        described = 0
        for model in (self.schema, *self.schema["$defs"].values()):
            assert model["description"]
            assert model["additionalProperties"] is False
            for key in model["properties"].values():
                assert key["description"]
                described += 1
        assert described == 14 + 16 + 19 + 8 + 6 + 4 + 15 + 15 + 15 + 11 + 6 + 6 + 8 + 6 + 4 + 2 + 1 + 2
        lora = self.schema["$defs"]["LoraSweep"]["properties"]
        assert (lora["alpha"]["default"], lora["targets"]["default"]) == (8.0, ["query", "value"])
        training = self.schema["$defs"]["Training"]["properties"]
        assert (training["epochs"]["default"], training["warmup_steps"]["default"]) == (3.0, 0)
        assert self.schema["properties"]["tasks"]["items"]["oneOf"][0]["enum"] == list(TASKS)


def test_config_and_plan_import_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "scipy", "sklearn", "pandas", "numpy"]
    code = (
        f"import sys, manytune.config, manytune.config.plan\nprint([name for name in {heavy} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(config.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
