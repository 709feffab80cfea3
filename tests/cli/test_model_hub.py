"""Models by their names on the Hugging Face hub, offline: from folders in the layout of the hub's cache."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from command_line import Command, manytune
from huggingface_hub import constants
from transformers import BertModel

from manytune.models.loading import load_backbone, load_config, load_tokenizer, model_spec
from manytune.storage.record import RunRecord
from manytune.utils.errors import ModelError
from tiny import make_tiny

FIRST, SECOND = "1" * 40, "2" * 40
STUDY = """\
name: from-the-hub
tasks: [builtin-similarity]
seeds: [0]
training: {max_steps: 2, precision: fp32}
methods:
  - {method: lora, rank: 2, learning_rate: 1e-3}
"""


@dataclass(frozen=True)
class Hub:
    """A repository in a cache of the hub."""

    cache: Path
    name: str

    @property
    def repository(self) -> Path:
        return self.cache / f"models--{self.name.replace('/', '--')}"

    def add(self, commit: str, folder: Path, *names: str) -> Path:
        """Add a commit with a folder's files, and let branches and tags mean it."""
        snapshot = self.repository / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (self.repository / "refs").mkdir(exist_ok=True)
        for name in names:
            (self.repository / "refs" / name).write_text(commit)
        return snapshot


_NUMBERS = itertools.count()


@pytest.fixture
def hub() -> Hub:
    """A repository of the test's own in this process's cache."""
    return Hub(Path(constants.HF_HUB_CACHE), f"some-org/model-{next(_NUMBERS)}")


@pytest.fixture(scope="module")
def another(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like `tiny`, with other weights."""
    folder = tmp_path_factory.mktemp("another") / "tiny"
    shutil.copytree(tiny, folder)
    model = BertModel.from_pretrained(folder)
    torch.nn.init.zeros_(model.pooler.dense.bias)
    torch.nn.init.ones_(model.pooler.dense.weight)
    model.save_pretrained(folder)
    return folder


def test_a_study_runs_offline_from_the_cache(tiny: Path, another: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    hub = Hub(home / "hub", "some-org/tiny")
    hub.add(FIRST, tiny, "main")
    hub.add(SECOND, another, "v2")
    (tmp_path / "study.yaml").write_text(STUDY)
    words = ("run", "study.yaml", "model=some-org/tiny@v2", "--out", "out", "--quiet")
    done = manytune(*words, cwd=tmp_path, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert (done.code, done.err) == (0, "")

    (run,) = (tmp_path / "out" / "runs").iterdir()
    record = RunRecord.from_json((run / "record.json").read_text())
    assert record.model == "some-org/tiny@v2"
    assert record.provenance.model_revision == SECOND
    assert json.loads((run / "best" / "snapshot.json").read_text())["model_revision"] == SECOND


def test_a_name_means_main_and_a_revision_what_it_says(hub: Hub, tiny: Path, another: Path) -> None:
    hub.add(FIRST, tiny, "main")
    hub.add(SECOND, another, "v2")
    ones = torch.ones(32, 32)
    for revision, commit in {"": FIRST, "@main": FIRST, "@v2": SECOND, f"@{SECOND}": SECOND}.items():
        backbone = load_backbone(hub.name + revision, 2)
        assert (backbone.revision, backbone.name) == (commit, hub.name + revision)
        assert torch.equal(backbone.model.pooler.dense.weight, ones) == (commit == SECOND)
        assert len(load_tokenizer(hub.name + revision)) == 141
        assert model_spec(hub.name + revision, 2) == backbone.model_spec


def test_a_name_that_is_not_there_is_one_clear_message(command: Command, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    done = command("run", "study.yaml", "model=some-org/nothing", "--out", "out", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    assert first.startswith("error: model: the config of 'some-org/nothing' cannot be loaded (HF_HUB_OFFLINE is set): ")
    assert "local folder" in second
    assert "'minilm'" in second
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a/b/c", "what a name", "@main"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="Repo id must"):
        load_config(name, 2)


def test_a_revision_that_is_not_there_is_refused(hub: Hub, tiny: Path) -> None:
    hub.add(FIRST, tiny, "main")
    with pytest.raises(ModelError, match=rf"the config of '{hub.name}@v9' cannot be loaded"):
        load_config(f"{hub.name}@v9", 2)
    with pytest.raises(ModelError, match=rf"the tokenizer of '{hub.name}@v9' cannot be loaded"):
        load_tokenizer(f"{hub.name}@v9")


class Trap:
    """Pickled, it writes a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.path, "sprung")


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_pickle_is_refused_and_never_opened(hub: Hub, tiny: Path, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    if where == "hub":
        hub.add(FIRST, folder, "main")
    with pytest.raises(ModelError, match=r"has no model\.safetensors") as caught:
        load_backbone(hub.name if where == "hub" else str(folder), 2)
    assert "a pickle such as pytorch_model.bin can run any code" in str(caught.value)
    assert "save_pretrained(FOLDER)" in str(caught.value)
    assert not (tmp_path / "trap").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "trap").exists()  # it would have sprung


def test_a_pickle_with_a_conversion_on_the_hub_names_it(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.add(FIRST, folder, "main")
    asked: list[str] = []

    def find(name: str) -> str:
        asked.append(name)
        return "refs/pr/3"

    monkeypatch.setattr("manytune.models.loading.safetensors_revision", find)
    with pytest.raises(ModelError, match=f"{hub.name}@refs/pr/3 has them as safetensors: give that as model"):
        load_backbone(hub.name, 2)
    assert asked == [hub.name]
    with pytest.raises(ModelError, match="If you trust it, convert it once"):
        load_backbone(str(folder), 2)
    assert asked == [hub.name], "a folder is on no hub"


@pytest.mark.parametrize("known", [True, False], ids=["architecture known", "unknown"])
def test_code_that_comes_with_a_model_is_never_run(hub: Hub, tmp_path: Path, known: bool) -> None:
    folder = make_tiny(tmp_path / "model")
    trap = tmp_path / "trap"
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(trap)!r}).touch()\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "class EvilConfig(BertConfig): pass\nclass EvilModel(BertForSequenceClassification): pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForSequenceClassification": "evil.EvilModel",
    }
    if not known:
        config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    hub.add(FIRST, folder, "main")
    for model in (str(folder), hub.name):
        if known:
            assert type(load_backbone(model, 2).model) is BertModel
        else:
            with pytest.raises(ModelError, match="cannot be loaded"):
                load_backbone(model, 2)
    assert not trap.exists()
