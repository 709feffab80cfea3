"""What a study says of itself while it trains, and the page that shows it."""

from __future__ import annotations

import errno
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import SimpleNamespace
from typing import Any

import pytest

from manytune.config.plan import Run, plan_packs
from manytune.methods import make_method
from manytune.report.live_page import serve
from manytune.report.live_page import server as watch_server
from manytune.report.live_page.state import Watched
from manytune.storage.directory import Store
from manytune.storage.lock import Lock
from manytune.storage.record import HistoryRow
from manytune.tracking.pack_progress import LiveFileWriter, read_live
from manytune.training.callbacks import How, PackEnd
from manytune.utils.errors import StoreError
from record_factory import make_record
from study_factory import GLUE_LIKE, make_study_directory


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def row(step: int, score: float = 0.5) -> HistoryRow:
    return HistoryRow(step=step, train_loss=0.7, eval_loss=0.6, metrics={"matthews_correlation": score})


class TestLiveFiles:
    def test_a_pack_can_be_read_while_it_trains(self, tmp_path: Path) -> None:
        clock = Clock()
        live = LiveFileWriter(tmp_path, clock)
        live.on_train_begin("p", "cola", "matthews_correlation", ["a", "b"], 100)
        clock.now += 10
        live.on_step_end("p", 1, [0.5, math.nan])
        clock.now += 10
        live.on_step_end("p", 11, [0.5, 1.0])
        live.on_evaluate("p", 11, {"a": row(11)}, ("a", 0.5))
        (pack,) = read_live(tmp_path)
        assert (pack.pack_id, pack.task, pack.runs, pack.total_steps) == ("p", "cola", ["a", "b"], 100)
        assert (pack.step, pack.loss, pack.best) == (11, 0.75, ("a", 0.5))
        assert pack.rows == {"a": [row(11)]}
        assert pack.seconds_left(0) == pytest.approx(20 / 11 * 89)
        live.on_pack_end(PackEnd("p", "done"))
        assert read_live(tmp_path) == []

    def test_setting_the_wall_clock_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, wall = Clock(), Clock()
        monkeypatch.setattr("manytune.tracking.pack_progress.time.time", wall)
        live = LiveFileWriter(tmp_path, clock)
        live.on_train_begin("p", "cola", "matthews_correlation", ["a"], 100)
        for step in range(1, 11):
            clock.now += 1.0
            wall.now -= 3600.0
            live.on_step_end("p", step, [0.5])
        (pack,) = read_live(tmp_path)
        assert pack.step == 10
        assert pack.seconds_left(0) == pytest.approx(90.0)
        assert pack.seconds_left(30) == pytest.approx(60.0)

    def test_files_are_written_once_a_second_at_most(self, tmp_path: Path) -> None:
        clock = Clock()
        live = LiveFileWriter(tmp_path, clock)
        live.on_train_begin("p", "cola", "matthews_correlation", ["a"], 100)
        for step in range(1, 11):
            clock.now += 0.25
            live.on_step_end("p", step, [0.5])
        assert read_live(tmp_path)[0].step == 8

    @pytest.mark.parametrize("how", ["stopped", "lost", "refused"])
    def test_what_was_seen_before_a_pack_went_on_stays_and_is_not_repeated(self, tmp_path: Path, how: How) -> None:
        before = LiveFileWriter(tmp_path, Clock())
        before.on_train_begin("p", "cola", "matthews_correlation", ["a", "b"], 100)
        for step in (10, 20, 30):
            before.on_evaluate("p", step, {"a": row(step, 0.1), "b": row(step)}, ("b", 0.5))
        before.on_pack_end(PackEnd("p", how))
        after = LiveFileWriter(tmp_path, Clock())
        after.on_train_begin("p", "cola", "matthews_correlation", ["a"], 100, first_step=20)
        after.on_step_end("p", 21, [0.5])
        after.on_evaluate("p", 30, {"a": row(30, 0.2)}, ("a", 0.2))
        (pack,) = read_live(tmp_path)
        assert pack.first_step == 20
        assert pack.rows == {"a": [row(10, 0.1), row(20, 0.1), row(30, 0.2)]}

    def test_what_others_left_of_packs_that_are_gone_goes(self, tmp_path: Path) -> None:
        before = LiveFileWriter(tmp_path, Clock())
        runs = [Run(f"run{seed}", "m", "cola", make_method("head", learning_rate=1e-3), seed) for seed in (0, 1)]
        packs = plan_packs(runs, 1)
        for pack in packs:
            before.on_train_begin(pack.id, "cola", "matthews_correlation", ["a"], 100)
        before.on_train_begin("of another plan", "cola", "matthews_correlation", ["a"], 100)
        LiveFileWriter(tmp_path).on_study_begin(packs, {"run0": make_record()})
        assert [pack.pack_id for pack in read_live(tmp_path)] == [packs[1].id]

    def test_a_study_directory_that_was_moved_away_is_not_made_anew(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        live = LiveFileWriter(tmp_path / "out", Clock())
        live.on_train_begin("p", "cola", "matthews_correlation", ["r0"], 10)
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        live.on_evaluate("p", 5, {"r0": HistoryRow(step=5)}, ("r0", 0.1))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": {}}', '{"rows": {"a": [{}]}}'])
    def test_a_file_that_is_not_whole_is_no_pack(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "live").mkdir()
        (tmp_path / "live" / "p.json").write_text(text)
        assert read_live(tmp_path) == []


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A study of which one run failed, others have not ended, and a pack trains."""
    root = tmp_path_factory.mktemp("watched") / "study"
    store = make_study_directory(root, GLUE_LIKE, states={"cola-lora-r256-lr4e-4-s1": "failed"})
    for run in store.runs()[:2]:
        store.reset_run(run.id)
    training = store.runs()[1]
    (pack,) = plan_packs([training], 1)
    live = LiveFileWriter(root)
    live.on_train_begin(pack.id, training.task, "matthews_correlation", [training.id], 100)
    for step in (25, 50):
        live.on_step_end(pack.id, step, [0.4])
        live.on_evaluate(pack.id, step, {training.id: row(step, 0.1)}, (training.id, 0.1))
    return store


class TestState:
    def test_it_is_what_the_directory_holds(self, store: Store) -> None:
        state = Watched(store).state()
        training = store.runs()[1]
        assert state["title"] == store.study().name
        assert not state["complete"]
        (pack,) = state["packs"]
        assert (pack["step"], pack["total_steps"], pack["loss"]) == (50, 100, "0.4000")
        assert pack["best"] == f"MCC 0.1000 ({training.id})"
        assert pack["quiet"].startswith("nothing heard for")  # nobody holds the lock
        assert state["driver"] == "No process works on this directory now."
        assert len(state["failures"]) == 1
        assert "lora-r256" in state["failures"][0]["run"]
        states = [run["state"] for run in state["runs"]]
        assert states.count("stopped") == 1
        assert states.count("pending") == 1
        assert state["left"] is None
        assert states[0] == "failed"
        assert re.search(r"CPU \d+ % of \d+ cores, memory ", state["machine"][0])
        json.dumps(state, allow_nan=False)

    def test_while_a_process_works_on_it_its_runs_run(self, store: Store) -> None:
        with Lock(store.root, print).held():
            state = Watched(store).state()
        assert state["driver"].startswith("The process ")
        assert [run["state"] for run in state["runs"]].count("running") == 1
        assert state["left"].startswith("The packs that train now need about ")
        assert state["left"].endswith("1 run waits for a free worker.")

    def test_the_curves_are_the_reports_with_those_that_grow(self, store: Store) -> None:
        training = store.runs()[1]
        charts = {chart["key"]: chart for chart in Watched(store).state()["charts"]}
        assert set(charts) == {"cola-chart-curves", "stsb-chart-curves"}
        traces = charts["cola-chart-curves"]["data"]
        (own,) = [t for t in traces if "(stopped)" in t.get("hovertemplate", "") and t["yaxis"] == "y"]
        assert (own["x"], own["y"]) == ([25, 50], [0.1, 0.1])
        assert f"seed {training.seed}" in own["name"]


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(store: Store) -> Iterator[ThreadingHTTPServer]:
    with running(serve(store)) as server:
        yield server


class TestServer:
    def ask(self, server: ThreadingHTTPServer, path: str, host: str | None = None, method: str = "GET") -> Any:
        port = server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def test_it_listens_to_this_machine_alone(self, server: ThreadingHTTPServer) -> None:
        assert server.server_address[0] == "127.0.0.1"
        for host in ("evil.example", f"evil.example:{server.server_address[1]}", "127.0.0.1:1", ""):
            answer, body = self.ask(server, "/state", host=host or " ")
            assert answer.status == 403
            assert b"cola" not in body
        port = server.server_address[1]
        assert self.ask(server, "/state", host=f"localhost:{port}")[0].status == 200

    def test_the_page_may_run_its_own_scripts_and_ask_its_own_server(self, server: ThreadingHTTPServer) -> None:
        answer, body = self.ask(server, "/")
        assert answer.status == 200
        assert answer.getheader("Cache-Control") == "no-store"
        assert "connect-src &#39;self&#39;" in body.decode() or "connect-src 'self'" in body.decode()
        assert b"manytuneCharts" in body

    def test_nothing_else_is_there(self, server: ThreadingHTTPServer) -> None:
        for path in ("/study.yaml", "/../study.yaml", "/state/"):
            assert self.ask(server, path)[0].status == 404
        assert self.ask(server, "/state", method="POST")[0].status == 501

    def test_what_is_damaged_is_said_and_the_server_goes_on(self, server: ThreadingHTTPServer, store: Store) -> None:
        record = store.run_dir(store.runs()[5].id) / "record.json"
        text = record.read_text()
        try:
            record.write_text("{")
            assert "record.json" in json.loads(self.ask(server, "/state")[1])["error"]
        finally:
            record.write_text(text)
        assert "error" not in json.loads(self.ask(server, "/state")[1])

    def test_a_head_has_no_body(self, server: ThreadingHTTPServer) -> None:
        answer, body = self.ask(server, "/state", method="HEAD")
        assert (answer.status, body) == (200, b"")
        assert int(answer.getheader("Content-Length")) > 100

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
            (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
            (b"GET / HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
            (b"nonsense\r\n\r\n", b"400"),
        ],
    )
    def test_what_is_no_request_is_answered(self, server: ThreadingHTTPServer, sent: bytes, status: bytes) -> None:
        with socket.create_connection(server.server_address[:2]) as connection:  # type: ignore[arg-type]
            connection.sendall(sent)
            assert status in connection.recv(300)

    def test_many_connections_that_say_nothing_keep_nobody_out(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(watch_server, "_SECONDS", 0.3)
        threads = threading.active_count()
        with running(serve(store)) as server, ExitStack() as stack:
            silent = [
                stack.enter_context(socket.create_connection(server.server_address[:2]))  # type: ignore[arg-type]
                for _ in range(3 * watch_server._MOST_CONNECTIONS)
            ]
            silent[0].sendall(b"GET /state HT")  # and one stops in the middle
            assert self.ask(server, "/state")[0].status == 200
            assert threading.active_count() <= threads + watch_server._MOST_CONNECTIONS + 1
            assert silent[0].recv(1) == b""  # it was given up
        assert capfd.readouterr().err == ""

    def test_a_connection_that_says_a_byte_now_and_then_is_given_up(self, store: Store) -> None:
        with serve(store) as server:
            ours, theirs = socket.socketpair()
            server._since[theirs] = -1000.0  # type: ignore[attr-defined]
            server._give_up_the_slow()  # type: ignore[attr-defined]
            assert ours.recv(1) == b""
            server._since.clear()  # type: ignore[attr-defined]
            for each in (ours, theirs):
                each.close()

    def test_where_no_file_can_be_opened_it_waits_and_goes_on(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries: list[float] = []
        waits: list[float] = []
        accept = TCPServer.get_request

        def no_more_files(server: TCPServer) -> Any:
            tries.append(0)
            if len(tries) < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(server)

        monkeypatch.setattr(TCPServer, "get_request", no_more_files)
        monkeypatch.setattr(watch_server, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
        with running(serve(store)) as server:
            assert self.ask(server, "/state")[0].status == 200
        assert waits == [watch_server._PAUSE_SECONDS] * 3  # not as often as the processor can

    def test_a_port_that_is_taken_is_refused(self, server: ThreadingHTTPServer, store: Store) -> None:
        port = server.server_address[1]
        with pytest.raises(StoreError, match=f"--port: {port} cannot be listened at: Address already in use"):
            serve(store, port)
