"""The command line as a user meets it, on the built-in tasks with a very small random model."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Command, Finished, manytune

from manytune.config import Study
from manytune.config.plan import Run, plan_packs, plan_runs
from manytune.data import metrics
from manytune.data.tasks import TASKS, get_task
from manytune.methods import METHODS
from manytune.models.loading import load_backbone, load_tokenizer
from manytune.packing import Member
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState, history_from_csv
from manytune.training import snapshot
from manytune.training.evaluation import evaluate
from manytune.training.workload import prepare
from manytune.utils.version import __version__

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACCEPTABILITY, SIMILARITY = "builtin-acceptability", "builtin-similarity"

STUDY: Mapping[str, Any] = {
    "name": "small",
    "tasks": [ACCEPTABILITY, SIMILARITY],
    "seeds": [0],
    "training": {"max_steps": 8, "eval_every": 4, "precision": "fp32"},
    "methods": [
        {"method": "full", "learning_rate": 1e-3},
        {"method": "bitfit", "learning_rate": 1e-3},
        {"method": "lora", "rank": [2, 4], "learning_rate": 1e-2},
        {"method": "head", "learning_rate": 1e-3},
        # So large a bias decides alone: on a classification this run predicts one class.
        {"method": "head", "learning_rate": 100.0, "head": "bias"},
    ],
}
HEAD = {"method": "head", "learning_rate": 1e-3}


def write_study(folder: Path, model: object, **changes: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "model": str(model), **changes}, sort_keys=False))
    return path


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a directory: what is in it, and when it was written."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def record_in(directory: Path, run: str) -> RunRecord:
    (path,) = directory.glob(f"runs/{run}*/record.json")
    return RunRecord.from_json(path.read_text())


def score_again(study: Study, run: Run, directory: Path) -> dict[str, float]:
    """Load a run's snapshot and score it on dev, with the Python API alone."""
    task = get_task(run.task)
    work = prepare(study, run.task)
    backbone = load_backbone(study.model, task.num_outputs)
    state, facts = snapshot.load(directory / "runs" / run.id / "best")
    assert (facts["run_id"], facts["task"], facts["seed"]) == (run.id, run.task, run.seed)
    model = snapshot.restore(backbone, [Member(0, work.adaptation(run))], [state])
    return evaluate(model, task, work.dev, [np.arange(work.dev.size)])[0].scores


def refused(done: Finished, *expected: str) -> None:
    """One clear message on standard error, exit code 2, and nothing else."""
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    for text in expected:
        assert text in done.err


@dataclass(frozen=True)
class Finish:
    """One study that was run to its end, in a process of its own."""

    folder: Path
    done: Finished

    @property
    def out(self) -> Path:
        return self.folder / "results"

    @cached_property
    def study(self) -> Study:
        return Study.from_file(self.folder / "study.yaml")

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        return plan_runs(self.study)

    def run(self, task: str, label: str) -> Run:
        (run,) = [run for run in self.runs if run.task == task and run.label.startswith(label)]
        return run

    def copy(self, folder: Path) -> Path:
        """A copy to change: the study's directory inside `folder`."""
        shutil.copy(self.folder / "study.yaml", folder)
        shutil.copytree(self.out, folder / "results")
        return folder / "results"


