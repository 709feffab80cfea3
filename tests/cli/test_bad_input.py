"""What users get wrong: one clear message each, exit code 2, and nothing written or lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from safetensors.torch import load_file, save_file

TINY = {"method": "lora", "rank": 2, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Attributes:
        name: What it is.
        says: What the message must hold.
        changes: To a study that is right.
        text: The study file's text instead.
        make: Makes what else is wrong, in the folder that has the study and the model.
        words: After `manytune`.
    """

    name: str
    says: str
    changes: dict[str, Any] = field(default_factory=dict)
    text: str | bytes | None = None
    make: Callable[[Path], object] = lambda folder: None
    words: Sequence[str] = ("run", "study.yaml", "--out", "out")


def training(**settings: Any) -> dict[str, Any]:
    return {"training": {"max_steps": 1, **settings}}


def lora(**settings: Any) -> dict[str, Any]:
    return {"methods": [{**TINY, **settings}]}


def data(name: str, content: str | bytes, rows: int = 20) -> Callable[[Path], object]:
    """A GLUE folder whose train file has good rows and then these bytes."""

    def make(folder: Path) -> None:
        task, _, file = name.partition("/")
        target = folder / "glue" / task
        target.mkdir(parents=True)
        good = b"".join(b"src\t%d\t\tSentence %d.\n" % (row % 2, row) for row in range(rows))
        for split in ("train.tsv", "dev.tsv"):
            (target / split).write_bytes(good)
        raw = content.encode() if isinstance(content, str) else content
        (target / file).write_bytes(good + raw if rows else raw)

    return make


def config(**changes: Any) -> Callable[[Path], object]:
    """A model whose config says something else."""

    def make(folder: Path) -> None:
        path = folder / "tiny" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "tiny" / name).unlink()


def weights(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / "tiny" / "model.safetensors")


