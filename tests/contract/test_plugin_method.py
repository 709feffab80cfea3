"""A method that manytune does not know, in this file alone: all that CONTRIBUTING.md asks of a new method.

It multiplies values by learned vectors, which is a part of (IA)³ (Liu et al. 2022).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import peft
import pytest
import yaml
from pydantic import StrictBool
from typer.testing import CliRunner

from manytune.cli.main import app
from manytune.config import Study, study_json_schema
from manytune.config.plan import packs_from_json, packs_to_json, plan_packs, plan_runs
from manytune.executors import Inline
from manytune.inference.export import export
from manytune.inference.predictor import load
from manytune.methods import METHODS, make_method, register
from manytune.methods.adaptation import Adaptation, ScaleOutput
from manytune.methods.base import HeadMode, Method
from manytune.report.writing import write_report
from manytune.storage.directory import Store
from manytune.study import run_study
from manytune.utils.errors import ManytuneError, StudyError
from manytune.utils.fields import Positive
from method_contract import EXAMPLES, Case, Example, MethodContract, cases
from plugin_package import printed_with_package
from study_files import write_small_study
from tiny import make_tiny

if TYPE_CHECKING:
    from manytune.models.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


IMPORTS = """
from typing import Literal
from pydantic import StrictBool
from manytune.methods.adaptation import Adaptation, ScaleOutput
from manytune.methods.base import HeadMode, Method
from manytune.utils.fields import Positive
"""


class ValueScale(Method):
    """Scale values (a part of what Liu et al. 2022 scale)."""

    title = "Value scale"
    paper = "https://arxiv.org/abs/2205.05638"
    color = "orange"

    method: Literal["value-scale"] = "value-scale"
    """Train vectors that scale the values of the frozen backbone's attention."""
    first_layer: StrictBool = True
    """Whether the first layer's values are scaled too."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some hundred times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A factor for each channel of values."""
        paths = [path for path in spec.linears if path.endswith(f".{spec.targets['value']}")]
        hooks = (ScaleOutput(path, spec.linears[path][1], name="ia3_l") for path in paths[not self.first_layer :])
        return self.with_head(spec, hooks=hooks)


EXAMPLE = Example(
    trains=lambda name: name.endswith(".ia3_l"),
    peft_config=lambda method: peft.IA3Config(target_modules=["value"], feedforward_modules=[]),
)


@pytest.fixture(scope="module", autouse=True)
def value_scale() -> Iterator[None]:
    register(ValueScale)
    EXAMPLES["value-scale"] = EXAMPLE
    yield
    del METHODS["value-scale"], EXAMPLES["value-scale"]


def value_scale_cases() -> list[Any]:
    register(ValueScale)
    EXAMPLES["value-scale"] = EXAMPLE
    try:
        return [*cases("value-scale")]
    finally:
        del METHODS["value-scale"], EXAMPLES["value-scale"]


@pytest.fixture(params=value_scale_cases())
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestValueScale(MethodContract):
    """It holds to all that every method promises, beside peft's own IA3."""


@dataclass(frozen=True)
class Trained:
    file: Path
    out: Path
    store: Store


