"""The example studies and the template that `manytune init` writes: they parse, and plan what they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from typer.main import get_command

import manytune
from manytune.cli import app
from manytune.config import OwnTask, Study, Training
from manytune.config.plan import plan_packs, plan_runs
from manytune.config.spaces import search_spaces
from manytune.data.tasks import TASKS
from manytune.methods import METHODS
from manytune.methods.bitfit import BitFit
from manytune.methods.full import Full
from manytune.methods.head_only import Head
from manytune.methods.lora import Lora

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEMPLATE = Path(manytune.__file__).parent / "config" / "study_template.yaml"
NAMES = [
    "cola-minilm",
    "methods-stsb-minilm",
    "mpnet-glue",
    "quickstart",
    "roberta-glue",
    "search-cola-minilm",
    "search-stsb-minilm",
    "stsb-minilm",
]


def load(name: str) -> Study:
    return Study.from_file(EXAMPLES / f"{name}.yaml")


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("path", [*(EXAMPLES / f"{name}.yaml" for name in NAMES), TEMPLATE], ids=lambda p: p.stem)
def test_each_parses_plans_and_fits_the_page(path):
    study = Study.from_file(path)
    runs = plan_runs(study)
    packs = plan_packs(runs, 16)
    assert len(runs) == sum(len(pack.runs) for pack in packs)
    if study.search is None:
        assert len(runs) > 1
    else:
        every = [name for name in METHODS if name != "head"]  # a search of all that train something of the backbone
        expected = every if "methods" in path.stem else ["full", "bitfit", "lora"]
        assert [space.name for space in search_spaces(study, study.task_names[0])] == expected
    if path != TEMPLATE:
        assert study.name == path.stem
    assert max(len(line) for line in path.read_text(encoding="utf-8").splitlines()) <= 110


def test_the_run_that_the_page_of_studies_shows_is_one_of_its_study(tmp_path):
    page = (EXAMPLES.parent / "docs" / "study.md").read_text(encoding="utf-8")
    text, own, search = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (start,) = re.findall(r"^manytune show results (\S+)", page, re.MULTILINE)
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    runs = plan_runs(Study.from_file(tmp_path / "study.yaml"))
    assert len(runs) == 36
    assert len([run for run in runs if run.id.startswith(start)]) == 1
    # The second block replaces the first one's tasks.
    study = {**yaml.safe_load(text), **yaml.safe_load(own), "methods": [{"method": "full", "learning_rate": 1e-5}]}
    assert Study.from_dict(study).task_names == ("tickets",)
    (tmp_path / "search.yaml").write_text(search, encoding="utf-8")
    spaces = search_spaces(Study.from_file(tmp_path / "search.yaml"), "cola")
    assert [space.name for space in spaces] == ["full", "lora"]


def test_the_template_says_where_its_schema_lies():
    first, *rest = TEMPLATE.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=study.schema.json"
    assert "#   manytune schema > study.schema.json" in rest


def test_roberta_glue_has_every_setting_of_the_published_study():
    study = load("roberta-glue")
    assert (study.model, study.tasks, study.template, study.selection) == (
        "roberta-base",
        ("cola", "stsb"),
        "spaced",
        "dev",
    )
    assert study.training == Training(
        batch_size=16,
        epochs=10,
        max_length=512,
        warmup_steps=200,
        schedule="linear",
        weight_decay=0.1,
        adam_epsilon=1e-6,
        # what transformers.Trainer does by itself
        adam_beta1=0.9,
        adam_beta2=0.999,
        max_grad_norm=1.0,
        accumulate=1,
        eval_every="epoch",
    )
    bitfit = {"cola": [1e-3, 2e-4], "stsb": [2e-4]}
    expected = {
        (task, method)
        for task in ("cola", "stsb")
        for method in (
            Full(learning_rate=2e-5),
            *(BitFit(learning_rate=rate, head="bias") for rate in bitfit[task]),
            *(
                Lora(
                    rank=rank,
                    alpha=8,
                    dropout=0.1,
                    targets=["query", "value"],
                    learning_rate=4e-4,
                    head="frozen",
                )
                for rank in (2, 8, 64, 256)
            ),
        )
    }
    runs = plan_runs(study)
    assert {(run.task, run.method) for run in runs} == expected
    assert len(runs) == 13


def test_quickstart_needs_no_download_and_compares_four_methods():
    study = load("quickstart")
    assert study.model == "minilm"
    (task,) = study.tasks
    assert isinstance(task, OwnTask)
    assert (EXAMPLES.parent / task.train).is_file()
    assert len(study.seeds) >= 5, "fewer give no verdict"
    assert {type(run.method) for run in plan_runs(study)} == {Full, BitFit, Lora, Head}


@pytest.mark.parametrize("name", ["cola-minilm", "stsb-minilm"])
def test_the_minilm_studies_compare_all_methods_on_real_data(name):
    study = load(name)
    assert study.model == "minilm"
    assert study.tasks == (name.partition("-")[0],)
    assert study.seeds == (0, 1, 2, 3, 4)
    runs = plan_runs(study)
    assert {type(run.method) for run in runs} == {Full, BitFit, Lora, Head}
    assert len({run.method.rank for run in runs if isinstance(run.method, Lora)}) >= 2


def words(annotation: object) -> set[str]:
    """The words that a field's type lists."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {word for part in get_args(annotation) for word in words(part)}


