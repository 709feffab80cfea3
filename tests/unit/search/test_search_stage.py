"""A search from its study to its winners: what it trains, and that it goes on as it would have, wherever it was cut."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from manytune import Callback, ManytuneError, run_study
from manytune.config import Study
from manytune.data.splits import load_task
from manytune.executors import Inline, Workers
from manytune.executors.base import ExecutorSpec
from manytune.report.writing import write_report
from manytune.search.winners import read_winners
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState
from manytune.storage.test_looks import read_test_looks
from manytune.training.loop import train_pack
from manytune.training.workload import prepare
from manytune.utils.errors import StoreError
from study_files import results_in, small_task
from tiny import make_tiny

TRIALS = 6
LORA = {"method": "lora", "rank": 2, "learning_rate": {"low": 1e-4, "high": 1e-2}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("search")
    return Study.from_dict(
        {
            "name": "search",
            "model": str(make_tiny(folder / "tiny")),
            "tasks": [small_task(folder)],
            "training": {"epochs": 4, "batch_size": 8, "eval_every": 4, "precision": "fp32", "max_pack": 4},
            "methods": [
                {"method": "full", "learning_rate": {"low": 1e-4, "high": 2e-3}},
                {
                    "method": "lora",
                    "rank": {"choice": [2, 4]},
                    "alpha": {"choice": [16, {"of_rank": 1}]},
                    "dropout": 0.1,
                    "learning_rate": {"low": 1e-4, "high": 5e-2},
                    "training": {"epochs": {"choice": [2, 4]}},
                },
                {"method": "bitfit", "learning_rate": {"low": 1e-4, "high": 1e-2}},
            ],
            "search": {"trials": TRIALS},
            "confirm": "none",
        }
    )


class Cut(Callback):
    """Stops the study at the call number `at` of a hook."""

    def __init__(self, hook: str = "", at: int = 0) -> None:
        self.calls, self.at = 0, at
        self.seen: list[str] = []
        if hook:
            setattr(self, hook, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise ManytuneError("stopped on purpose")

    def on_message(self, text: str, level: str = "info") -> None:
        self.seen.append(text)


def search(study: Study, out: Path, callback: Callback | None = None, executor: ExecutorSpec | None = None) -> None:
    run_study(study, out, callbacks=[callback or Callback()], executor=executor or Inline("cpu"))


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing disturbs, in this process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run_study(study, out, callbacks=[Callback()], executor=Inline("cpu"))
    return out


def records_in(out: Path) -> dict[str, RunRecord]:
    return Store.open(out).finished_runs()


def trials_of(records: Mapping[str, RunRecord], space: str) -> list[RunRecord]:
    mine = [record for record in records.values() if record.trial is not None and record.trial.space == space]
    return sorted(mine, key=lambda record: record.trial.number if record.trial else -1)


def outcome(out: Path) -> dict[str, Any]:
    """All that the trials came to, and the winners; without clocks, and without what only says where they trained."""
    return {name: value for name, value in results_in(out).items() if name.startswith("runs/") or "winners" in name}


def test_every_space_has_its_trials_and_a_winner(whole: Path) -> None:
    records = records_in(whole)
    for space in ("full", "lora", "bitfit"):
        trials = trials_of(records, space)
        assert [record.trial.number for record in trials if record.trial] == [*range(TRIALS)]
        assert len({record.seed for record in trials}) == TRIALS
        assert any(record.state is RunState.PRUNED for record in trials)
        unpruned = [record for record in trials if record.trial and record.trial.unpruned]
        assert len(unpruned) == TRIALS / 3
        assert all(record.state is not RunState.PRUNED for record in unpruned)
    winners = read_winners(whole)
    assert winners is not None
    assert [winner.space for winner in winners] == ["full", "lora", "bitfit"]
    for winner in winners:
        ended = [record for record in trials_of(records, winner.space) if record.state is RunState.FINISHED]
        assert winner.score == max(record.best_score or -1.0 for record in ended)


def test_a_pruned_trial_left_at_a_rung_and_says_so(whole: Path) -> None:
    for record in records_in(whole).values():
        trial = record.trial
        assert trial is not None
        kept = [rung.kept for rung in trial.rungs]
        if record.state is RunState.PRUNED:
            assert kept == [True] * (len(kept) - 1) + [False]
            assert record.steps == trial.rungs[-1].step < trial.total_steps
        else:
            assert all(kept)
            assert record.steps == trial.total_steps
        assert trial.left == trial.joined + (record.steps or 0)


def test_trials_take_the_places_of_those_that_left(whole: Path) -> None:
    trials = [record.trial for record in records_in(whole).values() if record.trial and "adapters" in record.trial.pack]
    ticks = range(max(trial.left for trial in trials))
    inside = [sum(trial.joined <= tick < trial.left for trial in trials) for tick in ticks]
    assert max(inside) == 4
    last = max(trial.joined for trial in trials)  # as long as trials wait, the pack is full
    assert inside[:last] == [4] * last


def test_trials_are_compared_at_their_ends_on_rows_of_train(study: Study, whole: Path) -> None:
    """Of 64 rows, 6 are set aside, in the same way for all; dev has 24."""
    store = Store.open(whole)
    work = prepare(study, "small")
    assert (work.train_size, work.dev.size) == (58, 6)
    texts = {row for split in load_task(study.task("small"))[1].values() for row in split.texts}
    assert {*work.dev_texts} < texts - {*load_task(study.task("small"))[1]["dev"].texts}
    for run_id, record in records_in(whole).items():
        assert record.best_score == store.read_history(run_id)[-1].metrics["pearson"]
        assert record.best_step == record.steps
        assert record.selection == "train-split"
    assert not list(whole.glob("runs/*/best"))
    assert not list(whole.glob("runs/*/predictions*"))


def test_optuna_reads_the_journal(whole: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(whole / "search" / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    assert sorted(optuna.get_all_study_names(storage)) == ["small: bitfit", "small: full", "small: lora"]
    found = optuna.load_study(study_name="small: lora", storage=storage)
    records = trials_of(records_in(whole), "lora")
    states = {RunState.PRUNED: "PRUNED", RunState.FINISHED: "COMPLETE", RunState.COLLAPSED: "COMPLETE"}
    assert [trial.state.name for trial in found.trials] == [states[record.state] for record in records]
    for trial, record in zip(found.trials, records, strict=True):
        assert trial.user_attrs["run_id"] == record.run_id
        assert trial.params["learning_rate"] == record.hyperparameters["learning_rate"]
        assert max(trial.intermediate_values) == record.steps
        if record.state is not RunState.PRUNED:
            assert trial.value == record.best_score
    best = next(winner for winner in read_winners(whole) or () if winner.space == "lora")
    assert found.best_trial.user_attrs["run_id"] == best.run_id


@pytest.mark.parametrize(
    ("hook", "at"), [("on_room", 1), ("on_room", 3), ("on_evaluate", 4), ("on_checkpoint", 5), ("on_run_end", 7)]
)
def test_a_search_that_was_cut_goes_on_as_it_would_have(
    study: Study, whole: Path, tmp_path: Path, hook: str, at: int
) -> None:
    with pytest.raises(ManytuneError, match="on purpose"):
        search(study, tmp_path / "out", Cut(hook, at))
    search(study, tmp_path / "out")
    assert outcome(tmp_path / "out") == outcome(whole)


def test_a_search_whose_last_line_was_cut_goes_on(study: Study, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ManytuneError, match="on purpose"):
        search(study, tmp_path / "out", Cut("on_evaluate", 4))
    journal = tmp_path / "out" / "search" / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(content[:-7])
    search(study, tmp_path / "out")
    assert outcome(tmp_path / "out") == outcome(whole)


def test_a_search_that_has_ended_is_not_searched_again(study: Study, whole: Path) -> None:
    before = outcome(whole)
    cut = Cut("on_step_end", 1)
    search(study, whole, cut)
    assert cut.calls == 0
    assert outcome(whole) == before


def test_what_a_pack_needed_goes_where_its_process_died_before_it_was_removed(
    study: Study, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "search" / "winners.json").unlink()  # it died before it chose winners too
    store = Store.open(out)
    for pack in store.read_plan() or ():
        checkpoint = store.pack_dir(pack.id) / "checkpoint-1"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    cut = Cut("on_step_end", 1)
    search(study, out, cut)
    assert cut.calls == 0
    assert not list(out.glob("packs/*"))
    assert outcome(out) == outcome(whole)


def test_of_a_search_that_has_begun_only_the_budget_may_change(study: Study, tmp_path: Path) -> None:
    data = study.model_dump(mode="json", exclude_none=True) | {"confirm": "none", "methods": [LORA]}
    small, more = ({**data, "search": {"trials": trials}} for trials in (2, 3))
    search(Study.from_dict(small), tmp_path / "out")
    first = records_in(tmp_path / "out")
    run_study(Study.from_dict(more), tmp_path / "out", executor=Inline("cpu"), callbacks=[], accept_changes=True)
    grown = records_in(tmp_path / "out")
    assert len(grown) == 3
    assert {run_id: grown[run_id] for run_id in first} == first
    for other in ({"methods": [{**LORA, "rank": 4}]}, {"search": {"trials": 3, "seed": 1}}, {"limit": 32}):
        with pytest.raises(StoreError, match="only its budget and `confirm` may change"):
            run_study(Study.from_dict({**more, **other}), tmp_path / "out", callbacks=[], accept_changes=True)
    assert records_in(tmp_path / "out") == grown


def test_of_a_search_that_goes_on_with_more_trials_earlier_winners_are_none(study: Study, tmp_path: Path) -> None:
    """Stopped on its way, it goes on to the end of its budget, and does not take the winner of fewer trials."""
    data = study.model_dump(mode="json", exclude_none=True) | {"confirm": "none", "methods": [LORA]}
    few, more = (Study.from_dict({**data, "search": {"trials": trials}}) for trials in (2, 6))
    search(few, tmp_path / "out")
    with pytest.raises(ManytuneError, match="on purpose"):
        run_study(more, tmp_path / "out", executor=Inline("cpu"), callbacks=[Cut("on_run_end", 1)], accept_changes=True)
    assert read_winners(tmp_path / "out") is None
    search(more, tmp_path / "out")
    assert len(records_in(tmp_path / "out")) == 6


def test_a_trial_whose_record_was_removed_trains_again(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ManytuneError, match="on purpose"):
        search(study, tmp_path / "out", Cut("on_run_end", 7))
    store = Store.open(tmp_path / "out")
    gone = next(iter(records_in(tmp_path / "out").values()))
    shutil.rmtree(store.run_dir(gone.run_id))
    search(study, tmp_path / "out")
    again = records_in(tmp_path / "out")
    assert len(again) == 3 * TRIALS
    assert all(record.state is not RunState.FAILED for record in again.values())
    assert again[gone.run_id].best_score == pytest.approx(gone.best_score, abs=1e-5)


def test_a_journal_that_cannot_be_written_ends_the_study_and_fails_no_trial(
    study: Study, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = 0
    append = optuna.storages.journal.JournalFileBackend.append_logs

    def full_disk(self: Any, logs: list[dict[str, Any]]) -> None:
        nonlocal lines
        lines += 1
        if lines == 40:
            with open(self._file_path, "ab") as file:
                file.write(b'{"op_code": 8')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", full_disk)
        with pytest.raises(StoreError, match=r"journal\.log cannot be written: No space left"):
            search(study, tmp_path / "out")
    assert all(record.state is not RunState.FAILED for record in records_in(tmp_path / "out").values())
    search(study, tmp_path / "out")
    assert outcome(tmp_path / "out") == outcome(whole)


def test_a_test_file_judges_and_looks_at_it_are_counted(study: Study, tmp_path: Path) -> None:
    """Winners train on all of train, 64 rows, to their last step; dev, which compared the trials, has no say."""
    task = dict(study.model_dump(mode="json", exclude_none=True)["tasks"][0])
    rows = Path(task["dev"]).read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join([rows[0], *rows[5:15], ""]))
    data = study.model_dump(mode="json", exclude_none=True) | {
        "tasks": [task | {"test": str(tmp_path / "test.csv")}],
        "methods": [LORA],
        "search": {"trials": 2, "select": "dev"},
    }
    out = tmp_path / "out"
    once, again = ({**data, "confirm": {"seeds": seeds, "on": "test"}} for seeds in (1, 2))
    result = run_study(Study.from_dict(once), out, executor=Inline("cpu"), callbacks=[])
    (record,) = result.records
    assert (record.selection, record.best_step, record.steps) == ("none", 32, 32)
    assert record.seed >= 2**31 > max(trial.seed for trial in records_in(out).values())
    assert (
        np.load(Store.open(out / "confirm" / "small").run_dir(record.run_id) / "predictions.npz")["logits"].shape[0]
        == 10
    )
    assert [look.runs for look in read_test_looks(out)["small"]] == [1]
    run_study(Study.from_dict(once), out, executor=Inline("cpu"), callbacks=[])
    assert [look.runs for look in read_test_looks(out)["small"]] == [1]
    grown = run_study(Study.from_dict(again), out, executor=Inline("cpu"), callbacks=[], accept_changes=True)
    assert record in grown.records
    looks = read_test_looks(out)["small"]
    assert [look.runs for look in looks] == [1, 2]
    assert len({look.fingerprint for look in looks}) == 1
    page, _ = write_report([out])
    assert "scores on the test file of small could be seen 2 times" in page.read_text()


def test_workers_search_together(study: Study, tmp_path: Path) -> None:
    search(study, tmp_path / "out", executor=Workers(2, 1))
    records = records_in(tmp_path / "out")
    for space in ("full", "lora", "bitfit"):
        trials = trials_of(records, space)
        assert [record.trial.number for record in trials if record.trial] == [*range(TRIALS)]
        for record in trials:
            trial = record.trial
            assert trial is not None
            if record.state is RunState.PRUNED:
                assert (record.steps or 0) >= trial.rungs[-1].step
            assert all(rung.kept for rung in trial.rungs[:-1])
    assert {winner.space for winner in read_winners(tmp_path / "out") or ()} == {"full", "lora", "bitfit"}


def test_where_memory_runs_out_trials_begin_anew_in_a_smaller_pack(
    study: Study, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_few(*given: Any) -> Any:
        callback, room = given[-5], given[-1]
        if room > 2:
            monkeypatch.setattr(callback, "on_step_end", run_out, raising=False)
        return train_pack(*given)

    def run_out(pack_id: str, step: int, losses: Sequence[float]) -> None:
        if step == 18:
            raise MemoryError

    monkeypatch.setattr("manytune.executors.job.train_pack", train_few)
    seen = Cut()
    search(study, tmp_path / "out", seen)
    assert "It is tried again in a pack with room for 2 runs." in " ".join(seen.seen)
    assert "Not even one row" not in " ".join(seen.seen)
    there, here = records_in(whole), records_in(tmp_path / "out")
    assert here.keys() == there.keys()
    moved = [record for record in here.values() if record.trial and record.trial.pack.endswith(".1")]
    assert moved
    assert all("Memory ran out in a pack of 4 runs" in " ".join(record.notes) for record in moved)
    for run_id, record in here.items():
        if record.trial is not None and record.trial.unpruned:
            assert record.best_score == pytest.approx(there[run_id].best_score, abs=1e-5)


def test_after_a_pack_broke_other_trials_train_in_a_new_one(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_once(*given: Any) -> Any:
        callback, pack_id = given[-5], given[-3]
        if pack_id.endswith("search-0"):
            monkeypatch.setattr(callback, "on_step_end", break_down, raising=False)
        return train_pack(*given)

    def break_down(pack_id: str, step: int, losses: Sequence[float]) -> None:
        if step == 5:
            raise RuntimeError("a bug")

    monkeypatch.setattr("manytune.executors.job.train_pack", train_once)
    search(study, tmp_path / "out")
    records = records_in(tmp_path / "out")
    failed = [record for record in records.values() if record.state is RunState.FAILED]
    assert len(failed) == 4  # those that were in the pack
    assert all("a bug" in (record.failure or "") for record in failed)
    assert len(records) == 3 * TRIALS
    assert {winner.space for winner in read_winners(tmp_path / "out") or ()} == {"full", "lora", "bitfit"}


def test_a_budget_of_seconds_is_the_same_for_all(study: Study, tmp_path: Path) -> None:
    data = study.model_dump(mode="json", exclude_none=True)
    data |= {"search": {"seconds": 0.5, "pruning": "none"}, "confirm": "none"}
    search(Study.from_dict(data), tmp_path / "out")
    spent = dict.fromkeys(("full", "lora", "bitfit"), 0.0)
    latest = dict(spent)
    for record in records_in(tmp_path / "out").values():
        assert record.trial is not None
        assert record.state is not RunState.PRUNED
        cost = (record.cost.train_seconds or 0.0) + (record.cost.eval_seconds or 0.0)
        spent[record.trial.space] += cost
        latest[record.trial.space] = max(latest[record.trial.space], cost)
    for space, seconds in spent.items():  # what has begun comes to its end
        assert seconds >= 0.5
        assert seconds - 4 * latest[space] < 0.5
