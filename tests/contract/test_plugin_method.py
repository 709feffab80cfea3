"""A method that manytune does not know, in this file alone: all that CONTRIBUTING.md asks of a new method.

(IA)³ multiplies keys, values and the input of the second feed-forward layer by learned vectors (Liu et al. 2022).
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
from manytune.methods.adaptation import Adaptation, Hook, ScaleInput, ScaleOutput
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
from manytune.methods.adaptation import Adaptation, ScaleInput, ScaleOutput
from manytune.methods.base import HeadMode, Method
from manytune.utils.fields import Positive
"""


class Ia3(Method):
    """Scale keys, values and the feed-forward's inner activations (Liu et al. 2022)."""

    title = "IA3"
    paper = "https://arxiv.org/abs/2205.05638"
    color = "orange"

    method: Literal["ia3"] = "ia3"
    """Train vectors that scale activations of the frozen backbone."""
    feed_forward: StrictBool = True
    """Whether the feed-forward's inner activations are scaled too."""
    learning_rate: Positive
    """Peak learning rate of AdamW; good values are some hundred times those of full fine-tuning."""
    head: HeadMode = "full"
    """Which parameters of the head train: all of them, its biases, or none."""

    def adapt(self, spec: ModelSpec) -> Adaptation:
        """A factor for each channel of keys, of values, and of what narrows the feed-forward's width again."""
        hooks: list[Hook] = []
        for path, (inputs, outputs) in spec.linears.items():
            if path.endswith((f".{spec.targets['key']}", f".{spec.targets['value']}")):
                hooks.append(ScaleOutput(path, outputs, name="ia3_l"))
            elif inputs > outputs and self.feed_forward:
                hooks.append(ScaleInput(path, inputs, name="ia3_l"))
        return Adaptation(hooks=tuple(hooks), head=self.trained_head(spec.head))


EXAMPLE = Example(
    trains=lambda name: name.endswith(".ia3_l"),
    peft_config=lambda method: peft.IA3Config(
        target_modules=["key", "value", "0.output.dense", "1.output.dense"],
        feedforward_modules=["0.output.dense", "1.output.dense"],
    ),
)


@pytest.fixture(scope="module", autouse=True)
def ia3() -> Iterator[None]:
    register(Ia3)
    EXAMPLES["ia3"] = EXAMPLE
    yield
    del METHODS["ia3"], EXAMPLES["ia3"]


def ia3_cases() -> list[Any]:
    register(Ia3)
    try:
        return [*cases("ia3")]
    finally:
        del METHODS["ia3"]


@pytest.fixture(params=ia3_cases())
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestIa3(MethodContract):
    """It holds to all that every method promises, beside peft's own IA3."""


@dataclass(frozen=True)
class Trained:
    file: Path
    out: Path
    store: Store


