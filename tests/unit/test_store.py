from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.config import Study
from manytune.config.plan import Pack, Run, plan_packs, plan_runs
from manytune.data.tasks import TASKS
from manytune.storage.artifacts import Examples, Structure
from manytune.storage.directory import Store
from manytune.storage.record import HistoryRow, RunRecord
from manytune.utils.errors import StoreError
from manytune.utils.files import write_file
from record_factory import make_record


def make_study(**settings: Any) -> Study:
    values = {
        "name": "my-study",
        "tasks": ["stsb", "cola"],
        "seeds": [0, 1],
        "methods": [
            {"method": "lora", "rank": [8, 2], "learning_rate": 4e-4},
            {"method": "full", "learning_rate": 2e-5},
        ],
    }
    return Study.from_dict(values | settings)


def record_of(run: Run, **facts: Any) -> RunRecord:
    return make_record(
        **{"run_id": run.id, "task": run.task, "seed": run.seed, "label": run.label, "model": run.model} | facts
    )


@pytest.fixture
def study() -> Study:
    return make_study()


@pytest.fixture
def runs(study: Study) -> tuple[Run, ...]:
    return plan_runs(study)


@pytest.fixture
def packs(study: Study, runs: tuple[Run, ...]) -> tuple[Pack, ...]:
    return plan_packs(runs, 16)


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Store:
    return Store.create_or_open(tmp_path / "out", study)


