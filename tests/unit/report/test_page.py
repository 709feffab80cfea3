"""The page and the other files: escaped, self-contained, the same bytes, the same figures everywhere."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from manytune.report import page as page_module
from manytune.report.content import Content, compose
from manytune.report.folder import MANIFEST
from manytune.report.page import embedded, render_page
from manytune.report.report_data import read
from manytune.report.sheets import measured, show, to_tex
from manytune.report.writing import files_of, write_report
from manytune.stats.claims import Comparison
from manytune.utils.errors import DependencyError, StoreError
from manytune.utils.text import markdown
from study_factory import GLUE_LIKE, HOSTILE, make_study_directory


class Page(HTMLParser):
    """What a browser makes of the page: elements, texts, tables, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.tables: dict[str, list[list[tuple[str, str]]]] = {}
        self._open: list[str] = []
        self._table = ""
        self._cell: list[str] | None = None
        self._value = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.elements.append((tag, facts))
        if tag not in ("meta", "link", "br", "img"):
            self._open.append(tag)
        if tag == "table":
            self._table = facts.get("data-sheet") or ""
            self.tables[self._table] = []
        if tag == "tr" and self._table:
            self.tables[self._table].append([])
        if tag in ("td", "th") and "data-value" in facts:
            self._cell, self._value = [], facts["data-value"] or ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th") and self._cell is not None:
            self.tables[self._table][-1].append(("".join(self._cell), self._value))
            self._cell = None
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.texts.append(data)
            if self._cell is not None:
                self._cell.append(data)

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.elements)

    def ids(self) -> list[str]:
        return [str(facts["id"]) for _, facts in self.elements if "id" in facts]


@pytest.fixture(scope="module")
def files(content: Content) -> dict[str, str | bytes]:
    return files_of(content)


@pytest.fixture(scope="module")
def text(files: dict[str, str | bytes]) -> str:
    return str(files["index.html"])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_part_of_the_report_is_there(page: Page) -> None:
    parts = ("scores", "statistics", "curves", "rank", "rates", "cost", "model", "mistakes")
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for task in ("cola", "stsb"):
        assert [key for key in ids if key in {f"{task}-{part}" for part in parts}] == [f"{task}-{p}" for p in parts]
    assert ids.index("answer") < ids.index("cola") < ids.index("stsb") < ids.index("provenance")


def test_links_inside_the_page_lead_somewhere(page: Page) -> None:
    targets = [str(facts["href"])[1:] for tag, facts in page.elements if tag == "a" and str(facts["href"])[:1] == "#"]
    assert len(targets) >= 20
    assert set(targets) <= set(page.ids())


def test_it_asks_nothing_of_anyone(page: Page) -> None:
    """Every address in it is inside the page or in the files beside it, and the policy allows no other."""
    for tag, facts in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            if facts.get(name):
                assert re.match(r"#|data:,$|tables/[a-z0-9_-]+\.csv$", str(facts[name])), (tag, facts)
    (policy,) = [
        facts["content"] for tag, facts in page.elements if facts.get("http-equiv") == "Content-Security-Policy"
    ]
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in str(policy)
    assert "connect-src" not in str(policy)


def test_the_policy_names_exactly_the_scripts_that_are_there(page: Page) -> None:
    (policy,) = [facts["content"] for tag, facts in page.elements if facts.get("http-equiv")]
    data, *programs = page.scripts
    assert json.loads(data)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in programs]
    assert re.findall(r"'sha256-([^']+)'", str(policy)) == digests
    assert len(digests) == 3


def test_no_element_brings_its_own_script(page: Page) -> None:
    assert not [name for _, facts in page.elements for name in facts if name.startswith("on")]


def test_tables_show_what_the_csv_files_hold(content: Content, page: Page, files: dict[str, str | bytes]) -> None:
    assert len(content.sheets) >= 20
    for sheet in content.sheets:
        header, *lines = csv.reader(io.StringIO(str(files[f"tables/{sheet.name}.csv"])))
        shown = page.tables[sheet.name][1:]
        assert len(header) == len(sheet.columns)
        assert len(lines) == len(shown) == len(sheet.rows)
        for line, cells in zip(lines, shown, strict=True):
            left, text = iter(cells), ""
            for column, in_file in zip(sheet.columns, line, strict=True):
                if column.kind == "deviation":  # it stands in the cell of the mean before it
                    mean = float(line[sheet.columns.index(column) - 1]) if in_file else 0.0
                    assert text == (measured(mean, float(in_file)) if in_file else text)
                    continue
                text, value = next(left)
                if column.is_number:
                    assert in_file == value
                    assert " ± " in text or text == show(float(in_file) if in_file else None, column.kind)
                else:
                    assert in_file.removeprefix("'") == value.removeprefix("'").replace("\r", " ")
                    assert text == sheet.names[value] if column.kind == "label" and value else True
            assert not [*left]