@pytest.fixture(scope="module")
def finish(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Finish:
    folder = tmp_path_factory.mktemp("finished")
    write_study(folder, tiny)
    return Finish(folder, manytune("run", "study.yaml", "--out", "results", cwd=folder))


class TestRun:
    def test_it_says_how_it_goes_and_prints_the_comparison(self, finish: Finish) -> None:
        assert finish.done.code == 0
        for text in (
            "Built-in acceptability on ",
            "MCC best",
            "Built-in similarity on ",
            "Spearman last",
            *("Full", "BitFit", "LoRA", "Head only"),
            "but these are too few seeds for a verdict, which takes 5.",
            "Results: results\n",
            f"Report: {Path('results', 'report', 'index.html')}\n",
            "manytune show results RUN",
        ):
            assert text in finish.done.out
        for pack in plan_packs(finish.runs, 16):
            assert f"{pack.id}: step 8/8" in finish.done.err

    def test_nobody_else_writes_on_the_terminal(self, finish: Finish) -> None:
        packs = plan_packs(finish.runs, 16)
        baselines = (f"{TASKS[task].title}: " for task in finish.study.tasks)
        ours = (*(f"{pack.id}: " for pack in packs), *baselines, "warning: ", "The packs took ")
        assert [line for line in finish.done.err.splitlines() if not line.startswith(ours)] == []

    def test_a_collapsed_run_is_said_loudly_with_advice(self, finish: Finish) -> None:
        run = finish.run(ACCEPTABILITY, "head lr 1e2, head bias")
        record = record_in(finish.out, run.id)
        assert (record.state, record.best_score) == (RunState.COLLAPSED, 0.0)
        advice = "Use a lower learning rate or a longer warm-up."
        assert advice in record.notes[0]
        (line,) = [line for line in finish.done.err.splitlines() if run.id in line and "warning" in line]
        assert line.startswith(f"warning: {run.id} collapsed: ")
        assert line.endswith(advice)
        assert f"1 of 1 collapsed: {run.id}" in finish.done.out

    def test_the_directory_holds_what_it_should_and_nothing_else(self, finish: Finish) -> None:
        best = ("best/snapshot.json", "best/snapshot.safetensors")
        of_a_run = ("record.json", "history.csv", "predictions.npz", *best)
        expected = {f"runs/{run.id}/{name}" for run in finish.runs for name in of_a_run}
        expected |= {
            f"tasks/{task}/{name}.json"
            for task in finish.study.tasks
            for name in ("examples", "structure", "baselines")
        }
        there = {name for name in files(finish.out) if not name.startswith("report/")}
        assert there == {"study.yaml", "plan.json", "provenance.json", *expected}
        assert len(finish.runs) == 12
        assert Study.from_file(finish.out / "study.yaml") == finish.study

    def test_every_record_tells_the_whole_story(self, finish: Finish) -> None:
        study = finish.study
        packs = plan_packs(finish.runs, 16)
        beside = {run.id: len(pack.runs) for pack in packs for run in pack.runs}
        for run in finish.runs:
            record = record_in(finish.out, run.id)
            identity = (record.run_id, record.study, record.study_hash, record.task, record.model, record.label)
            assert identity == (run.id, "small", study.hash, run.task, study.model, run.label)
            assert (record.method, record.seed) == (run.method.method, 0)
            assert record.hyperparameters["learning_rate"] == run.method.learning_rate
            assert list(record.scores) == list(TASKS[run.task].metrics) == list(record.last_scores)
            assert (record.steps, record.epochs_done) == (8, pytest.approx(8 * 16 / rows_of(run.task)))
            assert record.best_step in (4, 8)
            assert record.parameters == type(record.parameters)(**vars(prepare_once(study, run.task).parameters(run)))
            cost, origin = record.cost, record.provenance
            assert origin.hardware["kernels"] in ("compiled", "plain")
            assert min(cost.train_seconds or 0, cost.eval_seconds or 0, cost.samples_per_second or 0) > 0
            assert cost.pack_size == beside[run.id]
            snapshot_files = (finish.out / "runs" / run.id / "best").iterdir()
            assert cost.snapshot_bytes == sum(path.stat().st_size for path in snapshot_files)
            assert origin.started is not None
            assert origin.finished is not None
            assert origin.started < origin.finished
            assert origin.hardware["device"] == "cpu"
            assert origin.versions["manytune"] == __version__
            assert (origin.model_revision or "").startswith("sha256:")
            assert origin.data_fingerprint == prepare_once(study, run.task).fingerprint

    @pytest.mark.parametrize("task", [ACCEPTABILITY, SIMILARITY])
    def test_kept_predictions_and_examples_give_the_scores_of_the_record(self, finish: Finish, task: str) -> None:
        store = Store.open(finish.out)
        examples = store.task_artifacts(task).examples()
        assert examples is not None
        for run in (run for run in finish.runs if run.task == task):
            logits = store.read_predictions(run.id)
            assert logits is not None
            predictions = TASKS[task].type.decode(logits)
            assert metrics.evaluate(TASKS[task], predictions, np.array(examples.labels)) == pytest.approx(
                record_in(finish.out, run.id).scores, abs=1e-6
            )

    def test_the_structure_says_what_each_method_trains(self, finish: Finish) -> None:
        structure = Store.open(finish.out).task_artifacts(SIMILARITY).structure()
        assert structure is not None
        sizes = {name: math.prod(shape) for name, shape in (structure.tensors | structure.head).items()}
        assert set(structure.trained) == {run.label for run in finish.runs}
        for label, trained in structure.trained.items():
            parameters = record_in(finish.out, finish.run(SIMILARITY, label).id).parameters
            assert sum(sizes[name] for name in trained.biases) == parameters.bias
            assert sum(sizes[name] for name in trained.head) == parameters.head
            assert trained.weights == bool(parameters.backbone)
            assert bool(trained.adapters) == (trained.adapter_label is not None) == bool(parameters.adapter)

    def test_every_history_is_the_evaluations_of_its_run(self, finish: Finish) -> None:
        for run in finish.runs:
            metrics = TASKS[run.task].metrics
            text = (finish.out / "runs" / run.id / "history.csv").read_text()
            header = next(csv.reader(text.splitlines()))
            before = ["step", "epoch", "samples_seen", "train_loss", "learning_rate", "eval_loss"]
            assert header == [*before, *metrics, "seconds"]
            rows = history_from_csv(text)
            assert [(row.step, row.samples_seen) for row in rows] == [(4, 64), (8, 128)]
            assert [row.learning_rate for row in rows] == pytest.approx(
                [run.method.learning_rate * share for share in (5 / 8, 1 / 8)]
            )
            record = record_in(finish.out, run.id)
            scores = {row.step: row.metrics[metrics[0]] for row in rows}
            assert scores[record.best_step or 0] == max(score for score in scores.values() if score is not None)
            assert record.best_score == pytest.approx(scores[record.best_step or 0], abs=1e-5)
            assert record.last_score == pytest.approx(scores[8], abs=1e-5)

    @pytest.mark.parametrize("task", [ACCEPTABILITY, SIMILARITY])
    @pytest.mark.parametrize("label", ["full", "bitfit", "lora r=4", "head lr 1e-3"])
    def test_a_snapshot_that_is_loaded_again_scores_what_the_record_says(
        self, finish: Finish, task: str, label: str
    ) -> None:
        run = finish.run(task, label)
        record = record_in(finish.out, run.id)
        scores = score_again(finish.study, run, finish.out)
        assert scores == pytest.approx(record.scores, abs=1e-9)
        assert scores[record.primary_metric] == pytest.approx(record.best_score, abs=1e-9)


class TestRunAgain:
    def test_what_has_ended_is_not_trained_again(self, finish: Finish, command: Command) -> None:
        before = files(finish.out)
        done = command("run", "study.yaml", "--out", "results", cwd=finish.folder)
        assert done.code == 0
        assert "12 of 12 runs have ended before." in done.err
        assert done.out == finish.done.out
        assert files(finish.out) == before

    def test_a_run_that_is_gone_is_trained_again_alone_and_comes_to_the_same(
        self, finish: Finish, command: Command, tmp_path: Path
    ) -> None:
        out = finish.copy(tmp_path)
        run = finish.run(SIMILARITY, "lora r=2")
        first = record_in(out, run.id)
        shutil.rmtree(out / "runs" / run.id)
        others = {name: file for name, file in files(out).items() if not name.startswith("report/")}

        assert command("run", "study.yaml", "--out", "results", cwd=tmp_path).code == 0
        again = record_in(out, run.id)
        after = files(out)
        assert {name: after[name] for name in others} == others
        assert (first.cost.pack_size, again.cost.pack_size) == (3, 1)
        assert again.best_step == first.best_step
        assert again.scores == pytest.approx(first.scores, abs=1e-3)  # two ranks that swap make 1e-4
        assert again.last_scores == pytest.approx(first.last_scores, abs=1e-3)
        theirs, _ = snapshot.load(finish.out / "runs" / run.id / "best")
        ours, _ = snapshot.load(out / "runs" / run.id / "best")
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            name: tensor.shape for name, tensor in theirs.items()
        }
        # A hundredth of the learning rate: another pack, another order of adding up.
        for name, tensor in ours.items():
            np.testing.assert_allclose(tensor.numpy(), theirs[name].numpy(), atol=1e-4)


