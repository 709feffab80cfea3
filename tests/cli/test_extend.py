"""`extend`: more seeds and methods in a study directory."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import Command

from forked import ForkedProcess
from manytune.config import Study
from manytune.config.extension import extend_study
from manytune.methods import METHODS
from manytune.storage.directory import Store
from manytune.storage.lock import Lock
from manytune.study import run_study
from manytune.utils.errors import StoreError, StudyError
from record_factory import make_record
from study_files import small_study, small_task, write_small_study
from waiting import until_brought_about

METHOD = "bitfit learning_rate=1e-3"
SHORT = {"max_steps": 2, "eval_every": 2, "precision": "fp32"}


def test_seeds_and_methods_are_added_and_only_they_train(tiny: Path, command: Command, tmp_path: Path) -> None:
    write_small_study(tmp_path, tiny, SHORT)
    first = command("run", "study.yaml", "--out", "my results", cwd=tmp_path)
    assert "Seeds enough for a verdict: manytune extend 'my results' --seeds 5" in first.out
    store = Store.open(tmp_path / "my results")
    before = {path: path.read_bytes() for path in store.root.glob("runs/*/record.json")}
    dry = command("extend", "my results", "--seeds", "3", "--method", METHOD, "--dry-run", cwd=tmp_path)
    assert "my results: 4 runs to add (seed 2, method bitfit lr 1e-3); 2 are there." in dry.out
    assert len(store.runs()) == 2
    done = command("extend", "my results", "--seeds", "3", "--method", METHOD, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "2 of 6 runs have ended before" in done.err
    assert {path: path.read_bytes() for path in before} == before
    assert store.study().seeds == (0, 1, 2)
    assert len(store.finished_runs()) == len(store.runs()) == 6
    assert {record.study_hash for record in store.finished_runs().values()} >= {store.study().hash}
    page = (store.root / "report" / "report.md").read_text()
    assert "manytune extend 'my results' --seeds 5" in page.replace("\\", "")
    summary = json.loads((store.root / "report" / "summary.json").read_text())
    assert summary["complete"]

    again = command("extend", "my results", "--seeds", "3", "--method", METHOD, cwd=tmp_path)
    assert (again.code, again.out) == (
        0,
        "my results: nothing to add: all 6 runs are there and have ended. Ask for more.\n",
    )
    stale = command("run", "study.yaml", "--out", "my results", cwd=tmp_path)
    assert stale.code == 2
    assert "It has all these runs and more: manytune extend my results goes on with it." in stale.err


def test_check_shows_planned_looks_and_extend_says_what_goes_past_them(
    tiny: Path, command: Command, tmp_path: Path
) -> None:
    task = small_task(tmp_path)
    write_small_study(tmp_path, tiny, SHORT, seeds={"looks": [5, 10, 20]}, tasks=[{**task, "metric": "rmse"}])
    checked = command("check", "study.yaml", cwd=tmp_path)
    assert "5 seeds; planned looks at 5, 10, 20 seeds" in checked.out
    facts = json.loads(command("check", "study.yaml", "report.margin=0.5", "--json", cwd=tmp_path).out)
    constant = facts["tasks"][0]["baselines"][0]["scores"]["rmse"]
    assert f"As good: at most {0.01 * constant:.4g} worse in RMSE (report.margin, by default)." in checked.out
    assert (facts["tasks"][0]["margin"], facts["looks"]) == (0.5, [5, 10, 20])

    store = Store.create_or_open(tmp_path / "out", Study.from_file(tmp_path / "study.yaml"))
    run = store.runs()[0]
    store.write_record(make_record(run_id=run.id, task=run.task, seed=run.seed, label=run.label, model=run.model))
    past = command("extend", "out", "--seeds", "7", "--dry-run", cwd=tmp_path)
    assert "Seeds 5 → 7 is no planned look (5, 10, 20): the verdict stays that of the first 5 seeds." in past.out
    assert "look" not in command("extend", "out", "--seeds", "10", "--dry-run", cwd=tmp_path).out


def test_where_it_was_killed_it_goes_on(tiny: Path, command: Command, tmp_path: Path) -> None:
    """Between the study file and the plan, which are written one after the other."""
    study = small_study(tiny, training=SHORT, seeds=[0])
    run_study(study, tmp_path / "out", callbacks=())
    (tmp_path / "out" / "study.yaml").write_text(extend_study(study, seeds="2").to_yaml())
    done = command("extend", "out", "--seeds", "2", cwd=tmp_path)
    assert "out: nothing to add; 1 run of before to go on with." in done.out
    assert [record.seed for record in Store.open(tmp_path / "out").finished_runs().values()] == [0, 1]


def test_two_at_once_both_take_effect(tiny: Path, tmp_path: Path) -> None:
    """Both have read the study when they get the lock, one after the other."""
    out = tmp_path / "out"
    run_study(small_study(tiny, training=SHORT, seeds=[0], tasks=[small_task(tmp_path)]), out, callbacks=())
    command = [sys.executable, "-m", "manytune", "extend", str(out), "--wait", "--device", "cpu"]
    asked = {"seeds": ("--seeds", "2"), "method": ("--method", METHOD)}
    said = {name: (tmp_path / f"{name}.out", tmp_path / f"{name}.err") for name in asked}
    processes: dict[str, ForkedProcess] = {}
    with Lock(out, lambda text: None).held():
        for name, words in asked.items():
            with said[name][0].open("wb") as stdout, said[name][1].open("wb") as stderr:
                processes[name] = ForkedProcess([*command, *words], stdout=stdout, stderr=stderr)
        for name, process in processes.items():
            until_brought_about(lambda file=said[name][1]: "Waiting for" in file.read_text(), process)
    assert [process.wait() for process in processes.values()] == [0, 0], [file.read_text() for _, file in said.values()]
    store = Store.open(out)
    assert (store.study().seeds, len(store.study().methods)) == ((0, 1), 2)
    assert len(store.finished_runs()) == len(store.runs()) == 4
    outs = [stdout.read_text() for stdout, _ in said.values()]
    late = [text for text in outs if f"{out} was changed by another process meanwhile." in text]
    assert len(late) == 1
    assert f"{out}: 2 runs to add" in late[0], "the seed of both methods, or the method with both seeds"


@pytest.mark.parametrize(
    ("seeds", "said"),
    [("3", "3 of 3 runs have ended before."), ("2", "--seeds: the study has 3 seeds already")],
)
def test_what_was_added_meanwhile_is_not_added_again(
    tiny: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, seeds: str, said: str
) -> None:
    study = small_study(tiny, training=SHORT, seeds=[0], tasks=[small_task(tmp_path)])
    run_study(study, tmp_path / "out", callbacks=())
    look = Lock.look

    def extend_first(self: Lock) -> None:
        """Another one comes between the first reading of the study and the lock."""
        monkeypatch.setattr(Lock, "look", look)
        add = partial(extend_study, seeds="3")
        run_study(add(study), tmp_path / "out", callbacks=(), additions=add)

    monkeypatch.setattr(Lock, "look", extend_first)
    done = command("extend", "out", "--seeds", seeds, cwd=tmp_path)
    assert said in done.out + done.err
    assert Store.open(tmp_path / "out").study().seeds == (0, 1, 2)


def test_additions_are_no_licence_for_changes(tiny: Path, tmp_path: Path) -> None:
    study = small_study(tiny, training=SHORT, seeds=[0])
    Store.create_or_open(tmp_path / "out", study)
    for changes in ({"seeds": [1, 2]}, {"training": {**SHORT, "max_steps": 3}}, {"limit": 30}):
        with pytest.raises(StoreError, match="already holds a study that differs"):
            Store.check(
                tmp_path / "out", small_study(tiny, **{"training": SHORT, "seeds": [0]} | changes), additions=True
            )
    assert Store.check(tmp_path / "out", small_study(tiny, training=SHORT, seeds=[0, 1]), additions=True)


def grown(seeds: str | None = None, *methods: str) -> Study:
    return extend_study(small_study(Path("m")), seeds=seeds, methods=methods)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2", (0, 1)), ("4", (0, 1, 2, 3)), ("3,4", (0, 1, 3, 4)), ("1,7", (0, 1, 7)), ("9,", (0, 1, 9)), (None, (0, 1))],
)
def test_seeds(given: str | None, expected: tuple[int, ...]) -> None:
    assert grown(given).seeds == expected


def test_methods() -> None:
    assert len(grown(None, "lora rank=[4, 16] learning_rate=3e-4", "full learning_rate=2e-5").methods) == 3
    assert grown(None, "lora rank=2 learning_rate=1e-3") == small_study(Path("m")), "it is there already"
    assert grown(None, METHOD, METHOD) == grown(None, METHOD)


@pytest.mark.parametrize(
    ("seeds", "method", "said"),
    [
        ("1", None, "--seeds: the study has 2 seeds already, and 1 are fewer"),
        ("many", None, "--seeds: 'many' is no number of seeds"),
        ("99999999999,", None, "--seeds: '99999999999,' is no number of seeds"),
        ("4999999999,", None, "seeds.2: received 4999999999"),
        (
            None,
            "lorra rank=2",
            f"'lorra' is not one of: {', '.join(METHODS)}. Did you mean 'lora'?",
        ),
        (None, "lora rank=2", "learning_rate"),
        (None, "lora rank=two learning_rate=1e-3", "rank: received 'two'"),
        (None, "lora 16", '"full learning_rate=2e-5"'),
        (None, "", "give the method's name"),
        (None, "lora rank=[2,4] learning_rate=1e-3", "both come to the run"),
    ],
)
def test_what_cannot_be_added_is_refused(seeds: str | None, method: str | None, said: str) -> None:
    with pytest.raises(StudyError) as error:
        grown(seeds, *([method] if method is not None else []))
    assert said in str(error.value)