class TestCreateOrOpen:
    def test_makes_a_directory_that_is_missing(self, tmp_path: Path, study: Study) -> None:
        store = Store.create_or_open(tmp_path / "a" / "b", study)
        assert [path.name for path in store.root.iterdir()] == ["study.yaml"]
        assert Study.from_file(store.root / "study.yaml").hash == study.hash

    @pytest.mark.parametrize("leftover", [None, ".DS_Store", ".study.yaml.0badcafe.tmp"])
    def test_takes_an_empty_directory(self, tmp_path: Path, study: Study, leftover: str | None) -> None:
        if leftover:
            (tmp_path / leftover).touch()
        assert Store.create_or_open(str(tmp_path), study).study() == study

    def test_goes_on_with_the_same_study_and_leaves_it_alone(self, store: Store, study: Study) -> None:
        (run, *_) = plan_runs(study)
        store.write_record(record_of(run))
        before = (store.root / "study.yaml").read_bytes() + b"# mine\n"
        (store.root / "study.yaml").write_bytes(before)
        again = Store.create_or_open(store.root, study)
        assert list(again.finished_runs()) == [run.id]
        assert (store.root / "study.yaml").read_bytes() == before

    def test_refuses_another_study_and_says_what_differs(self, store: Store) -> None:
        other = make_study(seeds=[0, 1, 2], training={"batch_size": 32})
        with pytest.raises(StoreError) as caught:
            Store.create_or_open(store.root, other)
        message = str(caught.value)
        assert str(store.root) in message
        assert "  seeds: [0, 1] there, [0, 1, 2] here\n" in message
        assert "  training.batch_size: 16 there, 32 here\n" in message
        assert "epochs" not in message
        assert "another --out" in message
        assert "--accept-changes" in message

    def test_says_which_entry_of_a_list_differs(self, tmp_path: Path) -> None:
        full, lora = {"method": "full", "learning_rate": 1e-4}, {"method": "lora", "rank": 2, "learning_rate": 1e-3}
        store = Store.create_or_open(tmp_path / "out", make_study(methods=[full, lora]))

        def differences(*methods: dict[str, object]) -> list[str]:
            with pytest.raises(StoreError) as caught:
                Store.check(store.root, make_study(methods=list(methods)))
            return [line.strip() for line in str(caught.value).splitlines() if line.startswith("  ")]

        assert differences(full, {**lora, "learning_rate": [2e-3, 4e-3]}) == [
            "methods.1.learning_rate: 0.001 there, [0.002, 0.004] here"
        ]
        assert differences(full, {**lora, "rank": 3, "alpha": 2.0}) == [
            "methods.1.rank: 2 there, 3 here",
            "methods.1.alpha: 8.0 there, 2.0 here",
        ]
        assert differences(full) == ["methods: 2 entries there, 1 here"]

    def test_shortens_what_is_long(self, store: Store) -> None:
        with pytest.raises(StoreError) as caught:
            Store.create_or_open(store.root, make_study(seeds=list(range(1000))))
        (line,) = [line for line in str(caught.value).splitlines() if "seeds" in line]
        assert line.startswith("  seeds: [0, 1] there, [0, 1, 2, 3,")
        assert line.endswith("… here")
        assert len(line) < 200

    def test_refuses_files_of_others(self, tmp_path: Path, study: Study) -> None:
        for number in range(7):
            (tmp_path / f"thesis{number}.tex").touch()
        with pytest.raises(StoreError, match=r"thesis0\.tex, .*thesis4\.tex and 2 more") as caught:
            Store.create_or_open(tmp_path, study)
        assert "new or empty directory" in str(caught.value)
        assert not (tmp_path / "study.yaml").exists()

    def test_refuses_a_file(self, tmp_path: Path, study: Study) -> None:
        (tmp_path / "out").touch()
        with pytest.raises(StoreError, match="out is not a directory"):
            Store.create_or_open(tmp_path / "out", study)

    def test_refuses_what_cannot_be_made_before_anything_is_written(
        self, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"out cannot be made: .*file is not a directory\. Give another --out"):
            Store.check(tmp_path / "file" / "a" / "out", study)
        with pytest.raises(StoreError, match=r"cannot be written: File name too long"):
            Store.check(tmp_path / ("a" * 300), study)
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(StoreError, match=r"out cannot be made: .* cannot be written to\. Check its permissions"):
            Store.check(tmp_path / "a" / "out", study)
        with pytest.raises(StoreError, match=rf"{tmp_path} cannot be written to\."):
            Store.check(tmp_path, study)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_what_has_ended_is_read_where_nothing_can_be_written(
        self, store: Store, study: Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert Store.check(store.root, study) == store
        with pytest.raises(StoreError, match="cannot be written to"):
            Store.create_or_open(store.root, study)

    def test_refuses_an_empty_name(self, study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        for refused in (
            lambda: Store.check("", study),
            lambda: Store.create_or_open("", study),
            lambda: Store.open(""),
        ):
            with pytest.raises(StoreError, match="The name of the study directory is empty"):
                refused()
        assert Store.check(".", study).root == Path()

    def test_refuses_a_study_that_it_cannot_read(self, store: Store, study: Study) -> None:
        (store.root / "study.yaml").write_text("seeds: [a]\n")
        with pytest.raises(StoreError, match="cannot be read by this version"):
            Store.create_or_open(store.root, study)

    def test_says_why_it_cannot_write(self, tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match=r"study\.yaml cannot be written: No space left on device"):
            Store.create_or_open(tmp_path, study)


class TestOpen:
    def test_opens_what_is_there(self, store: Store, study: Study) -> None:
        assert Store.open(store.root).study() == study

    def test_refuses_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="missing is not a study directory: there is no such directory"):
            Store.open(tmp_path / "missing")
        with pytest.raises(StoreError, match=r"it has no study\.yaml.*--out DIR"):
            Store.open(tmp_path)
        with pytest.raises(StoreError, match="cannot be read: File name too long"):
            Store.open(tmp_path / ("a" * 300))


BAD_IDS = ["", ".", "..", "../up", "a/b", "/etc", "a\\b", ".hidden", "-rf", "a b", "a\n", "ä", "a" * 201]


@pytest.mark.parametrize("name", BAD_IDS)
def test_an_id_cannot_leave_the_directory(store: Store, name: str) -> None:
    for path_of in (store.run_dir, store.snapshot_dir, store.pack_dir, store.read_record, store.reset_run):
        with pytest.raises(StoreError, match=r"is no (run|pack) id"):
            path_of(name)
    with pytest.raises(StoreError, match="is no run id"):
        store.write_record(make_record(run_id=name))
    assert [path.name for path in store.root.iterdir()] == ["study.yaml"]


def test_every_path_is_where_the_design_says(store: Store, packs: tuple[Pack, ...]) -> None:
    assert store.report_dir == store.root / "report"
    for pack in packs:
        assert store.pack_dir(pack.id) == store.root / "packs" / pack.id
        for run in pack.runs:
            assert store.snapshot_dir(run.id) == store.root / "runs" / run.id / "best"


class TestPlan:
    def test_reads_back(self, store: Store, packs: tuple[Pack, ...]) -> None:
        assert store.read_plan() is None
        store.write_plan(packs)
        assert store.read_plan() == packs

    @pytest.mark.parametrize(
        "text",
        ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "packs": [{"id": "x"}]}', "\x00"],
    )
    def test_a_damaged_one_is_refused(self, store: Store, text: str) -> None:
        (store.root / "plan.json").write_text(text)
        with pytest.raises(StoreError, match=r"plan\.json is damaged: .*planned anew"):
            store.read_plan()

    def test_a_newer_one_is_refused(self, store: Store) -> None:
        (store.root / "plan.json").write_text('{"schema_version": 2, "packs": []}')
        with pytest.raises(StoreError, match="version 2; this manytune reads version 1"):
            store.read_plan()


