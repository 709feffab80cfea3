"""The package as a library: what it exports, how, and a study from Python."""

from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

import manytune
from manytune import ManytuneError, RunRecord, RunState, Study, StudyResult, run_study
from manytune.data.tasks import Task
from manytune.report import TaskTable
from manytune.storage.directory import Store
from manytune.tracking.progress import make_progress
from tiny import make_tiny


class TestNames:
    def test_every_name_is_what_its_module_has(self) -> None:
        for name in manytune.__all__:
            assert getattr(manytune, name) is not None
            assert name in dir(manytune)
        for name, home in manytune._HOMES.items():
            assert getattr(manytune, name).__module__.startswith(home)
        assert set(manytune._HOMES) | {"__version__"} == set(manytune.__all__)

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="module 'manytune' has no attribute 'Trainer'"):
            manytune.Trainer  # noqa: B018

    def test_nothing_is_imported_before_it_is_asked_for(self) -> None:
        code = (
            "import sys, manytune; print(*(name in sys.modules for name in ('pydantic', 'torch')));"
            "manytune.Study; print(*(name in sys.modules for name in ('pydantic', 'torch')))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False", "True", "False"]

    def test_type_checkers_are_told_that_it_is_typed(self) -> None:
        assert (resources.files("manytune") / "py.typed").is_file()
        hints = typing.get_type_hints(run_study)
        assert hints["study"] is Study
        assert hints["return"] is StudyResult
        assert typing.get_type_hints(StudyResult)["records"] == tuple[RunRecord, ...]


class Listener:
    """A progress of the caller's own, which keeps what it is told."""

    def __init__(self) -> None:
        self.packs: list[tuple[str, str, tuple[str, ...], int]] = []
        self.steps: list[tuple[int, int]] = []
        self.evaluations: list[tuple[int, tuple[str, float]]] = []
        self.ended: dict[str, str] = {}
        self.seconds: list[float] = []
        self.messages: list[str] = []
        self.open = 0

    def pack_started(self, pack_id: str, task: Task, runs: Sequence[str], total_steps: int) -> None:
        self.packs.append((pack_id, task.name, tuple(runs), total_steps))

    def step(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        self.steps.append((step, len(losses)))

    def evaluated(self, pack_id: str, step: int, best: tuple[str, float]) -> None:
        self.evaluations.append((step, best))

    def run_ended(self, pack_id: str, run_id: str, state: str, note: str | None = None) -> None:
        self.ended[run_id] = state

    def pack_finished(self, pack_id: str, seconds: float | None) -> None:
        self.seconds.append(seconds or 0.0)

    def message(self, text: str, level: str = "info") -> None:
        self.messages.append(text)

    def __enter__(self) -> Listener:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def small(tiny: Path, rate: float = 1e-3) -> Study:
    return Study.from_dict(
        {
            "name": "from-python",
            "model": str(tiny),
            "tasks": ["builtin-similarity"],
            "seeds": [0, 1],
            "training": {"max_steps": 4, "eval_every": 2, "precision": "fp32"},
            "methods": [{"method": "lora", "rank": 2, "learning_rate": rate}],
        }
    )


class TestRunStudy:
    def test_results_are_typed_and_the_caller_is_told_how_it_goes(self, tiny: Path, tmp_path: Path) -> None:
        told = Listener()
        result = run_study(small(tiny), str(tmp_path / "out"), device="cpu", progress=told)
        assert isinstance(result, StudyResult)
        assert result.directory == tmp_path / "out"
        assert [(record.seed, record.state) for record in result.records] == [
            (0, RunState.FINISHED),
            (1, RunState.FINISHED),
        ]
        assert result.failed == ()
        (table,) = result.tables
        assert isinstance(table, TaskTable)
        (row,) = table.rows
        assert row.label == "lora r=2, lr 1e-3"
        scores = [record.best_score or 0.0 for record in result.records]
        assert row.primary.best.mean == pytest.approx(sum(scores) / 2)

        run_ids = tuple(record.run_id for record in result.records)
        assert [pack[1:] for pack in told.packs] == [("builtin-similarity", run_ids, 4)]
        assert told.steps == [(1, 2), (2, 2), (3, 2), (4, 2)]
        assert [step for step, _ in told.evaluations] == [2, 4]
        metric = result.records[0].primary_metric
        history = {run_id: Store.open(tmp_path / "out").read_history(run_id) for run_id in run_ids}
        scores = {(row.metrics[metric] or 0.0, run_id) for run_id in run_ids for row in history[run_id]}
        assert told.evaluations[-1][1] == max(scores)[::-1]
        assert told.ended == dict.fromkeys(run_ids, "finished")
        assert (len(told.seconds), told.open, told.messages) == (1, 0, [])

        again = Listener()
        assert run_study(small(tiny), tmp_path / "out", progress=again) == result
        assert (again.packs, again.messages) == ([], ["2 of 2 runs have ended before."])

    def test_a_failed_run_raises_nothing(self, tiny: Path, tmp_path: Path) -> None:
        result = run_study(small(tiny, rate=1e30), tmp_path / "out", progress=make_progress(quiet=True))
        assert result.failed == result.records
        assert [record.best_score for record in result.failed] == [None, None]
        assert not list((tmp_path / "out").rglob("best"))

    def test_what_a_user_can_mend_is_one_kind_of_error(self, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(ManytuneError, match="--device"):
            run_study(small(tiny), tmp_path / "out", device="abacus")
        with pytest.raises(ManytuneError, match="there is no folder"):
            run_study(small(tmp_path / "nowhere"), tmp_path / "out")
        assert not (tmp_path / "out").exists()