MODELS = (Study, Training, OwnTask, *METHODS.values())
KEYS = sorted({name for model in MODELS for name in model.model_fields})
WORDS = sorted({word for model in MODELS for info in model.model_fields.values() for word in words(info.annotation)})


class TestTemplate:
    text = TEMPLATE.read_text(encoding="utf-8")

    @pytest.mark.parametrize("key", KEYS)
    def test_it_has_every_key(self, key):
        assert re.search(rf"(^[ #]*|[{{ ]){key}:( |$)", self.text, re.MULTILINE)

    @pytest.mark.parametrize("word", [*WORDS, *TASKS])
    def test_it_has_every_allowed_word(self, word):
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", self.text)

    def test_the_lists_above_are_not_empty(self):
        assert {"max_pack", "targets", "data_dir"} <= set(KEYS)
        assert {"train-split", "cosine", "balanced", "epoch", "bf16", "frozen", "lora"} <= set(WORDS)

    def test_the_defaults_that_it_names_are_the_real_ones(self):
        named = re.findall(r"\(default: ([\d.]+)\)[^:]*?\n(?: +#.*\n)*? +(?:# )?(\w+): ", self.text)
        assert len(named) >= 5
        for value, key in named:
            assert getattr(Training(), key) == float(value), key


CLUSTER = sorted((EXAMPLES / "cluster").iterdir())


@pytest.mark.parametrize("path", CLUSTER, ids=lambda path: path.name)
def test_a_file_for_clusters_can_be_read_and_its_commands_are_ours(path: Path) -> None:
    """No cluster is here: that they are well formed, and that the command takes what they give it."""
    text = path.read_text()
    if path.suffix == ".yaml":
        assert yaml.safe_load(text)
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
    run: Any = get_command(app)
    options = {name for parameter in run.commands["run"].params for name in parameter.opts}
    assert "--executor" in options
    words = " ".join(line.strip().rstrip("\\") for line in text.splitlines()).split()
    for at in (i for i, word in enumerate(words) if word.endswith("manytune") and words[i + 1 : i + 2] == ["run"]):
        assert "--executor" in words[at : at + 12]
        given = {word.strip("'&") for word in words[at : at + 12] if word.startswith("--")}
        assert given <= options


def test_there_are_files_for_every_kind_of_cluster() -> None:
    assert [path.name for path in CLUSTER] == ["Dockerfile", "cloud.yaml", "kuberay.yaml", "slurm.sh"]
    commands = [path.name for path in CLUSTER if "manytune run" in path.read_text()]
    assert commands == ["cloud.yaml", "kuberay.yaml", "slurm.sh"]