def test_charts_have_a_place_words_and_data(content: Content, page: Page) -> None:
    charts = json.loads(page.scripts[0])
    places = {facts["id"]: facts for tag, facts in page.elements if facts.get("class") == "plot"}
    drawn = {chart.key for task in content.tasks for chart in task.charts}
    assert set(charts) == set(places) == drawn
    assert {"cola-chart-answer", "stsb-chart-answer"} < drawn
    assert len(charts) == 11
    assert all(facts["role"] == "img" and facts["aria-label"] for facts in places.values())


def test_headings_go_down_one_step_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    """At least 4.5 to 1 for text and 3 to 1 for lines, as WCAG 2.2 AA asks."""
    style = page_module._text("page.css")
    first, second = re.findall(r":root(?:| *:not\(\.printing\)) \{(\n.*?)\}", style, flags=re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", first if scheme == "light" else second))

    def luminance(color: str) -> float:
        channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colors[one]), luminance(colors[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "card", "soft"):
        for ink in ("ink", "muted", "link", "good", "caution", "open"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    for method in ("blue", "green", "vermilion", "purple", "orange", "sky", "wine", "indigo", "brown", "grey"):
        assert contrast(method, "card") >= 3
        assert contrast("card", method) >= 4.5 or method == "blue"  # white on the boxes of the drawing


def test_hostile_texts_show_as_text(hostile: Path) -> None:
    text = render_page(compose(read([hostile])))
    page = Page(text)
    shown = "".join(page.texts)
    for sentence in HOSTILE:
        assert sentence in shown
    assert page.count("script") == 4
    assert page.count("img") == 0
    assert "window.hacked=1</script>" not in text
    assert "\u2028" not in page.scripts[0]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_in_records_show_as_text(tmp_path: Path, name: str) -> None:
    study = {**GLUE_LIKE, "tasks": ["cola"], "seeds": [0], "methods": GLUE_LIKE["methods"][:1]}
    changes = {"label": name, "study": name, "model": name, "provenance": {"versions": {name: name}}}
    store = make_study_directory(tmp_path / "s", study, artifacts=False, changes=changes)
    files = files_of(compose(read([store.root])))
    page = Page(str(files["index.html"]))
    assert page.count("script") == 4
    assert page.count("img") == 0
    assert name in "".join(page.texts)
    charts = json.loads(page.scripts[0])
    names = [trace["name"] for chart in charts.values() for trace in chart["data"]]
    assert not any(set("<>{") & set(each) for each in names)


def test_embedded_json_cannot_leave_its_element() -> None:
    data = {"a": "</script><!-- & \u2028\u2029", "ü": [1.5, None]}
    text = embedded(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data


def test_the_same_input_gives_the_same_bytes(directory: Path, tmp_path: Path, files: dict[str, str | bytes]) -> None:
    """But for the directory's name, which is in the command that adds seeds."""
    there = tmp_path / "elsewhere"
    shutil.copytree(directory, there)
    again = files_of(compose(read([there])))
    assert list(files) == list(again)
    for name, first in files.items():
        second = again[name]
        if isinstance(first, str):
            for form in (str, markdown):
                second = str(second).replace(form(str(there)), form(str(directory)))
        assert first == second, name


def test_what_is_missing_is_said(old: Path) -> None:
    text = render_page(compose(read([old])))
    assert "Against published figures" not in text
    for expected in (
        "No histories were kept with this study.",
        "The module tree was not kept with this study",
        "Dev predictions were not kept with this study",
        "the dev sentences, or predictions of a run that finished, are not here",
        "too few seeds for a verdict",
    ):
        assert expected in text


def test_a_study_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    study = {**GLUE_LIKE, "methods": GLUE_LIKE["methods"][:2]}
    store = make_study_directory(tmp_path / "s", study, pending=["stsb", "cola-bitfit-lr1e-3-s4"])
    content = compose(read([store.root]))
    assert not content.complete
    assert content.state == ("glue-like: 30 runs: 14 finished, 16 pending",)
    assert content.waiting == ("stsb on minilm",)
    shown = "".join(Page(render_page(content)).texts)
    assert "This study is not complete" in shown
    assert "stsb on minilm: no run has ended yet." in shown
    assert "1 of 15 planned runs has not ended" in shown


def test_a_study_without_any_run_has_a_page(tmp_path: Path) -> None:
    store = make_study_directory(tmp_path / "s", {**GLUE_LIKE, "seeds": [0]}, pending=["cola", "stsb"])
    path, complete = write_report([store.root])
    assert not complete
    assert "there is nothing to report" in path.read_text()


class TestWrite:
    def test_every_file_is_written_and_named_in_one_place(self, directory: Path, files: dict[str, str | bytes]) -> None:
        path, complete = write_report([directory])
        assert complete
        assert path == directory / "report" / "index.html"
        written = {str(each.relative_to(path.parent)) for each in path.parent.rglob("*") if each.is_file()}
        assert written == {*files, MANIFEST}
        assert {"index.html", "report.md", "summary.json", "tables/cola-scores.csv", "figures/stsb-rank.svg"} <= written

    def test_again_it_touches_nothing(self, hostile: Path) -> None:
        path, _ = write_report([hostile])
        before = {each: each.stat().st_mtime_ns for each in path.parent.rglob("*")}
        write_report([hostile])
        assert {each: each.stat().st_mtime_ns for each in path.parent.rglob("*")} == before

    def test_files_of_an_earlier_report_go_and_others_stay(self, hostile: Path, tmp_path: Path) -> None:
        write_report([hostile], tmp_path)
        first = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
        mine = [tmp_path / name for name in ("tables/cola-mine.csv", "tables/mine.txt", "figures/photo.png")]
        for path in mine:
            path.touch()
        write_report([hostile], tmp_path, examples=False)
        second = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path not in mine}
        gone = first - second
        assert gone
        assert all("-mistakes." in name or "-disagreements." in name for name in gone)
        assert all(path.exists() for path in mine)

    def test_the_studys_own_folders_are_no_place_for_it(self, old: Path) -> None:
        for out in (old, old / "runs" / "r", old / "packs"):
            with pytest.raises(StoreError, match="the study"):
                write_report([old], out)

    def test_a_link_is_followed_only_if_it_is_named(self, tmp_path: Path) -> None:
        store = make_study_directory(tmp_path / "s", {**GLUE_LIKE, "seeds": [0]}, pending=["cola", "stsb"])
        (tmp_path / "elsewhere").mkdir()
        store.report_dir.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="report is a link"):
            write_report([store.root])
        assert list((tmp_path / "elsewhere").iterdir()) == []
        assert write_report([store.root], store.report_dir)[0].is_file()

    def test_several_studies_need_a_place_for_their_report(self, old: Path, hostile: Path, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="--out is missing"):
            write_report([old, hostile])
        path, _ = write_report([hostile], tmp_path / "together")
        assert path == tmp_path / "together" / "index.html"

    def test_without_examples_no_sentence_is_anywhere(self, hostile: Path, tmp_path: Path) -> None:
        write_report([hostile], tmp_path / "r", examples=False)
        everything = "".join(p.read_text() for p in (tmp_path / "r").rglob("*.[chjmt]*"))
        assert "window.hacked" in everything  # the failure's text, which is no sentence of the data
        assert "src=x" not in everything
        assert "{{7*7}}" not in everything

    def test_the_summary_is_for_programs(self, content: Content, files: dict[str, str | bytes]) -> None:
        summary: dict[str, Any] = json.loads(str(files["summary.json"]))
        assert [*summary] == ["schema_version", "studies", "complete", "tasks", "search", "waiting", "problems"]
        assert (summary["schema_version"], summary["complete"], summary["search"]) == (3, True, [])
        cola, analysis = summary["tasks"][0], content.tasks[0].analysis
        assert [*cola] == [
            *("key", "task", "model", "metric", "higher_is_better", "selection", "judged", "answer", "configurations"),
            *("baselines", "margin", "level", "leader", "recommended", "comparisons", "pending"),
        ]
        assert [*cola["answer"]] == ["headline", "decided", "points", "notes"]
        assert {point["kind"] for task in summary["tasks"] for point in task["answer"]["points"]} <= {
            *("best", "as good", "fails", "open"),
        }
        assert [set(point) for point in cola["answer"]["points"]] == [{"kind", "text"}] * len(cola["answer"]["points"])
        assert (cola["margin"], cola["level"]) == (0.01, 0.05)
        assert (cola["leader"], cola["recommended"]) == (analysis.verdict.leader, analysis.verdict.recommended)
        assert set(cola["comparisons"][0]) == {each.name for each in dataclasses.fields(Comparison)}
        for cells in cola["configurations"]:
            assert [*cells] == [
                *("label", "method", "metrics", "scores", "seeds_interval", "examples_interval", "may_be_best"),
                *("as_good", "training_rate", "trainable", "trainable_share", "runs"),
            ]
            assert cells["seeds_interval"] == [*(analysis.seed_interval(cells["label"]) or ())]
            rate = analysis.verdict.rates[cells["label"]]
            assert cells["training_rate"] == dataclasses.asdict(rate)
            assert len(cells["scores"]) == rate.trained
        assert cola["answer"]["headline"] == content.tasks[0].answer.headline
        by_label = {each["label"]: each for each in cola["configurations"]}
        row = content.tasks[0].analysis.row("full lr 5e-5")
        assert by_label["full lr 5e-5"]["metrics"]["matthews_correlation"]["best"]["mean"] == row.primary.best.mean
        assert by_label["full lr 5e-5"]["scores"] == {str(run.seed): run.best_score for run in row.finished}
        assert cola["comparisons"][0]["p_holm"] == content.tasks[0].analysis.verdict.comparisons[0].p_holm

    def test_what_the_page_hides_at_first_is_in_the_csv_files_and_in_no_other(
        self, content: Content, files: dict[str, str | bytes]
    ) -> None:
        """But for the page, where a button shows it."""
        checked, markdown_text = 0, str(files["report.md"])
        for sheet in content.sheets:
            extra = [column for column in sheet.columns if column.extra]
            checked += bool(extra)
            header = str(files[f"tables/{sheet.name}.csv"]).splitlines()[0]
            assert header == ",".join(column.name for column in sheet.columns)
            latex = str(files[f"tables/{sheet.name}.tex"]).partition("\\toprule")[2].partition("\\midrule")[0]
            assert latex.count("&") == len(sheet.shown_columns) - 1
            assert f"| {' | '.join(markdown(column.title) for column in sheet.shown_columns)} |" in markdown_text
        assert checked >= 10

    def test_markdown_has_the_answer_the_figures_and_the_tables(self, files: dict[str, str | bytes]) -> None:
        text = str(files["report.md"])
        assert text.startswith("# glue-like\n")
        pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
        assert len(pictures) == 10
        assert set(pictures) <= set(files)
        assert "| configuration | mean ± sd |" in text

    def test_without_plotly_it_says_what_to_install(self, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
        page_module._plotly.cache_clear()
        find = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "plotly" else find(name))
        with pytest.raises(DependencyError, match="pip install plotly"):
            render_page(content)


def test_tables_compile_in_latex(hostile: Path, files: dict[str, str | bytes], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not here; install TeX Live to compile the tables")
    sheets = [to_tex(sheet) for sheet in compose(read([hostile])).sheets]
    tables = [*sheets, *(str(files[name]) for name in files if name.endswith(".tex"))]
    body = "\n\\clearpage\n".join(tables)
    document = "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs,graphicx}\\begin{document}"
    (tmp_path / "t.tex").write_text(f"{document}\n{body}\n\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_real_records_of_the_quickstart_give_a_report(tmp_path: Path) -> None:
    results = Path(__file__).parents[3] / "docs" / "results" / "quickstart"
    records = sorted(results.glob("*.json"))
    assert len(records) == 20
    shutil.copy(results / "study.yaml", tmp_path)
    shutil.copytree(results / "tasks", tmp_path / "tasks")
    scores: dict[str, list[float]] = {}
    for record in records:
        folder = tmp_path / "runs" / record.stem
        folder.mkdir(parents=True)
        shutil.copy(record, folder / "record.json")
        scores.setdefault(record.stem.rsplit("-", 2)[0], []).append(json.loads(record.read_text())["best_score"])
    content = compose(read([tmp_path]))
    (task,) = content.tasks
    assert content.complete
    means = {name: sum(found) / len(found) for name, found in scores.items()}
    best = max(means, key=lambda name: means[name])
    assert task.answer.headline.startswith("tickets, Macro F1: ")
    deviation = statistics.stdev(scores[best])
    assert f"has the highest mean, {means[best]:.3f} (sd {deviation:.3f}, 5 seeds)" in task.answer.headline
    assert {name: round(mean, 3) for name, mean in means.items() if mean < 0.8} == {}, "every method learns"
    page = render_page(content)
    for name, mean in means.items():
        assert measured(mean, statistics.stdev(scores[name])) in page