@pytest.fixture(scope="module")
def trained(value_scale: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A study of a file, run to its end."""
    folder = tmp_path_factory.mktemp("plugin")
    methods = [
        {"method": "value-scale", "learning_rate": [1e-2, 3e-2], "first_layer": {"builtin-similarity": [True, False]}},
        {"method": "lora", "rank": 2, "learning_rate": 1e-2},
    ]
    training = {"max_steps": 4, "eval_every": 2, "precision": "fp32"}
    file = write_small_study(folder, make_tiny(folder / "model"), training, methods=methods)
    result = run_study(Study.from_file(file), folder / "out", executor=Inline("cpu"), callbacks=[])
    assert not result.failed
    return Trained(file, folder / "out", Store.open(folder / "out"))


def test_a_study_is_planned_trained_and_kept(trained: Trained) -> None:
    runs = plan_runs(Study.from_file(trained.file))
    labels = list(dict.fromkeys(run.label for run in runs if run.method.method == "value-scale"))
    assert labels == [
        f"value-scale lr {rate}{rest}" for rest in ("", ", first_layer False") for rate in ("1e-2", "3e-2")
    ]
    assert re.fullmatch(r"builtin-similarity-value-scale-lr1e-2-s0-[0-9a-f]{6}", runs[0].id)
    packs = plan_packs(runs, 16)
    assert [pack.kind for pack in packs] == ["adapters"]  # it shares a pack with LoRA
    assert packs_from_json(json.loads(json.dumps(packs_to_json(packs)))) == packs
    planned = trained.store.read_plan()
    assert planned is not None
    assert {run for pack in planned for run in pack.runs} == set(runs)
    records = trained.store.finished_runs()
    assert [record.label for record in records.values()] == [run.label for run in runs]
    assert records[runs[0].id].hyperparameters["first_layer"] is True
    assert len({record.best_score for record in records.values()}) > 4  # each trained something of its own


def test_it_predicts(trained: Trained) -> None:
    run = next(iter(trained.store.finished_runs()))
    (made,) = load(trained.out, run=run).predict([("one text", "another")])
    assert made.value is not None


def test_the_report_draws_it(trained: Trained, tmp_path: Path) -> None:
    page, _ = write_report([trained.out], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    assert "could not be made" not in text
    assert "<h2" in text
    assert "Value scale lr 1e-2" in text
    assert '"@orange' in text
    assert "c-orange" in text  # a column of the model's drawing
    assert "frozen + Value scale" in text


def test_an_export_is_refused_with_a_reason(trained: Trained, tmp_path: Path) -> None:
    record = next(iter(trained.store.finished_runs().values()))
    for form in (None, "transformers", "peft"):
        with pytest.raises(
            StudyError, match=r"^value-scale lr 1e-2 cannot be exported: .* no form that holds what Value scale trains"
        ):
            export(trained.store, record, tmp_path / "made", form=form)
    assert not (tmp_path / "made").exists()


def test_commands_know_it(tmp_path: Path) -> None:
    methods = CliRunner().invoke(app, ["methods", "--json"])
    (listed,) = (row for row in json.loads(methods.stdout) if row["method"] == "value-scale")
    assert listed["hyperparameters"] == ["first_layer", "learning_rate", "head"]
    assert listed["paper"] == ValueScale.paper
    model = str(make_tiny(tmp_path / "model"))
    counted = CliRunner().invoke(app, ["params", model, "--method", "value-scale", "--head", "frozen", "--json"])
    (row,) = json.loads(counted.stdout)
    assert row["rank"] is None
    assert row["parameters"]["trainable"] == row["parameters"]["adapter"] == 2 * 32


def test_messages_and_the_schema_know_it() -> None:
    schema = study_json_schema()
    assert schema["$defs"]["ValueScaleSweep"]["properties"]["method"]["const"] == "value-scale"
    assert {"$ref": "#/$defs/ValueScaleSweep"} in schema["properties"]["methods"]["items"]["anyOf"]
    study = {"name": "s", "tasks": ["cola"], "seeds": [0]}
    for methods, expected in (
        (
            [{"method": "value-scal"}],
            rf"methods\.0: 'value-scal' is not one of: {', '.join(METHODS)}\. Did you mean 'value-scale'\?",
        ),
        ([{"method": "value-scale"}], r"methods\.0\.learning_rate: this key is missing"),
        ([{"method": "value-scale", "learning_rate": 1, "first_layr": True}], r"Did you mean 'first_layer'\?"),
        (
            [{"method": "value-scale", "learning_rate": 1, "rank": 2}],
            r"It belongs to lora, dora, vera; value-scale takes: method, first_layer",
        ),
        (
            [{"method": "value-scale", "learning_rate": 1, "first_layer": 2}],
            r"methods\.0\.first_layer: received 2; it must be true or false",
        ),
    ):
        with pytest.raises(StudyError, match=expected):
            Study.from_dict({**study, "methods": methods})


def test_a_package_that_is_installed_brings_its_methods(tmp_path: Path) -> None:
    """By an entry point, so that the command line and worker processes have them too."""
    source = f"from __future__ import annotations\n\n{IMPORTS}\n\n{inspect.getsource(ValueScale)}"
    program = "from manytune.methods import METHODS; print(*METHODS)"
    printed = printed_with_package(tmp_path, source, "manytune.methods", "ValueScale", program)
    assert printed == (" ".join(METHODS), " ".join(name for name in METHODS if name != "value-scale"))


def test_what_no_method_may_be_is_refused() -> None:
    register(ValueScale)  # again is nothing new
    other = type("Other", (ValueScale,), {"__doc__": "Another.", "__module__": __name__})
    with pytest.raises(ValueError, match="There is a method 'value-scale' already: ValueScale"):
        register(other)
    with pytest.raises(TypeError, match=r"Method lacks \['method', 'learning_rate', 'head', 'title'\]"):
        register(Method)


def test_without_it_its_studies_are_refused_and_name_it(trained: Trained) -> None:
    del METHODS["value-scale"]
    try:
        with pytest.raises(StudyError, match="'value-scale' is not one of: full, bitfit, ln-tuning, lora"):
            Study.from_file(trained.file)
        with pytest.raises(StudyError, match="There is no such method: 'value-scale'"):
            make_method("value-scale", learning_rate=1.0)
        with pytest.raises(ManytuneError, match="'value-scale' is not one of"):
            Store.open(trained.out).study()
        packs = json.loads((trained.out / "plan.json").read_text())["packs"]
        with pytest.raises(ValueError, match="there is no such method: 'value-scale'"):
            packs_from_json(packs)
    finally:
        register(ValueScale)
    assert yaml.safe_load(trained.file.read_text())["methods"][0]["method"] == "value-scale"
