"""Small inputs that stand for a lot, and files that never end: refused in one short message, with little work."""

from __future__ import annotations

import io
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manytune.config import Study, study_file
from manytune.config.plan import plan_packs, plan_runs
from manytune.config.study_file import apply_overrides, read
from manytune.executors.estimate import HardwareProfile, estimate_pack, largest_packs
from manytune.report.guard import ReportWarning
from manytune.storage.artifacts import PREDICTIONS, predictions_from_bytes
from manytune.storage.directory import Store
from manytune.storage.lock import Lock
from manytune.storage.lookup import SNAPSHOT, altered
from manytune.storage.provenance import keep
from manytune.tracking.pack_progress import read_live
from manytune.training import workload
from manytune.training.checkpoints import Checkpoints
from manytune.training.snapshot import load
from manytune.utils import fields
from manytune.utils.errors import ManytuneError, StoreError, StudyError
from manytune.utils.files import read_bytes, read_text, sync
from manytune.utils.problems import show
from study_factory import make_study_directory

HEAD = """\
name: bomb
tasks: [builtin-acceptability]
seeds: [0]
methods:
  - {method: lora, rank: 4, learning_rate: 1e-3}
"""
DATA: dict[str, Any] = {
    "name": "small",
    "tasks": ["builtin-acceptability"],
    "seeds": [0],
    "methods": [{"method": "lora", "rank": 4, "learning_rate": 1e-3}],
}