@pytest.fixture(scope="module")
def trained(ia3: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A study of a file, run to its end."""
    folder = tmp_path_factory.mktemp("plugin")
    methods = [
        {"method": "ia3", "learning_rate": [1e-2, 3e-2], "feed_forward": {"builtin-similarity": [True, False]}},
        {"method": "lora", "rank": 2, "learning_rate": 1e-2},
    ]
    training = {"max_steps": 4, "eval_every": 2, "precision": "fp32"}
    file = write_small_study(folder, make_tiny(folder / "model"), training, methods=methods)
    result = run_study(Study.from_file(file), folder / "out", executor=Inline("cpu"), callbacks=[])
    assert not result.failed
    return Trained(file, folder / "out", Store.open(folder / "out"))


def test_a_study_is_planned_trained_and_kept(trained: Trained) -> None:
    runs = plan_runs(Study.from_file(trained.file))
    labels = list(dict.fromkeys(run.label for run in runs if run.method.method == "ia3"))
    assert labels == [f"ia3 lr {rate}{rest}" for rest in ("", ", feed_forward False") for rate in ("1e-2", "3e-2")]
    assert re.fullmatch(r"builtin-similarity-ia3-lr1e-2-s0-[0-9a-f]{6}", runs[0].id)
    packs = plan_packs(runs, 16)
    assert [pack.kind for pack in packs] == ["adapters"]  # it shares a pack with LoRA
    assert packs_from_json(json.loads(json.dumps(packs_to_json(packs)))) == packs
    planned = trained.store.read_plan()
    assert planned is not None
    assert {run for pack in planned for run in pack.runs} == set(runs)
    records = trained.store.finished_runs()
    assert [record.label for record in records.values()] == [run.label for run in runs]
    assert records[runs[0].id].hyperparameters["feed_forward"] is True
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
    assert "IA3 lr 1e-2" in text
    assert '"@orange' in text
    assert "c-orange" in text  # a column of the model's drawing
    assert "frozen + IA3" in text


def test_an_export_is_refused_with_a_reason(trained: Trained, tmp_path: Path) -> None:
    record = next(iter(trained.store.finished_runs().values()))
    for form in (None, "transformers", "peft"):
        with pytest.raises(StudyError, match=r"^ia3 lr 1e-2 cannot be exported: .* no form that holds what IA3 trains"):
            export(trained.store, record, tmp_path / "made", form=form)
    assert not (tmp_path / "made").exists()


def test_commands_know_it(tmp_path: Path) -> None:
    methods = CliRunner().invoke(app, ["methods", "--json"])
    (listed,) = (row for row in json.loads(methods.stdout) if row["method"] == "ia3")
    assert listed["hyperparameters"] == ["feed_forward", "learning_rate", "head"]
    assert listed["paper"] == Ia3.paper
    model = str(make_tiny(tmp_path / "model"))
    counted = CliRunner().invoke(app, ["params", model, "--method", "ia3", "--head", "frozen", "--json"])
    (row,) = json.loads(counted.stdout)
    assert row["rank"] is None
    assert row["parameters"]["trainable"] == row["parameters"]["adapter"] == 2 * (32 + 32 + 64)


def test_messages_and_the_schema_know_it() -> None:
    schema = study_json_schema()
    assert schema["$defs"]["Ia3Sweep"]["properties"]["method"]["const"] == "ia3"
    assert {"$ref": "#/$defs/Ia3Sweep"} in schema["properties"]["methods"]["items"]["anyOf"]
    study = {"name": "s", "tasks": ["cola"], "seeds": [0]}
    for methods, expected in (
        ([{"method": "ia"}], r"methods\.0: 'ia' is not one of: full, bitfit, lora, head, ia3\. Did you mean 'ia3'\?"),
        ([{"method": "ia3"}], r"methods\.0\.learning_rate: this key is missing"),
        ([{"method": "ia3", "learning_rate": 1, "feed_forwrd": True}], r"Did you mean 'feed_forward'\?"),
        ([{"method": "ia3", "learning_rate": 1, "rank": 2}], r"It belongs to lora; ia3 takes: method, feed_forward"),
        (
            [{"method": "ia3", "learning_rate": 1, "feed_forward": 2}],
            r"methods\.0\.feed_forward: received 2; it must be true or false",
        ),
    ):
        with pytest.raises(StudyError, match=expected):
            Study.from_dict({**study, "methods": methods})


def test_a_package_that_is_installed_brings_its_methods(tmp_path: Path) -> None:
    """By an entry point, so that the command line and worker processes have them too."""
    source = f"from __future__ import annotations\n\n{IMPORTS}\n\n{inspect.getsource(Ia3)}"
    program = "from manytune.methods import METHODS; print(*METHODS)"
    printed = printed_with_package(tmp_path, source, "manytune.methods", "Ia3", program)
    assert printed == ("full bitfit lora head ia3", "full bitfit lora head")


def test_what_no_method_may_be_is_refused() -> None:
    register(Ia3)  # again is nothing new
    other = type("Other", (Ia3,), {"__doc__": "Another.", "__module__": __name__})
    with pytest.raises(ValueError, match="There is a method 'ia3' already: Ia3"):
        register(other)
    with pytest.raises(TypeError, match=r"Method lacks \['method', 'learning_rate', 'head', 'title'\]"):
        register(Method)


def test_without_it_its_studies_are_refused_and_name_it(trained: Trained) -> None:
    del METHODS["ia3"]
    try:
        with pytest.raises(StudyError, match="'ia3' is not one of: full, bitfit, lora, head"):
            Study.from_file(trained.file)
        with pytest.raises(StudyError, match="There is no such method: 'ia3'"):
            make_method("ia3", learning_rate=1.0)
        with pytest.raises(ManytuneError, match="'ia3' is not one of"):
            Store.open(trained.out).study()
        packs = json.loads((trained.out / "plan.json").read_text())["packs"]
        with pytest.raises(ValueError, match="there is no such method: 'ia3'"):
            packs_from_json(packs)
    finally:
        register(Ia3)
    assert yaml.safe_load(trained.file.read_text())["methods"][0]["method"] == "ia3"