class TestTrainSplit:
    def test_a_share_of_train_selects_and_dev_only_scores(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        path = write_study(tmp_path, tiny, tasks=[SIMILARITY], methods=[HEAD], selection="train-split")
        assert command("run", path, "--out", "results", "--quiet", cwd=tmp_path).code == 0
        study = Study.from_file(path)
        (run,) = plan_runs(study)
        record = record_in(tmp_path / "results", run.id)
        rows = history_from_csv((tmp_path / "results" / "runs" / run.id / "history.csv").read_text())
        selected_by = max(row.metrics["pearson"] or -1.0 for row in rows)

        assert record.selection == "train-split"
        assert record.scores == pytest.approx(score_again(study, run, tmp_path / "results"), abs=1e-9)
        assert abs((record.best_score or 0.0) - selected_by) > 1e-4  # the one is dev's, the other train's


class TestFailure:
    def test_a_run_that_fails_is_exit_code_1_and_the_others_go_on(
        self, tiny: Path, command: Command, tmp_path: Path
    ) -> None:
        methods = [{"method": "lora", "rank": 2, "learning_rate": [1e30, 1e-3]}]
        path = write_study(tmp_path, tiny, tasks=[SIMILARITY], methods=methods)
        done = command("run", path, "--out", "results", cwd=tmp_path)
        assert done.code == 1
        failed, finished = (record_in(tmp_path / "results", run.id) for run in plan_runs(Study.from_file(path)))
        assert (failed.state, finished.state) == (RunState.FAILED, RunState.FINISHED)
        assert "learning rate" in (failed.failure or "")
        # Whether squares or differences of what is too large come first, it is no number at the second step.
        assert re.search(rf"error: {failed.run_id} failed: The training loss became (nan|inf) at step 2\.", done.err)
        assert f"1 run failed:\n  {failed.run_id}: {failed.failure}\n" in done.out
        assert "give the same command --retry-failed" in done.out

        shown = command("show", "results", failed.run_id, cwd=tmp_path)
        assert "The training loss became" in shown.out
        assert "Snapshot" not in shown.out

        again = command("run", path, "--out", "results", cwd=tmp_path)
        assert again.code == 1
        assert "2 of 2 runs have ended before." in again.err

    def test_an_interrupted_study_says_how_to_go_on(
        self, tiny: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_args: object, **_options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("manytune.study.run_study", interrupt)
        done = command("run", write_study(tmp_path, tiny), "--out", "results", cwd=tmp_path)
        assert done.code == 130
        assert done.err == "Interrupted. The same command goes on from what is kept.\n"


class TestDryRun:
    def test_it_shows_everything_and_does_nothing(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        shutil.copytree(tiny, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()  # no weights are needed
        path = write_study(tmp_path, "model")
        before = files(tmp_path)
        done = command("run", path, "--dry-run", "--out", "results", cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert files(tmp_path) == before
        assert not (tmp_path / "results").exists()

        study = Study.from_file(path)
        runs = plan_runs(study)
        packs = plan_packs(runs, 16)
        assert f"small: 12 runs in {len(packs)} packs on cpu in float32; nothing is trained." in done.out
        cells = [line.split() for line in done.out.splitlines()]
        for run in runs:
            count = prepare_once(Study.from_dict({**STUDY, "model": str(tiny)}), run.task).parameters(
                Run("", str(tiny), run.task, run.method, run.seed)
            )
            (row,) = [row for row in cells if row[:1] == [run.id]]
            assert row[-4:-2] == [f"{count.total:,}", f"{count.trainable:,}"]
        for pack in packs:
            (row,) = [row for row in cells if row[:1] == [pack.id]]
            assert row[1:4] == [str(len(pack.runs)), "8", "2"]  # runs, steps, evaluations
        assert "In all about " in done.out

    def test_it_says_how_many_rows_are_held_out(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        path = write_study(tmp_path, tiny, methods=[HEAD], selection="train-split")
        done = command("run", path, "tasks=[builtin-similarity]", "--dry-run", cwd=tmp_path)
        rows = rows_of(SIMILARITY)
        assert f"{rows - rows // 10:,} rows to train on, {rows // 10:,} held out to select by" in done.out
        assert "1 run in 1 pack on cpu" in done.out

    def test_it_refuses_what_a_start_would_refuse(self, finish: Finish, command: Command, tmp_path: Path) -> None:
        path = write_study(tmp_path, finish.study.model, seeds=[7])
        done = command("run", path, "--dry-run", "--out", finish.out, cwd=tmp_path)
        refused(done, "already holds a study that differs", "seeds: [0] there, [7] here")


class TestStatusAndShow:
    def test_status(self, finish: Finish, command: Command) -> None:
        done = command("status", "results", cwd=finish.folder)
        assert (done.code, done.err) == (0, "")
        assert "small: 12 runs: " in done.out
        rows = {line.split()[-1]: line for line in done.out.splitlines() if line.strip()}
        for run in finish.runs:
            record = record_in(finish.out, run.id)
            assert f"{record.best_score:.4f}" in rows[run.id]
            assert record.state in rows[run.id]

    def test_status_as_json(self, finish: Finish, command: Command) -> None:
        found = json.loads(command("status", "results", "--json", cwd=finish.folder).out)
        assert (found["study"], found["planned"]) == ("small", 12)
        assert found["counts"]["pending"] == 0
        assert [run["run_id"] for run in found["runs"]] == [run.id for run in finish.runs]
        assert sum(found["counts"].values()) == 12

    def test_status_of_a_study_that_is_half_done(self, finish: Finish, command: Command, tmp_path: Path) -> None:
        out = finish.copy(tmp_path)
        run = finish.run(SIMILARITY, "full")
        shutil.rmtree(out / "runs" / run.id)
        assert "1 pending" in command("status", out, cwd=tmp_path).out
        refused(command("show", out, run.id, cwd=tmp_path), run.id, "has not ended yet", f"status {out}")

    @pytest.mark.parametrize("length", [None, -6], ids=["id", "start"])
    def test_show(self, finish: Finish, command: Command, length: int | None) -> None:
        run = finish.run(SIMILARITY, "lora r=2")
        done = command("show", "results", run.id[:length], cwd=finish.folder)
        record = record_in(finish.out, run.id)
        assert (done.code, done.err) == (0, "")
        for text in (
            run.id,
            f"pearson {record.best_score:.4f}",
            f"{record.parameters.trainable:,} of {record.parameters.total:,} train",
            "in a pack of 3",
            "learning rate",
            f"Snapshot: {Path('results', 'runs', run.id, 'best')}",
        ):
            assert text in done.out

    def test_show_as_json_is_the_record(self, finish: Finish, command: Command) -> None:
        run = finish.run(ACCEPTABILITY, "full")
        done = command("show", "results", run.id, "--json", cwd=finish.folder)
        assert json.loads(done.out) == json.loads((finish.out / "runs" / run.id / "record.json").read_text())

    def test_show_of_what_is_not_there(self, finish: Finish, command: Command) -> None:
        run = finish.run(SIMILARITY, "bitfit")
        for asked in ("zzz", run.id[:-1] + "z"):
            done = command("show", "results", asked, cwd=finish.folder)
            refused(done, f"There is no run {asked!r}", "`manytune status results` lists all runs")
            assert (f"Did you mean {run.id!r}?" in done.err) == (asked != "zzz")

    def test_show_of_several(self, finish: Finish, command: Command) -> None:
        done = command("show", "results", "builtin-similarity-l", cwd=finish.folder)
        refused(done, "is the start of 2 runs", finish.run(SIMILARITY, "lora r=2").id, "Give more of one.")
        assert "and 6 more" in command("show", "results", "builtin", cwd=finish.folder).err

    @pytest.mark.parametrize("words", [("status",), ("show", "x")], ids=["status", "show"])
    def test_a_directory_without_a_study(self, command: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
        first, *rest = words
        refused(command(first, tmp_path, *rest, cwd=tmp_path), "is not a study directory", "no study.yaml")
        refused(command(first, "nowhere", *rest, cwd=tmp_path), "nowhere is not a study directory")


# The published table, with the part of the head that trains: total, trainable, share.
ROBERTA = {
    ("full", None, "full"): (124_647_170, 124_647_170, "100.00 %"),
    ("bitfit", None, "bias"): (124_647_170, 102_914, "0.08 %"),
    ("lora", 2, "frozen"): (124_720_898, 73_728, "0.06 %"),
    ("lora", 8, "frozen"): (124_942_082, 294_912, "0.24 %"),
    ("lora", 64, "frozen"): (127_006_466, 2_359_296, "1.86 %"),
    ("lora", 256, "frozen"): (134_084_354, 9_437_184, "7.04 %"),
}


def counts(done: Finished) -> dict[tuple[str, int | None, str], dict[str, int]]:
    assert (done.code, done.err) == (0, "")
    return {(row["method"], row["rank"], row["head"]): row["parameters"] for row in json.loads(done.out)}


class TestParams:
    def test_roberta_base_has_the_published_counts_without_a_download(self, command: Command, tmp_path: Path) -> None:
        found = counts(command("params", "roberta-base", "--json", cwd=tmp_path))
        assert {key: (found[key]["total"], found[key]["trainable"]) for key in ROBERTA} == {
            key: (total, trainable) for key, (total, trainable, _) in ROBERTA.items()
        }
        parts = ("backbone", "bias", "adapter", "head")
        assert all(row["trainable"] == sum(row[part] for part in parts) for row in found.values())
        assert found["bitfit", None, "full"] == {
            **{"total": 124_647_170, "trainable": 694_274, "backbone": 0},
            **{"bias": 102_144, "adapter": 0, "head": 592_130},
        }
        assert found["head", None, "full"]["trainable"] == 592_130

    def test_the_table_shows_the_same(self, command: Command, tmp_path: Path) -> None:
        done = command("params", "roberta-base", cwd=tmp_path)
        lines = [" ".join(line.split()) for line in done.out.splitlines()]
        assert "method head total trainable of all backbone bias adapter head trained" in lines
        for (method, rank, head), (total, trainable, share) in ROBERTA.items():
            name = method if rank is None else f"{method} r={rank}"
            start = f"{name} {head} {total:,} {trainable:,} {share} "
            assert [line for line in lines if line.startswith(start)], start

    def test_with_one_output(self, command: Command, tmp_path: Path) -> None:
        found = counts(command("params", "roberta-base", "--labels", 1, "--json", cwd=tmp_path))
        assert found["full", None, "full"]["trainable"] == 124_646_401
        assert found["bitfit", None, "bias"]["trainable"] == 102_913
        assert found["head", None, "full"]["trainable"] == 591_361

    def test_of_a_study(self, command: Command, tmp_path: Path) -> None:
        example = EXAMPLES / "roberta-glue.yaml"
        done = command("params", "--study", example, "--json", cwd=tmp_path)
        rows = [row for row in json.loads(done.out) if row["task"] == "cola"]
        found = {(row["method"], row["rank"], row["head"]): row["parameters"]["trainable"] for row in rows}
        assert found == {key: trainable for key, (_, trainable, _) in ROBERTA.items()}
        assert len(rows) == 6  # BitFit's two learning rates count alike
        assert {row["task"] for row in json.loads(done.out)} == {"cola", "stsb"}
        assert "\n  stsb   bitfit " in command("params", "--study", example, cwd=tmp_path).out

    def test_only_what_is_asked_for(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        asked = ("--method", "lora", "--method", "full", "--rank", 3, "--rank", 32, "--head", "full")
        found = counts(command("params", tiny, *asked, "--json", cwd=tmp_path))
        assert set(found) == {("lora", 3, "full"), ("lora", 32, "full"), ("full", None, "full")}
        assert found["lora", 3, "full"]["adapter"] == 2 * 2 * 3 * (32 + 32)  # layers, targets, rank, widths

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("--method", "lorra"), ("--method: 'lorra' is not one of", "Did you mean 'lora'?")),
            (("--head", "half"), ("--head: 'half' is not one of: full, bias, frozen",)),
            (("--method", "full", "--head", "frozen"), ("--head: frozen does not go with full",)),
            (("--method", "lora", "--rank", 33), ("rank 33 exceeds the width", "from 1 to 32")),
            (("--rank", 0), ("rank: received 0",)),
            (
                ("--method", "full", "--rank", 7),
                ("--rank: full has no rank, but lora, dora, vera have one", "--method lora"),
            ),
        ],
        ids=["method", "head", "both", "wide", "zero", "no rank"],
    )
    def test_what_cannot_be_counted(
        self, tiny: Path, command: Command, tmp_path: Path, words: tuple[object, ...], expected: tuple[str, ...]
    ) -> None:
        refused(command("params", tiny, *words, cwd=tmp_path), *expected)


class TestLists:
    def test_tasks(self, command: Command, tmp_path: Path) -> None:
        shown = command("tasks", cwd=tmp_path).out
        listed = json.loads(command("tasks", "--json", cwd=tmp_path).out)
        assert [row["task"] for row in listed] == list(TASKS)
        assert all(name in shown for name in TASKS)
        assert (listed[0]["train"], listed[0]["metrics"]) == (8551, ["matthews_correlation", "accuracy"])
        assert "8,551" in shown

    def test_methods(self, command: Command, tmp_path: Path) -> None:
        shown = command("methods", cwd=tmp_path).out
        listed = json.loads(command("methods", "--json", cwd=tmp_path).out)
        assert [row["method"] for row in listed] == list(METHODS)
        assert all(row["method"] in shown and row["group"] in shown for row in listed)
        assert all(key.isidentifier() for row in listed for key in row)
        assert all(row["hyperparameters"] == [*METHODS[row["method"]].model_fields][1:] for row in listed)
        assert all(row["paper"] is None or row["paper"] in shown for row in listed)

    def test_the_settings_of_a_method(self, command: Command, tmp_path: Path) -> None:
        shown = command("methods", "lora", cwd=tmp_path).out
        (listed,) = json.loads(command("methods", "lora", "--json", cwd=tmp_path).out)
        assert [*listed["settings"]] == listed["hyperparameters"]
        defaults = {name: each["default"] for name, each in listed["settings"].items()}
        assert (defaults["rank"], defaults["alpha"], defaults["freeze_a"]) == ("must be given", "8", "false")
        assert (defaults["targets"], defaults["head_learning_rate"]) == ("query, value", "–")
        assert all(name in shown and each["meaning"][:20] in shown for name, each in listed["settings"].items())
        assert "Did you mean 'lora'?" in command("methods", "lorra", cwd=tmp_path).err

    def test_schema(self, command: Command, tmp_path: Path) -> None:
        schema = json.loads(command("schema", cwd=tmp_path).out)
        assert set(schema["properties"]) == {*Study.model_fields} - {"looks"}  # a part of seeds
        assert schema["oneOf"] == [{"required": ["seeds"]}, {"required": ["search"]}]

    @pytest.mark.parametrize("words", [("-h",), ("run", "-h")], ids=" ".join)
    def test_the_module_is_the_command(self, command: Command, tmp_path: Path, words: tuple[str, ...]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "manytune", *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: manytune ")
        assert done.stdout.split() == command(*words[:-1], "--help", cwd=tmp_path).out.split()

    def test_version(self, tmp_path: Path) -> None:
        command = [Path(sys.executable).with_name("manytune"), "--version"]  # the script as it was installed
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"manytune {__version__}\n", "")


class TestInit:
    def test_it_writes_a_study_that_runs(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        done = command("init", cwd=tmp_path)
        first, second = done.out.splitlines()
        assert first == "Wrote study.yaml. Edit it, then: manytune run study.yaml --out results"
        assert "about five minutes" in second
        assert Study.from_file(tmp_path / "study.yaml").limit == 600, "what the time is of"
        assert Study.from_file(tmp_path / "study.yaml").model == "minilm"
        dry = command("run", "study.yaml", f"model={tiny}", "seeds=[5]", "--dry-run", cwd=tmp_path)
        assert dry.code == 0
        assert "-s5-" in dry.out

    def test_it_overwrites_nothing(self, command: Command, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text("mine")
        refused(command("init", "mine.yaml", cwd=tmp_path), "mine.yaml exists already")
        assert (tmp_path / "mine.yaml").read_text() == "mine"
        refused(command("init", "no/such.yaml", cwd=tmp_path), "no/such.yaml cannot be written")
        (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere.yaml")
        refused(command("init", "link.yaml", cwd=tmp_path), "link.yaml exists already")
        refused(command("init", ".", cwd=tmp_path), "is a directory")

    def test_it_writes_into_a_pipe(self, command: Command, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert command("init", "pipe", cwd=tmp_path).out == ""
            assert os.read(reader, 65536).startswith(b"# yaml-language-server")
        finally:
            os.close(reader)

    def test_what_cannot_be_written_whole_is_not_there(
        self, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Full:
            def read_text(self) -> str:
                return "\udc80"  # which UTF-8 has not

            def __truediv__(self, name: str) -> Full:
                return self

        monkeypatch.setattr("importlib.resources.files", lambda package: Full())
        with pytest.raises(UnicodeEncodeError):
            command("init", cwd=tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (
                ("model=./nowhere",),
                ("model: there is no folder nowhere. A path is looked for from",),
            ),
            (("--out", ""), ("The name of the study directory is empty",)),
            (("modle=minilm",), ("modle", "unknown key", "Did you mean 'model'?")),
            (("tasks=[colla]",), ("'colla' is not one of", "Did you mean 'cola'?")),
            (("training.batch_size=many",), ("training.batch_size", "'many'", "whole number")),
            (("epochs",), ("The override 'epochs' cannot be used", "key.sub=value")),
            (("--device", "tpu"), ("--device: 'tpu' is not one of: auto, cpu, cuda, mps",)),
            (("--devices", "cpu,tpu"), ("--devices: 'tpu' is not one of: auto, cpu, cuda, mps, cuda:N",)),
            (("--devices", "cpu,cpu", "--device", "cpu"), ("--device and --devices: give one of the two",)),
            (("--devices", "cpu,cpu", "--workers", "3"), ("--workers: 3, but --devices names 2",)),
            (("--workers", "-1"), ("--workers: it must be at least 1, not -1",)),
            (("--threads-per-worker", "-1"), ("--threads-per-worker: it must be at least 1, not -1",)),
            (("--workers", "2", "--device", "cuda"), ("--workers: they share the CPU's cores", "name --devices")),
            (("--executor", "rey"), ("--executor: 'rey' is not one of: local, ray", "Did you mean 'ray'?")),
            (("--ray-address", "auto"), ("--ray-address: it goes with --executor ray, and not with local",)),
            (("--executor", "ray", "--workers", "2"), ("--workers: it goes with --executor local, and not with ray",)),
            (("--executor", "ray", "--device", "cpu"), ("--device: on a Ray cluster, --pack-resources says",)),
            (("--executor", "ray", "--pack-resources", "tpu=1"), ("--pack-resources: 'tpu=1' is not one of cpu=N",)),
            (("tracking=[tensorbored]",), ("tracking.0", "Did you mean 'tensorboard'?")),
            (
                ("methods.2.targets=[q_proj]",),
                ("'q_proj' matches no linear layer", "dense, key, query, value"),
            ),
            (("methods.2.rank=33",), ("rank 33 exceeds the width", "from 1 to 32")),
            (("training.class_weights=[1,2,3]", "tasks=[builtin-acceptability]"), ("3 numbers", "2 classes")),
            (
                ("methods=[{method: full, learning_rate: 1}, {method: full, learning_rate: 1.0}]",),
                ("methods.0 and methods.1 both",),
            ),
            (("training.max_length=4", "tasks=[builtin-similarity]"), ("training.max_length", "at least 5")),
        ],
        ids=lambda value: str(value[0])[:24] if isinstance(value, tuple) else None,
    )
    def test_a_study_that_cannot_run_leaves_nothing_behind(
        self, tiny: Path, command: Command, tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]
    ) -> None:
        path = write_study(tmp_path, tiny)
        refused(command("run", path, "--out", "results", *words, cwd=tmp_path), *expected)
        assert not (tmp_path / "results").exists()

    def test_a_tokenizer_of_another_model(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny, tmp_path / "model"))
        known = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokenizer = load_tokenizer(str(folder))
        tokenizer.add_tokens(["the"])
        tokenizer.save_pretrained(folder)
        for words in (("--dry-run",), ("--out", "results")):
            done = command("run", write_study(tmp_path, "model"), *words, cwd=tmp_path)
            refused(done, "the tokenizer of model gives the token id", f"embeddings for 0 to {known - 1}")
        assert not (tmp_path / "results").exists()

    def test_a_study_file_that_is_not_there(self, command: Command, tmp_path: Path) -> None:
        done = command("run", "nowhere.yaml", "--out", "results", cwd=tmp_path)
        refused(done, "There is no study file nowhere.yaml", "manytune init nowhere.yaml")

    def test_no_out(self, tiny: Path, command: Command, tmp_path: Path) -> None:
        refused(command("run", write_study(tmp_path, tiny), cwd=tmp_path), "--out is missing", "--out results")

    def test_out_with_another_study(self, finish: Finish, command: Command, tmp_path: Path) -> None:
        before = files(finish.out)
        done = command("run", finish.folder / "study.yaml", "seeds=[1]", "--out", finish.out, cwd=tmp_path)
        refused(done, "already holds a study that differs", "seeds: [0] there, [1] here", "Give another --out")
        assert files(finish.out) == before

    @pytest.mark.parametrize(
        ("make", "expected"),
        [
            (
                lambda out: (out.mkdir(), (out / "thesis.tex").touch()),
                "holds files but no study (thesis.tex)",
            ),
            (Path.touch, "is not a directory"),
        ],
        ids=["foreign files", "a file"],
    )
    def test_out_that_is_somebody_elses(
        self, tiny: Path, command: Command, tmp_path: Path, make: Callable[[Path], object], expected: str
    ) -> None:
        make(tmp_path / "results")
        refused(command("run", write_study(tmp_path, tiny), "--out", "results", cwd=tmp_path), expected)

    def test_a_device_that_is_not_here(
        self, tiny: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules["manytune.utils.hardware"]._AVAILABLE, "mps", lambda: False)
        path = write_study(tmp_path, tiny)
        done = command("run", path, "--out", "results", "--device", "mps", cwd=tmp_path)
        refused(done, "--device: mps is not available on this machine", "auto, cpu")

    def test_once_mended_the_study_runs_in_the_same_directory(
        self, tiny: Path, command: Command, tmp_path: Path
    ) -> None:
        path = write_study(tmp_path, tiny, tasks=["cola"], methods=[HEAD], data_dir="nowhere")
        refused(command("run", path, "--out", "results", cwd=tmp_path), "data_dir: nowhere is not a folder")
        words = ("data_dir=null", "tasks=[builtin-similarity]", "training.max_steps=1")
        assert command("run", path, *words, "--out", "results", "--quiet", cwd=tmp_path).code == 0


class TestData:
    @pytest.fixture
    def glue(self, tmp_path: Path) -> Path:
        folder = tmp_path / "glue" / "CoLA"
        folder.mkdir(parents=True)
        for split in ("train", "dev"):
            lines = [f"src\t{index % 2}\t\tSentence {index}." for index in range(10)]
            (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        return folder

    def start(self, tiny: Path, command: Command, tmp_path: Path) -> Finished:
        path = write_study(tmp_path, tiny, tasks=["cola"], methods=[HEAD], data_dir="glue")
        return command("run", path, "--out", "results", cwd=tmp_path)

    def test_a_split_of_the_wrong_size(self, glue: Path, tiny: Path, command: Command, tmp_path: Path) -> None:
        done = self.start(tiny, command, tmp_path)
        refused(done, "train.tsv: 10 rows, but CoLA's train split has 8,551", "quoting")
        assert not (tmp_path / "results").exists()

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("src\t2\t\tA label.", "line 11: label '2' is not one of: 0 (unacceptable), 1 (acceptable)"),
            ("src\t1\tThree fields.", "line 11: 3 tab-separated fields, but 4 are needed"),
            ("src\t1\t\t ", "line 11: sentence is empty"),
        ],
        ids=["label", "fields", "empty"],
    )
    def test_a_row_that_cannot_be_right(
        self, glue: Path, tiny: Path, command: Command, tmp_path: Path, line: str, expected: str
    ) -> None:
        with (glue / "train.tsv").open("a") as file:
            file.write(line + "\n")
        refused(self.start(tiny, command, tmp_path), str(Path("glue", "CoLA", "train.tsv")), expected)

    def test_a_folder_without_the_task(self, glue: Path, tiny: Path, command: Command, tmp_path: Path) -> None:
        glue.rename(glue.with_name("MRPC"))
        refused(self.start(tiny, command, tmp_path), "holds nothing for task cola, but: MRPC", "CoLA/train.tsv")

    def test_a_split_that_is_missing(self, glue: Path, tiny: Path, command: Command, tmp_path: Path) -> None:
        (glue / "train.tsv").unlink()
        refused(self.start(tiny, command, tmp_path), "no train.tsv for the train split of task cola")


class TestUsage:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (("run",), "Missing argument 'STUDY.yaml'"),
            (("run", "x.yaml", "--fast"), "No such option: --fast"),
            (("trian",), "No such command 'trian'"),
            (("show", "results"), "Missing argument 'RUN'"),
            (("params",), "give a MODEL or --study"),
            (("params", "minilm", "--study", "x.yaml"), "give a MODEL or --study"),
            (("params", "--study", "x.yaml", "--rank", "2"), "go with a MODEL"),
            (("params", "minilm", "--labels", "0"), "'--labels'"),
            (("params", "minilm", "--labels", "two"), "'--labels'"),
            (("params", "minilm", "--labels", "99999999999"), "less than or equal to 100000"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_command_that_cannot_be_is_a_short_message(
        self, command: Command, tmp_path: Path, words: tuple[str, ...], expected: str
    ) -> None:
        done = command(*words, cwd=tmp_path)
        assert (done.code, done.out) == (2, "")
        assert expected in done.err
        assert done.err.startswith("Usage: manytune")
        assert len(done.err.splitlines()) <= 5

    def test_no_command_shows_the_help(self, command: Command, tmp_path: Path) -> None:
        done = command(cwd=tmp_path)
        assert done.code == 2
        assert (done.out + done.err).strip() == command("--help", cwd=tmp_path).out.strip()

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    @pytest.mark.parametrize("word", ["schema", "tasks", "--version"])
    def test_output_that_cannot_be_written_is_one_message(self, tmp_path: Path, word: str) -> None:
        script = str(Path(sys.executable).with_name("manytune"))
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [script, word], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert done.returncode == 2
        assert re.fullmatch(r"error: The output cannot be written: .*\n", done.stderr)

    def test_a_reader_that_leaves_early_is_no_error(self, tmp_path: Path) -> None:
        script = str(Path(sys.executable).with_name("manytune"))
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as closed:
            for words in (["schema"], ["tasks"]):  # more than a pipe's buffer, and less
                done = subprocess.run(
                    [script, *words],
                    stdout=closed,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert (done.returncode, done.stderr) == (1, "")


HEAVY = {"torch", "transformers", "scipy", "sklearn", "datasets", "pandas"}
IMPORTED = """
import sys
from manytune.cli import main
sys.argv[0] = "manytune"
try:
    main()
except SystemExit as stop:
    print(stop.code, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.parametrize("words", ["--help", "run --help", "status results", "status results --json", "show results"])
def test_what_must_be_quick_imports_nothing_heavy(finish: Finish, words: str) -> None:
    more = [finish.runs[0].id] if words.startswith("show") else []
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words.split(), *more],
        cwd=finish.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    code, *imported = done.stderr.split()
    assert code in ("0", "None")
    assert {"manytune", "typer"} <= set(imported)
    assert HEAVY & set(imported) == set()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run study.yaml", "--out is missing"),
        ("run study.yaml --out other --device gpu", "'gpu' is not one of"),
        ("run study.yaml --out study.yaml/below", "is not a directory"),
        ("run study.yaml seeds=[3] --out results", "already holds a study that differs"),
        ("run study.yaml seeds=[3] --out results --dry-run", "already holds a study that differs"),
        ("run study.yaml methods.1={method:\xa0full,learning_rate:\xa01e-3} --out other", "methods.0 and methods.1"),
        ("params minilm --method lorra", "'lorra' is not one of"),
        ("params minilm --head half", "'half' is not one of"),
        ("params minilm --rank 0", "received 0"),
        ("params --study nowhere.yaml", "There is no study file"),
    ],
)
def test_what_is_wrong_by_itself_is_refused_before_torch(finish: Finish, words: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *(word.replace("\xa0", " ") for word in words.split(" "))],
        cwd=finish.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    message, _, last = done.stderr.rstrip().rpartition("\n")
    code, *imported = last.split()
    assert code == "2"
    assert expected in message
    assert HEAVY & set(imported) == set()


_PREPARED: dict[tuple[str, str], Any] = {}


def prepare_once(study: Study, task: str) -> Any:
    key = (study.hash, task)
    if key not in _PREPARED:
        _PREPARED[key] = prepare(study, task)
    return _PREPARED[key]


def rows_of(task: str) -> int:
    from manytune.data.splits import load_split

    return len(load_split(TASKS[task], "train"))