def refused(text: str, folder: Path, *overrides: str) -> str:
    """The message that a study file's text is refused with."""
    (folder / "study.yaml").write_text(text)
    with pytest.raises(StudyError) as error:
        Study.from_file(folder / "study.yaml", overrides)
    assert len(str(error.value)) < 3100
    return str(error.value)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fail instead of waiting for a pipe that nobody writes to."""

    def end(number: int, frame: object) -> None:
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lists(levels: int) -> str:
    """Each list holds the one before nine times."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int) -> str:
    """Each mapping merges the one before nine times."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{at}: &a{at} {{<<: [{', '.join([f'*a{at - 1}'] * 9)}], k{at}: 1}}" for at in range(1, levels)]
    return "\n".join(lines) + "\n"


class TestAStudyFile:
    @pytest.mark.parametrize(
        "text", [lists(10), merges(9), "x: &x '" + "y" * 300_000 + "'\nz: [" + "*x, " * 500 + "]\n"]
    )
    def test_aliases_and_merges_are_counted_as_written_out(self, text: str, tmp_path: Path) -> None:
        assert re.search(r"line \d+, column \d+: it holds more than 100,000 values", refused(HEAD + text, tmp_path))

    def test_a_few_aliases_and_merges_are_what_they_are_for(self, tmp_path: Path) -> None:
        lines = HEAD.splitlines()[:-1]
        lines += ["  - &one {method: lora, rank: 4, learning_rate: &rate 1e-3}", "  - {<<: *one, rank: 8}"]
        lines += ["  - {method: full, learning_rate: *rate}"]
        (tmp_path / "study.yaml").write_text("\n".join(lines))
        assert len(plan_runs(Study.from_file(tmp_path / "study.yaml"))) == 3

    def test_a_list_inside_of_itself_is_refused_and_not_followed(self, tmp_path: Path) -> None:
        assert "seeds.0 (line 3): received [[" in refused(HEAD.replace("[0]", "&x [*x]"), tmp_path)

    def test_no_more_values_than_a_study_can_have_are_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(study_file, "_MOST_VALUES", 1000)
        # What follows is no YAML: it is never come to.
        assert "more than 1,000 values" in refused(HEAD + f"x: [{'1,' * 1001} ]]]]", tmp_path)

    @pytest.mark.parametrize("sign", ["[", "{a: ", "- ", "? "])
    def test_deep_nesting(self, sign: str, tmp_path: Path) -> None:
        assert "nested too deeply, in more than 50 levels" in refused("x:\n  " + sign * 60, tmp_path)

    def test_a_file_beyond_a_megabyte(self, tmp_path: Path) -> None:
        message = refused(HEAD + "#" * 1_000_000, tmp_path)
        assert "more than 1,000,000 bytes" in message

    def test_a_device_is_refused_and_a_pipe_is_read_to_its_bound(self, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="no regular file"):
            read("/dev/zero")
        pipe_out, pipe_in = os.pipe()
        with open(pipe_in, "wb") as file:
            file.write(HEAD.encode())
        assert Study.from_file(f"/dev/fd/{pipe_out}").name == "bomb"
        os.close(pipe_out)

    @pytest.mark.parametrize("name", ["~nobody-is-called-so/study.yaml", "a\0b"])
    def test_names_that_no_file_has(self, name: str) -> None:
        with pytest.raises(StudyError):
            read(name)

    def test_thousands_of_problems_are_not_all_listed(self, tmp_path: Path) -> None:
        message = refused(HEAD.replace("[0]", "[" + "x, " * 5000 + "]"), tmp_path)
        assert message.count("must be a whole number") == 20
        assert message.endswith("and more")

    def test_problems_beyond_those_listed_are_not_even_worded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from manytune.config import schema

        asked: list[str] = []
        monkeypatch.setattr(schema, "choices", lambda name, allowed: asked.append(name) or "no such key")
        with pytest.raises(StudyError):
            Study.from_dict({**DATA, **{f"key-{at}": 1 for at in range(1000)}})
        assert len(asked) == 21
        asked.clear()
        by_task = {"builtin-acceptability": 1e-3, **{f"task-{at}": 1e-3 for at in range(1000)}}
        with pytest.raises(StudyError):
            Study.from_dict({**DATA, "methods": [{"method": "full", "learning_rate": by_task}]})
        assert len(asked) == 21

    @pytest.mark.parametrize(
        "text",
        [
            HEAD + "? " + "k" * 200_000 + "\n: 1\n",
            HEAD.replace("builtin-acceptability", "t" * 200_000),
            HEAD.replace("rank: 4", "rank: " + "t" * 200_000),
            HEAD + "x: !!int '" + "t" * 200_000 + "'\n",
            HEAD + "x: [[[[" + "[1,2,3,4,5,6,7,8,9]," * 100 + "]]]]\n",
            HEAD.replace("4,", f"{'[' * 10}{'1,' * 9000}{']' * 10},"),
        ],
    )
    def test_long_values_are_quoted_shortly(self, text: str, tmp_path: Path) -> None:
        assert len(refused(text, tmp_path)) < 700


class TestOverrides:
    @pytest.mark.parametrize(
        "override",
        [
            "training.epochs=" + "[" * 50_000,
            "training.epochs=" + "x" * 50_000,
            "training.epochs=" + "9" * 5000,
            "a." * 50_000 + "b=1",
            "x" * 50_000,
            "seeds." + "9" * 5000 + "=1",
            "name." + "x" * 50_000 + "=1",
            "seeds=[" + "9" * 4200 + "]",
        ],
    )
    def test_a_long_or_deep_one(self, override: str, tmp_path: Path) -> None:
        assert len(refused(HEAD, tmp_path, override, "name=other")) < 700

    def test_several_on_a_deep_file_do_not_exhaust_the_stack(self, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text(HEAD + "x: " + "[" * 45 + "]" * 45)
        once = read(tmp_path / "study.yaml", ["name=other"])
        assert apply_overrides(once, ["name=third"]).data["name"] == "third"


class TestNumbers:
    @pytest.mark.parametrize(
        "change",
        [
            {"seeds": [10**5000]},
            {"seeds": 10**5000},
            {"training": {"epochs": 10**5000}},
            {"training": {"class_weights": [10**5000, 1]}},
            {"training": {"max_grad_norm": 10**4200}},
            {"methods": [{"method": "lora", "rank": 10**5000, "learning_rate": 1e-3}]},
            {"methods": [{"method": "lora", "rank": 4, "learning_rate": 10**5000}]},
        ],
    )
    def test_that_no_float_holds(self, change: dict[str, Any]) -> None:
        with pytest.raises(StudyError) as error:
            Study.from_dict({**DATA, **change})
        assert len(str(error.value)) < 400

    def test_what_is_shown_of_a_value_is_short(self) -> None:
        wide: Any = "x"
        for _ in range(7):
            wide = [wide] * 8
        assert len(show(wide)) <= 200
        assert show(10**5000) == "<a number of 16,610 bits>"


class TestRuns:
    def test_lists_that_multiply_to_too_many_are_refused_before_any_is_made(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        methods = [{"method": "lora", "rank": [*range(1, 1001)], "learning_rate": [at * 1e-6 for at in range(1, 1001)]}]
        with pytest.raises(StudyError, match=r"it comes to 1000000 runs.* a study can have 100,000"):
            Study.from_dict({**DATA, "methods": methods})
        by_task = {"builtin-acceptability": [*range(1, 400)]}
        methods = [{"method": "lora", "rank": by_task, "learning_rate": 1e-3}]
        with pytest.raises(StudyError, match="it comes to 399000 runs"):
            Study.from_dict({**DATA, "seeds": [*range(1000)], "methods": methods})

    def test_what_is_kept_of_a_study_can_be_read_again(self, tmp_path: Path) -> None:
        lines = [f"  - {{<<: *one, rank: {rank}}}" for rank in range(2, 5000)]
        text = "\n".join([*HEAD.splitlines()[:-1], "  - &one {method: lora, rank: 1, learning_rate: 1e-3}", *lines])
        assert "with its defaults it takes more than 500,000 characters" in refused(text, tmp_path)

    def test_a_long_list_is_looked_through_once(self) -> None:
        compared = 0

        class Value(int):
            def __eq__(self, other: object) -> bool:
                nonlocal compared
                compared += 1
                return int(self) == other

            __hash__ = int.__hash__

        assert len(fields._distinct(tuple(Value(at) for at in range(3000)))) == 3000
        assert compared < 3000

    def test_seeds_of_one_method_are_estimated_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        study = Study.from_dict({**DATA, "model": "minilm", "seeds": [*range(200)]})
        try:
            work = workload.prepare(study, "builtin-acceptability")
        except ManytuneError:
            pytest.skip("MiniLM is not here")
        counted: list[object] = []
        count = workload.count_parameters
        monkeypatch.setattr(workload, "count_parameters", lambda *given: counted.append(given) or count(*given))
        runs = plan_runs(study)
        profile = HardwareProfile("cpu", torch.float32, 2**40, 1e10)
        packs = plan_packs(runs, largest_packs(runs, {"builtin-acceptability": work}, profile))
        assert sum(len(estimate_pack(work, pack, profile).parameters) for pack in packs) == 200
        assert len(counted) == 1 + len(packs)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = make_study_directory(
        tmp_path / "out", {**DATA, "seeds": [0, 1]}, pending=["builtin-acceptability-lora-r4-lr1e-3-s1"]
    )
    keep(made.root, {"versions": {"torch": "1"}})
    return made


def reports(store: Store) -> None:
    from manytune.report.writing import write_report

    write_report([store.root])


RUN = "runs/builtin-acceptability-lora-r4-lr1e-3-s0-*"
READ: list[tuple[str, Callable[[Store], object]]] = [
    ("study.yaml", lambda store: Store.check(store.root, Study.from_dict(DATA))),
    ("plan.json", Store.status),
    (f"{RUN}/record.json", Store.status),
    (f"{RUN}/history.csv", reports),
    (f"{RUN}/predictions.npz", reports),
    ("tasks/builtin-acceptability/examples.json", reports),
    ("tasks/builtin-acceptability/structure.json", reports),
    ("provenance.json", lambda store: keep(store.root, {})),
    ("ground.json", lambda store: keep(store.root, {})),
    ("lock", lambda store: Lock(store.root, lambda text: None).look()),
]


class TestFilesOfAStudyDirectory:
    @pytest.mark.parametrize(("name", "use"), READ, ids=[name for name, _ in READ])
    @pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
    def test_what_is_no_file_is_refused_at_once(
        self, name: str, use: Callable[[Store], object], kind: str, store: Store
    ) -> None:
        (path,) = store.root.glob(name) if name not in ("lock", "ground.json") else [store.root / name]
        path.unlink(missing_ok=True)
        if name == "ground.json":  # an earlier version's, which is read where there is no provenance.json
            (store.root / "provenance.json").unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(2**40)
        reported = (ManytuneError, ReportWarning)
        with no_waiting(), pytest.raises(reported, match=rf"{re.escape(path.name)}(?!.*it waits)") as error:
            use(store)
        assert len(str(error.value)) < 500

    def test_live_files_that_are_none_are_passed_over(self, store: Store) -> None:
        (store.root / "live").mkdir()
        os.mkfifo(store.root / "live" / "a-pack.json")
        (store.root / "live" / "b-pack.json").symlink_to("/dev/zero")
        with no_waiting():
            assert read_live(store.root) == []

    @pytest.mark.parametrize("name", ["snapshot.json", "snapshot.safetensors"])
    def test_a_snapshot(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "snapshot.json").write_text('{"format": 1}')
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with no_waiting(), pytest.raises(StoreError, match="it is a pipe"):
            load(tmp_path)

    @pytest.mark.parametrize("name", [PREDICTIONS, *SNAPSHOT])
    def test_a_file_of_a_run_of_which_the_record_holds_a_digest(self, name: str, store: Store) -> None:
        record = next(iter(store.finished_runs().values()))
        path = store.run_dir(record.run_id) / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with no_waiting(), pytest.raises(StoreError, match="it is a pipe"):
            altered(store, record, [name])

    def test_a_checkpoint(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "roster-000000001.json")
        with no_waiting(), pytest.raises(StoreError, match=r"roster-000000001\.json cannot be read: it is a pipe"):
            Checkpoints(tmp_path, [], None, {}).newest(lambda text: None)

    def test_logits_that_unpack_to_more_than_memory_holds(self) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 2**10)}
            )
            archive.writestr("logits.npy", header.getvalue())
        with pytest.raises(StoreError, match="here is damaged"):
            predictions_from_bytes(file.getvalue(), where="here")


class TestReading:
    def test_a_limit_that_the_caller_states(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"12345")
        assert read_bytes(path, 5) == b"12345"
        with pytest.raises(StoreError, match="it has more than 4 bytes"):
            read_bytes(path, 4)

    def test_what_is_not_there_is_none_and_a_folder_an_error(self, tmp_path: Path) -> None:
        assert read_text(tmp_path / "none") is None
        assert read_text(tmp_path / "none" / "below") is None
        with pytest.raises(StoreError, match="Is a directory"):
            read_text(tmp_path)

    def test_a_pipe_where_one_may_be(self, tmp_path: Path) -> None:
        pipe_out, pipe_in = os.pipe()
        with open(pipe_in, "wb") as file:
            file.write(b"x" * 100)
        with pytest.raises(StoreError, match="more than 10 bytes"):
            read_bytes(Path(f"/dev/fd/{pipe_out}"), 10, pipe=True)
        os.close(pipe_out)

    def test_a_pipe_is_not_waited_for_when_a_directory_is_brought_to_the_disk(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with no_waiting():
            sync(tmp_path / "pipe")


def test_a_table_names_some_of_many_runs(tmp_path: Path) -> None:
    from manytune.report.task_table import tabulate

    study = {**DATA, "seeds": [*range(40)]}
    every = make_study_directory(tmp_path, study, states={"": "collapsed"}, artifacts=False)
    (table,) = tabulate(every.finished_runs().values())
    (note,) = table.rows[0].notes
    assert note.startswith("40 of 40 collapsed: ")
    assert note.endswith(" and 20 more")