class TestRecords:
    def test_reads_back(self, store: Store, runs: tuple[Run, ...]) -> None:
        record = record_of(runs[0])
        assert store.read_record(record.run_id) is None
        store.write_record(record)
        assert store.read_record(record.run_id) == record

    def test_a_run_has_ended_only_once_its_record_is_there(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_history(runs[0].id, [HistoryRow(step=1)])
        store.snapshot_dir(runs[0].id).mkdir()
        assert store.finished_runs() == {}
        store.write_record(record_of(runs[0]))
        assert list(store.finished_runs()) == [runs[0].id]

    def test_come_in_the_studys_order(self, store: Store, runs: tuple[Run, ...], packs: tuple[Pack, ...]) -> None:
        ids = [run.id for run in runs]
        assert ids != sorted(ids)
        for run_id in reversed(ids):
            store.write_record(make_record(run_id=run_id))
        assert list(store.finished_runs()) == ids
        store.write_plan(packs)
        assert [run.id for pack in packs for run in pack.runs] != ids
        assert list(store.finished_runs()) == ids

    def test_of_runs_that_the_study_no_longer_has_are_kept_and_not_counted(
        self, store: Store, runs: tuple[Run, ...]
    ) -> None:
        store.write_record(record_of(runs[0]))
        store.write_record(make_record(run_id="of-another-study"))
        assert list(store.finished_runs()) == [runs[0].id]
        assert store.status().unplanned == ("of-another-study",)
        assert store.read_record("of-another-study") is not None

    def test_stray_files_are_no_runs(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_record(record_of(runs[0]))
        (store.root / "runs" / "notes.txt").touch()
        (store.root / "runs" / ".hidden").mkdir()
        assert list(store.finished_runs()) == [runs[0].id]

    def test_a_damaged_one_is_refused_with_its_path(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_record(record_of(runs[0]))
        path = store.run_dir(runs[0].id) / "record.json"
        path.write_text("{")
        with pytest.raises(StoreError, match="is not a record of a run") as caught:
            store.finished_runs()
        assert str(path) in str(caught.value)
        path.write_bytes(b"\xff")
        with pytest.raises(StoreError, match=r"record\.json cannot be read"):
            store.read_record(runs[0].id)

    def test_one_of_another_run_is_refused(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_record(record_of(runs[0]))
        shutil.copytree(store.run_dir(runs[0].id), store.run_dir(runs[1].id))
        with pytest.raises(StoreError, match=f"is the record of '{runs[0].id}'.*must be of '{runs[1].id}'"):
            store.read_record(runs[1].id)

    def test_reset_makes_a_run_pending_again(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_history(runs[0].id, [HistoryRow(step=1)])
        store.write_record(record_of(runs[0]))
        store.reset_run(runs[0].id)
        assert not store.run_dir(runs[0].id).exists()
        store.reset_run(runs[0].id)

    def test_reset_takes_the_record_first(
        self, store: Store, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        store.write_record(record_of(runs[0]))
        monkeypatch.setattr(shutil, "rmtree", killed)
        with pytest.raises(StoreError, match="Input/output error"):
            store.reset_run(runs[0].id)
        assert store.finished_runs() == {}


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name an open file")


class Disk:
    """What was brought to the disk and renamed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self._replace = os.replace
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(os, "replace", self._renamed)

    def _fsync(self, handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        self.events.append(("sync", "temporary" if name.endswith(".tmp") else name))

    def _renamed(self, old: Path, new: Path) -> None:
        self.events.append(("rename", Path(new).name))
        self._replace(old, new)


@needs_proc
def test_a_record_appears_after_everything_else_is_on_the_disk(
    store: Store, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = runs[0].id
    snapshot = store.snapshot_dir(run_id)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    disk = Disk(monkeypatch)
    store.write_record(record_of(runs[0]))
    appears = disk.events.index(("rename", "record.json"))
    before, after = disk.events[:appears], disk.events[appears + 1 :]
    assert set(before) == {("sync", name) for name in ("model.safetensors", "best", run_id, "temporary")}
    assert before[-1] == ("sync", "temporary")
    assert after == [("sync", run_id), ("sync", "runs"), ("sync", "out")]


@needs_proc
def test_a_reset_record_is_gone_from_the_disk_before_the_rest(
    store: Store, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_record(record_of(runs[0]))
    disk = Disk(monkeypatch)
    monkeypatch.setattr(shutil, "rmtree", lambda path: disk.events.append(("remove", path.name)))
    store.reset_run(runs[0].id)
    assert disk.events == [("sync", runs[0].id), ("remove", runs[0].id)]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    store: Store, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    old = record_of(runs[0], best_score=0.25)
    store.write_record(old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(StoreError, match=r"record\.json cannot be written: Input/output error"):
            store.write_record(record_of(runs[0], best_score=0.75))
    assert store.read_record(runs[0].id) == old
    assert [path.name for path in store.run_dir(runs[0].id).iterdir()] == ["record.json"]


def test_a_disk_that_does_not_sync_is_an_error_except_where_it_cannot(
    store: Store, runs: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_directories(code: int) -> None:
        def fsync(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fsync)

    refuse_directories(errno.EINVAL)
    store.write_record(record_of(runs[0]))
    refuse_directories(errno.EIO)
    with pytest.raises(StoreError, match="Input/output error"):
        store.write_record(record_of(runs[1]))


def test_no_file_stays_open(store: Store, runs: tuple[Run, ...]) -> None:
    before = len(os.listdir("/dev/fd"))
    store.write_record(record_of(runs[0]))
    assert len(os.listdir("/dev/fd")) == before


def test_files_get_ordinary_permissions(store: Store, runs: tuple[Run, ...]) -> None:
    mask = os.umask(0o022)
    try:
        store.write_record(record_of(runs[0]))
    finally:
        os.umask(mask)
    assert (store.run_dir(runs[0].id) / "record.json").stat().st_mode & 0o777 == 0o644


class TestHistory:
    def test_reads_back(self, store: Store, runs: tuple[Run, ...]) -> None:
        rows = (HistoryRow(step=1, train_loss=0.1, metrics={"accuracy": 0.5}), HistoryRow(step=2))
        assert store.read_history(runs[0].id) == ()
        store.write_history(runs[0].id, rows[:1])
        store.write_history(runs[0].id, rows)
        assert [row.step for row in store.read_history(runs[0].id)] == [1, 2]
        assert store.read_history(runs[0].id)[0] == rows[0]

    def test_a_damaged_one_is_refused_with_its_path(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_history(runs[0].id, [])
        (store.run_dir(runs[0].id) / "history.csv").write_text("steps\n")
        with pytest.raises(StoreError, match=rf"{runs[0].id}/history\.csv has the columns steps"):
            store.read_history(runs[0].id)


class TestStatus:
    def test_counts_every_state_and_lists_every_run(
        self, store: Store, runs: tuple[Run, ...], packs: tuple[Pack, ...]
    ) -> None:
        store.write_plan(packs)
        store.write_record(record_of(runs[0], best_step=7))
        store.write_record(record_of(runs[1], state="collapsed", best_score=0.0))
        store.write_record(record_of(runs[2], state="failed", failure="out of memory", best_score=None))
        status = store.status()
        assert status.study == "my-study"
        assert status.directory == str(store.root)
        assert status.planned == len(runs) == 12
        assert status.counts == {"finished": 1, "failed": 1, "collapsed": 1, "pruned": 0, "pending": 9}
        assert [row.run_id for row in status.runs] == [run.id for run in runs]
        assert [row.state for row in status.runs[:4]] == ["finished", "collapsed", "failed", "pending"]
        assert (status.runs[0].best_score, status.runs[0].best_step) == (0.5, 7)
        assert status.runs[0].label == "lora r=8, lr 4e-4"
        assert status.runs[2].failure == "out of memory"
        assert (status.runs[3].best_score, status.runs[3].primary_metric) == (None, None)
        assert status.unplanned == ()

    def test_is_there_before_the_plan(self, store: Store, runs: tuple[Run, ...]) -> None:
        assert store.status().counts["pending"] == len(runs)

    def test_obeys_the_plan_that_was_kept(self, store: Store, packs: tuple[Pack, ...]) -> None:
        store.write_plan(packs[:1])
        assert [row.run_id for row in store.status().runs] == [run.id for run in packs[0].runs]

    def test_names_records_that_no_plan_has(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_record(make_record(run_id="of-another-study"))
        status = store.status()
        assert status.unplanned == ("of-another-study",)
        assert status.counts["finished"] == 0

    def test_is_ready_for_json(self, store: Store, runs: tuple[Run, ...]) -> None:
        store.write_record(record_of(runs[0]))
        status = json.loads(json.dumps(store.status().to_dict()))
        assert status["counts"]["finished"] == 1
        assert status["runs"][0]["state"] == "finished"
        assert set(status) == {"study", "directory", "planned", "counts", "runs", "unplanned"}


class TestEvidence:
    def test_predictions_come_back_and_are_none_where_there_are_none(self, store: Store) -> None:
        assert store.read_predictions("run-1") is None
        logits = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
        store.write_predictions("run-1", logits)
        again = store.read_predictions("run-1")
        assert again is not None
        np.testing.assert_array_equal(again, logits)

    def test_a_task_is_kept_once(self, store: Store) -> None:
        assert store.task_artifacts("cola").examples() is None
        assert store.task_artifacts("cola").structure() is None
        structure = Structure(model="minilm", tensors={}, head={}, trained={})
        first, second = (Examples(texts=((text,),), labels=(1.0,)) for text in ("first", "second"))
        store.task_artifacts("cola").keep(TASKS["cola"], first, structure)
        store.task_artifacts("cola").keep(TASKS["cola"], second, structure)
        assert store.task_artifacts("cola").examples() == first
        assert store.task_artifacts("cola").structure() == structure

    @pytest.mark.parametrize("name", ["examples.json", "structure.json"])
    def test_damage_is_said_with_its_place(self, store: Store, name: str) -> None:
        path = store.root / "tasks" / "cola" / name
        path.parent.mkdir(parents=True)
        path.write_text('{"texts": ')
        with pytest.raises(StoreError, match=f"{re.escape(str(path))} is damaged"):
            store.task_artifacts("cola").examples() if name == "examples.json" else store.task_artifacts(
                "cola"
            ).structure()


def test_a_file_that_holds_the_same_already_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    write_file(path, "ü")
    before = path.stat()
    write_file(path, "ü".encode())
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write_file(path, "new")
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["index.html"]
