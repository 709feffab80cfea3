"""The package as a library: what it exports, how, and a study from Python."""

from __future__ import annotations

import subprocess
import sys
import typing
from importlib import resources
from pathlib import Path

import pytest

import manytune
from callback_log import CallbackLog
from manytune import ManytuneError, RunRecord, RunState, Study, StudyResult, TerminalProgress, run_study
from manytune.report import TaskTable
from manytune.storage.directory import Store
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
        log = CallbackLog()
        result = run_study(small(tiny), str(tmp_path / "out"), device="cpu", callbacks=[log])
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
        assert [pack[1:] for pack in log.packs] == [("builtin-similarity", "pearson", run_ids, 4, 0)]
        assert log.steps == [(1, 2), (2, 2), (3, 2), (4, 2)]
        assert [step for _, step in log.evaluations] == [2, 4]
        metric = result.records[0].primary_metric
        history = {run_id: Store.open(tmp_path / "out").read_history(run_id) for run_id in run_ids}
        scores = {(row.metrics[metric] or 0.0, run_id) for run_id in run_ids for row in history[run_id]}
        assert log.bests[-1] == max(scores)[::-1]
        assert log.ended == dict.fromkeys(run_ids, "finished")
        assert ([end.how for end in log.ends], log.open, log.messages) == (["done"], 0, [])

        again = CallbackLog()
        assert run_study(small(tiny), tmp_path / "out", callbacks=[again]) == result
        assert (again.begun + again.packs, again.messages) == ([], ["2 of 2 runs have ended before."])

    def test_what_is_no_callback_is_refused_before_anything_is_written(self, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"callbacks: 'tensorboard' \(str\) is no instance of manytune\.Callback"):
            run_study(small(tiny), tmp_path / "out", callbacks=["tensorboard"])  # type: ignore[list-item]
        assert not (tmp_path / "out").exists()

    def test_a_failed_run_raises_nothing(self, tiny: Path, tmp_path: Path) -> None:
        result = run_study(small(tiny, rate=1e30), tmp_path / "out", callbacks=[TerminalProgress(quiet=True)])
        assert result.failed == result.records
        assert [record.best_score for record in result.failed] == [None, None]
        assert not list((tmp_path / "out").rglob("best"))

    def test_what_a_user_can_mend_is_one_kind_of_error(self, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(ManytuneError, match="--device"):
            run_study(small(tiny), tmp_path / "out", device="abacus")
        with pytest.raises(ManytuneError, match="there is no folder"):
            run_study(small(tmp_path / "nowhere"), tmp_path / "out")
        assert not (tmp_path / "out").exists()