def narrower(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
    save_file({**tensors, name: tensors[name][:, :8].contiguous()}, path, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "tiny" / "model.safetensors").rename(folder / "tiny" / "pytorch_model.bin")


def begun(folder: Path, **changes: Any) -> None:
    """A directory that another study was begun in."""
    from manytune.config import Study
    from manytune.storage.directory import Store

    study = yaml.safe_load((folder / "study.yaml").read_text())
    Store.create_or_open(folder / "out", Study.from_dict({**study, "seeds": [7]}))


def newer(folder: Path) -> None:
    (folder / "out" / "runs").mkdir(parents=True)
    shutil.copy(folder / "study.yaml", folder / "out")
    (folder / "out" / "plan.json").write_text('{"schema_version": 99, "packs": []}')


COLA = {"tasks": ["cola"], "data_dir": "glue"}
BAD = [
    # The study file
    Bad("no file", "There is no study file nowhere.yaml", words=("run", "nowhere.yaml", "--out", "out")),
    Bad("a folder", "Is a directory", words=("run", "tiny", "--out", "out")),
    Bad("not yaml", "study.yaml is not valid YAML: line 2, column 1", text="name: x\n]: ["),
    Bad("tabs", "tab", text="name: x\ntraining:\n\tepochs: 1\n"),
    Bad("empty", "is empty", text=""),
    Bad("a list", "must be a mapping", text="- name: x\n"),
    Bad("a key twice", "twice", text="name: x\nname: y\n"),
    Bad("bytes that are no text", "UTF-8", text=b"name: \xff\xfe\n"),
    Bad("nul bytes", "study.yaml", text=b"name: x\x00\n"),
    Bad("an unknown key", "Did you mean 'seeds'?", {"seed": [0]}),
    Bad("an unknown training key", "Did you mean 'epochs'?", training(epoch=3)),
    Bad("a training key at the top", "training.batch_size", {"batch_size": 16}),
    Bad("an unknown method key", "Did you mean 'rank'?", lora(ranks=4)),
    Bad("an unknown method", "Did you mean 'lora'?", {"methods": [{**TINY, "method": "lorra"}]}),
    Bad("no method", "methods", {"methods": []}),
    Bad("no name", "name", {"name": None}),
    Bad("a name with a path", "name", {"name": "../x"}),
    Bad("a wrong type", "training.batch_size", training(batch_size="many")),
    Bad("a fraction of a batch", "training.batch_size", training(batch_size=2.5)),
    Bad("a batch of 0", "training.batch_size", training(batch_size=0)),
    Bad("epochs 0", "training.epochs", {"training": {"epochs": 0}}),
    Bad("a number that is none", "training.weight_decay", training(weight_decay=float("nan"))),
    Bad("a negative rate", "learning_rate", lora(learning_rate=-1e-3)),
    Bad("a rate of 0", "learning_rate", lora(learning_rate=0)),
    Bad("a rate that is a word", "learning_rate", lora(learning_rate="fast")),
    Bad("rank 0", "rank", lora(rank=0)),
    Bad("a rank beyond the layer", "rank", lora(rank=64)),
    Bad("dropout of 1", "dropout", lora(dropout=1.0)),
    Bad("targets that match nothing", "are called: dense, key, query, value", lora(targets=["c_attn"])),
    Bad("no targets", "targets", lora(targets=[])),
    Bad("a seed twice", "twice", {"seeds": [1, 1]}),
    Bad("a seed that is too large", "seeds", {"seeds": [2**40]}),
    Bad("no seeds", "seeds", {"seeds": []}),
    Bad("a task twice", "twice", {"tasks": ["builtin-similarity"] * 2}),
    Bad("an unknown task", "Did you mean 'builtin-similarity'?", {"tasks": ["builtin-simlarity"]}),
    Bad("a mapping that misses a task", "builtin-similarity", lora(learning_rate={"cola": 1e-3})),
    Bad("the same run twice", "methods.0 and methods.1", {"methods": [TINY, TINY]}),
    Bad("two lengths", "contradicts", {"training": {"epochs": 1, "max_steps": 1}}),
    Bad("class weights for a regression", "class_weights", training(class_weights="balanced")),
    Bad("more billions than there are", "max_steps", {"training": {"max_steps": 10**12}}),
    # The command
    Bad("an override without a value", "epochs", words=("run", "study.yaml", "epochs", "--out", "out")),
    Bad("an override of nothing", "nothing", words=("run", "study.yaml", "nothing=1", "--out", "out")),
    Bad("no directory named", "--out is missing", words=("run", "study.yaml")),
    Bad("an empty directory name", "is empty", words=("run", "study.yaml", "--out", "")),
    Bad(
        "a device that is none", "Did you mean 'cpu'?", words=("run", "study.yaml", "--out", "out", "--device", "cpus")
    ),
    # Data
    Bad("no data folder", "glue", {**COLA}),
    Bad("no task in the folder", "CoLA", COLA, make=lambda folder: (folder / "glue").mkdir()),
    Bad("an empty file", "the file is empty", COLA, make=data("CoLA/train.tsv", "", rows=0)),
    Bad("a missing field", "line 21: 3 tab-separated fields", COLA, make=data("CoLA/train.tsv", "src\t1\tThree.\n")),
    Bad("a field too many", "line 21: 5 tab-separated fields", COLA, make=data("CoLA/train.tsv", "a\t1\t\tb\tc\n")),
    Bad("invalid UTF-8", "line 21", COLA, make=data("CoLA/train.tsv", b"src\t1\t\t\xff\xfe\n")),
    Bad("NUL bytes", "line 21: sentence holds a NUL", COLA, make=data("CoLA/train.tsv", b"src\t1\t\ta\x00b\n")),
    Bad("a label out of range", "line 21: label '2'", COLA, make=data("CoLA/train.tsv", "src\t2\t\tLabel.\n")),
    Bad("a label that is a word", "line 21: label 'yes'", COLA, make=data("CoLA/train.tsv", "src\tyes\t\tLabel.\n")),
    Bad("an empty sentence", "line 21: sentence is empty", COLA, make=data("CoLA/train.tsv", "src\t1\t\t  \n")),
    Bad("a blank line", "line 21", COLA, make=data("CoLA/train.tsv", "\nsrc\t1\t\tOne.\n")),
    Bad("the wrong size", "8,551", COLA, make=data("CoLA/train.tsv", "")),
    Bad("the wrong size of dev", "rows", COLA, make=data("CoLA/dev.tsv", "src\t1\t\tOne more.\n")),
    # Models
    Bad("no such folder", "there is no folder", {"model": "./nowhere"}),
    Bad("no such model offline", "minilm", {"model": "no-such/model-at-all"}),
    Bad("a folder without a config", "config.json", make=without("config.json")),
    Bad("a config that is no JSON", "config.json", make=lambda f: (f / "tiny" / "config.json").write_text("{")),
    Bad("a decoder", "gpt2", make=config(model_type="gpt2", architectures=["GPT2Model"])),
    Bad("a model type that nobody knows", "no-such-type", make=config(model_type="no-such-type")),
    Bad("a folder without weights", "model.safetensors", make=without("model.safetensors")),
    Bad("weights that are damaged", "model.safetensors", make=weights(lambda path: path.write_bytes(b"\0" * 64))),
    Bad("weights of another shape", "output.dense.weight", make=weights(narrower)),
    Bad("weights in a pickle alone", "pickle", make=pickled),
    Bad("no tokenizer", "tokenizer", make=lambda f: [p.unlink() for p in (f / "tiny").glob("*token*")]),
    # Directories
    Bad("a file as directory", "is not a directory", make=lambda folder: (folder / "out").touch()),
    Bad("a directory with other files", "holds files but no study", words=("run", "study.yaml", "--out", "tiny")),
    Bad("another study's directory", "--accept-changes", make=begun),
    Bad("a directory of a newer version", "newer manytune", make=newer),
    Bad("status of nothing", "no such directory", words=("status", "nowhere")),
    Bad("show of nothing", "no such directory", words=("show", "nowhere", "run")),
    Bad("report of nothing", "nowhere", words=("report", "nowhere")),
    Bad("compare with nothing", "nowhere", words=("compare", "nowhere", "nowhere")),
]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_there_are_enough() -> None:
    assert len(BAD) >= 60
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_one_clear_message(
    bad: Bad, command: Command, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(tiny, tmp_path / "tiny")
    right = {
        "name": "bad",
        "model": "./tiny",
        "tasks": ["builtin-similarity"],
        "seeds": [0],
        "training": {"max_steps": 1},
        "methods": [TINY],
    }
    text = yaml.safe_dump({**right, **bad.changes}) if bad.text is None else bad.text
    (tmp_path / "study.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    bad.make(tmp_path)
    before = everything(tmp_path)
    done = command(*bad.words, cwd=tmp_path)
    assert done.code == 2, done
    assert bad.says in done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.err
    assert len(done.err) < 3000
    assert everything(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written(command: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    study = {"name": "bad", "model": str(tiny), "tasks": ["builtin-similarity"], "seeds": [0], "methods": [TINY]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = command("run", "study.yaml", "--out", "out", cwd=tmp_path)
    assert done.code == 2
    assert "cannot be written to" in done.err
