"""Every method and family, exported, loaded by the library it was exported for: the same logits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from forked import run_forked
from manytune.config import Study
from manytune.data.tasks import get_task
from manytune.inference.export import export
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord
from manytune.study import run_study
from manytune.utils.errors import DependencyError, StoreError, StudyError
from tiny import TINY_FAMILIES, make_tiny

TASKS = ("builtin-acceptability", "builtin-similarity")
METHODS = ["full", "bitfit", "lora", "merged", "head", "pissa", "merged pissa", "ia3", "ln-tuning"]
KINDS = [*product(TASKS, METHODS), *product(TASKS[:1], ["dora", "merged dora", "vera", "merged vera"])]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@dataclass(frozen=True)
class Trained:
    store: Store
    records: tuple[RunRecord, ...]

    def of(self, task: str, method: str) -> RunRecord:
        wanted = {"merged": "lora"}.get(method, method.removeprefix("merged "))
        by_name = {"pissa" if r.hyperparameters.get("init") == "pissa" else r.method: r for r in self._of_task(task)}
        return by_name[wanted]

    def _of_task(self, task: str) -> list[RunRecord]:
        return [record for record in self.records if record.task == task]


@pytest.fixture(scope="module", params=[*TINY_FAMILIES, "bert without a pooler"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("export")
    model = make_tiny(folder / "model", request.param.split()[0])
    if "without" in request.param:
        weights = model / "model.safetensors"
        kept = {name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}
        save_file(kept, weights, metadata={"format": "pt"})
    study = Study.from_dict(
        {
            "name": "exported",
            "model": str(model),
            "tasks": list(TASKS),
            "seeds": [3],
            "training": {"max_steps": 6, "eval_every": 3, "max_length": 64},
            "methods": [
                {"method": "full", "learning_rate": 1e-3},
                {"method": "bitfit", "learning_rate": 1e-2},
                {"method": "lora", "rank": 3, "alpha": 5, "targets": ["query", "dense"], "learning_rate": 1e-2},
                {"method": "head", "learning_rate": 1e-2, "head": "bias"},
                {"method": "lora", "rank": 2, "init": "pissa", "scaling": "root-rank", "targets": "all-linear"}
                | {"bias": "lora", "freeze_a": True, "learning_rate": 1e-2},
                {"method": "dora", "rank": 3, "targets": ["query", "dense"], "bias": "lora", "learning_rate": 1e-2},
                {"method": "vera", "rank": 40, "targets": ["query", "dense"], "learning_rate": 0.1},
                {"method": "ia3", "learning_rate": 1e-2},
                {"method": "ln-tuning", "biases": False, "learning_rate": 1e-2},
                {"method": "adapter", "reduction_factor": 8, "learning_rate": 1e-2},
            ],
        }
    )
    result = run_study(study, folder / "out", device="cpu", callbacks=[])
    return Trained(Store.open(folder / "out"), result.records)


@torch.no_grad()
def logits(model: Any, tokenizer: Any, texts: Any) -> Any:
    """As a user of transformers computes them."""
    found = []
    for first in range(0, len(texts), 64):
        columns = [list(column) for column in zip(*texts[first : first + 64], strict=True)]
        batch = tokenizer(*columns, padding=True, truncation=True, max_length=64, return_tensors="pt")
        if model.config.type_vocab_size == 1:
            batch.pop("token_type_ids", None)
        found.append(model.eval()(**batch).logits.numpy())
    return np.concatenate(found)


@pytest.mark.parametrize(("task", "method"), KINDS)
def test_the_library_gives_the_recorded_logits(trained: Trained, tmp_path: Path, task: str, method: str) -> None:
    record = trained.of(task, method)
    merged = method.startswith("merged")
    made = export(trained.store, record, tmp_path / "made", merge=merged)
    adapter = method in ("lora", "pissa", "dora", "vera", "ia3", "ln-tuning")
    assert made.form == ("peft" if adapter else "transformers")
    outputs = get_task(task).num_outputs
    if adapter:
        model: Any = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "made", num_labels=outputs)
        names = [path.name for path in (tmp_path / "made").iterdir()]
        assert "adapter_model.safetensors" in names
        assert "model.safetensors" not in names
    else:
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
        labels = get_task(task).labels
        assert model.config.id2label == (dict(enumerate(labels)) if labels else {0: "LABEL_0"})
    examples, kept = trained.store.task_artifacts(task).examples(), trained.store.read_predictions(record.run_id)
    assert examples is not None
    assert kept is not None
    found = logits(model, AutoTokenizer.from_pretrained(tmp_path / "made"), examples.texts)
    np.testing.assert_allclose(found, kept, rtol=0, atol=1e-4 if merged else 1e-5)
    assert made.off <= (1e-4 if merged else 1e-5)
    assert made.rows == len(examples.texts)


@pytest.mark.parametrize(("task", "method"), [(TASKS[0], "full"), (TASKS[1], "lora")])
def test_onnxruntime_gives_the_recorded_logits(trained: Trained, tmp_path: Path, task: str, method: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="manytune[onnx] is not installed")
    record = trained.of(task, method)
    made = export(trained.store, record, tmp_path / "made", form="onnx")
    assert made.form == "onnx"
    assert made.off <= 1e-4
    assert not list(made.folder.glob("*.safetensors"))
    examples, kept = trained.store.task_artifacts(task).examples(), trained.store.read_predictions(record.run_id)
    assert examples is not None
    assert kept is not None
    session = runtime.InferenceSession(made.folder / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    for rows in ([0], [1, 2, 3], list(range(4, 60))):  # one row, a few, many: no axis is fixed
        columns = [list(column) for column in zip(*(examples.texts[row] for row in rows), strict=True)]
        batch = tokenizer(*columns, padding=True, truncation=True, max_length=64, return_tensors="np")
        (found,) = session.run(["logits"], {name: batch[name] for name in names})
        np.testing.assert_allclose(found, kept[rows], rtol=0, atol=1e-4)
    run_forked([sys.executable, "-c", f"{made.call}\nassert len(logits) == 1"], check=True)


def test_what_onnx_needs_is_named(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(DependencyError, match=r"needs onnxscript, which is not installed: pip install .manytune\[onnx"):
        export(trained.store, trained.of(TASKS[0], "full"), tmp_path / "made", form="onnx")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("full", {"form": "onyx"}, "--format: 'onyx' is not one of: peft, transformers, onnx"),
        ("full", {"form": "peft"}, "full lr 1e-3 has no adapter"),
        ("lora", {"form": "peft", "merge": True}, "--merge makes none"),
        ("lora", {"form": "onnx", "base": "them/model"}, "--base: only an adapter names its base model"),
        ("adapter", {"form": "transformers"}, "can be exported as onnx alone: what it trains cannot be merged"),
        ("adapter", {"form": "peft"}, "and peft has no such adapter. `manytune predict` uses the run as it is."),
        ("adapter", {"merge": True}, "adapter reduction=8, lr 1e-2 can be exported as onnx alone"),
    ],
)
def test_formats_that_do_not_go(trained: Trained, tmp_path: Path, method: str, options: Any, message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        export(trained.store, trained.of(TASKS[0], method), tmp_path / "made", **options)


def test_the_call_that_is_printed_loads_it(trained: Trained, tmp_path: Path) -> None:
    for method in ("full", "lora"):
        made = export(trained.store, trained.of(TASKS[0], method), tmp_path / method)
        run_forked([sys.executable, "-c", made.call + "\nassert model.config.num_labels == 2"], check=True)
        assert made.call in (made.folder / "README.md").read_text()


def test_an_adapter_of_the_offline_default_is_loaded_without_a_network(tmp_path: Path) -> None:
    study = Study.from_dict(
        {
            "name": "offline",
            "model": "minilm",
            "tasks": [{"name": "words", "train": str(tmp_path / "rows.csv"), "dev": 0.5, "text": "a", "label": "b"}],
            "seeds": [0],
            "training": {"max_steps": 1, "max_length": 8, "precision": "fp32"},
            "methods": [{"method": "lora", "rank": 2, "learning_rate": 1e-3}],
        }
    )
    (tmp_path / "rows.csv").write_text("a,b\n" + "".join(f"word {row},{row % 2}\n" for row in range(12)))
    (record,) = run_study(study, tmp_path / "out", device="cpu", callbacks=[]).records
    made = export(Store.open(tmp_path / "out"), record, tmp_path / "made")
    assert made.call in (made.folder / "README.md").read_text()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing")}
    check = "assert model.base_model.model.config.num_labels == 2 and len(tokenizer) > 30000"
    subprocess.run([sys.executable, "-c", f"{made.call}\n{check}"], check=True, env=environment)
    for file in (path for folder in (made.folder, tmp_path / "out") for path in folder.rglob("*") if path.is_file()):
        assert file.stat().st_mode & 0o777 == (tmp_path / "rows.csv").stat().st_mode & 0o777, file


def test_a_pipeline_names_the_classes(trained: Trained, tmp_path: Path) -> None:
    export(trained.store, trained.of(TASKS[0], "full"), tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    made = pipeline("text-classification", str(tmp_path / "made"), tokenizer=tokenizer, device="cpu")("The cat sat.")
    assert made[0]["label"] in ("acceptable", "unacceptable")


def test_the_card_is_one_of_the_hubs(trained: Trained, tmp_path: Path) -> None:
    record = trained.of(TASKS[1], "lora")
    export(trained.store, record, tmp_path / "made", base="someone/model@abc")
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert card.data.base_model == "someone/model"
    (pearson,) = [result for result in card.data.eval_results or [] if result.metric_type == "pearsonr"]
    assert pearson.metric_value == pytest.approx(record.scores["pearson"], abs=1e-4)
    assert "- learning_rate: 0.01\n" in card.text
    assert "max_pack" not in card.text


def test_an_adapter_names_the_base_that_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    export(trained.store, trained.of(TASKS[0], "lora"), tmp_path / "made", base="someone/model@abc")
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(tmp_path / "made")
    assert (config.base_model_name_or_path, config.revision) == ("someone/model", "abc")


def test_a_snapshot_that_was_changed_is_noticed_and_nothing_is_written(trained: Trained, tmp_path: Path) -> None:
    record = trained.of(TASKS[0], "head")
    path = trained.store.snapshot_dir(record.run_id) / "snapshot.safetensors"
    before = path.read_bytes()
    try:
        save_file({name: tensor + 0.01 for name, tensor in load_file(path).items()}, path)
        with pytest.raises(StoreError, match=r"snapshot\.safetensors is not the file that the run .* wrote"):
            export(trained.store, record, tmp_path / "made")
        without_digests = record.model_copy(update={"schema_version": 1})  # the logits tell all the same
        with pytest.raises(StoreError, match=r"is not what was trained: its logits are off by up to .* Nothing was"):
            export(trained.store, without_digests, tmp_path / "made")
    finally:
        path.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_predictions_that_were_changed_are_noticed(trained: Trained, tmp_path: Path) -> None:
    record = trained.of(TASKS[0], "full")
    path = trained.store.run_dir(record.run_id) / "predictions.npz"
    before, kept = path.read_bytes(), trained.store.read_predictions(record.run_id)
    assert kept is not None
    without_digests = record.model_copy(update={"schema_version": 1})
    try:
        trained.store.write_predictions(record.run_id, kept + np.float32(1e-5))
        with pytest.raises(StoreError, match=r"predictions\.npz is not the file that the run .* wrote"):
            export(trained.store, record, tmp_path / "made")
        for other in (kept[:-1], kept[:, :1]):
            trained.store.write_predictions(record.run_id, other)
            with pytest.raises(StoreError, match="do not give the score of the run's record"):
                export(trained.store, without_digests, tmp_path / "made")
        path.write_bytes(before)
        with pytest.raises(StoreError, match="do not give the score of the run's record, 2"):
            export(trained.store, record.model_copy(update={"best_score": 2.0}), tmp_path / "made")
    finally:
        path.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with pytest.raises(StoreError, match="is there already"):
        export(trained.store, trained.of(TASKS[0], "full"), tmp_path / "there")
    with pytest.raises(StoreError, match="among the study's own files"):
        export(trained.store, trained.of(TASKS[0], "full"), trained.store.root / "runs" / "made")
    monkeypatch.chdir(trained.store.root)
    with pytest.raises(StoreError, match="other than the present one"):
        export(trained.store, trained.of(TASKS[0], "full"), Path("."))
    with pytest.raises(StudyError, match=r"--merge: bitfit .* has no adapter"):
        export(trained.store, trained.of(TASKS[0], "bitfit"), tmp_path / "made", merge=True)
    with pytest.raises(StudyError, match="--base: only an adapter"):
        export(trained.store, trained.of(TASKS[0], "full"), tmp_path / "made", base="x")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DependencyError, match=r"pip install 'manytune\[peft\]'"):
        export(trained.store, trained.of(TASKS[0], "lora"), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_without_what_it_is_verified_by_it_is_refused(trained: Trained, tmp_path: Path) -> None:
    record = trained.of(TASKS[0], "full")
    path = trained.store.run_dir(record.run_id) / "predictions.npz"
    before = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(StoreError, match="cannot be verified"):
            export(trained.store, record, tmp_path / "made")
    finally:
        path.write_bytes(before)


def test_the_command(trained: Trained, command: Command, tmp_path: Path) -> None:
    run = trained.of(TASKS[0], "lora").run_id
    done = command("export", trained.store.root, "--run", run, "--to", "made", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Wrote made, {run} for peft.\nVerified on 450 dev rows: logits within ")
    assert "AutoPeftModelForSequenceClassification" in done.out
    again = command("export", trained.store.root, "--run", run, "--to", "made", cwd=tmp_path)
    assert again.code == 2
    both = command("export", trained.store.root, "--run", f"{run},{run}", "--to", "two", cwd=tmp_path)
    assert both.code == 2
    assert "an export is of one run" in both.err


def test_what_a_user_puts_into_the_folder_meanwhile_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir(mode=0o700)
    link.symlink_to(folder)
    record = trained.of(TASKS[0], "full")
    with monkeypatch.context() as patch:
        patch.setattr("manytune.inference.export.model_card", lambda *_, **__: (folder / "mine").touch() or "")
        with pytest.raises(StoreError, match="not empty"):
            export(trained.store, record, link)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    (folder / "mine").unlink()
    export(trained.store, record, link)
    assert link.is_symlink()
    assert (folder / "config.json").is_file()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link"}
