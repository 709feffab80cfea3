"""The report of a search: its winners are judged, its trials are shown, and neither is taken for the other."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from manytune.report.content import Content, compose
from manytune.report.page import render_page
from manytune.report.report_data import read
from manytune.report.search_part import importance
from manytune.report.search_part.budget_charts import budget_chart, reach_chart, time_marks
from manytune.report.search_part.importance import about_importance, importance_chart, importances
from manytune.report.search_part.pack_timeline import lanes, timeline_chart
from manytune.report.search_part.parallel_charts import parallel_charts
from manytune.report.search_part.pareto import pareto_chart
from manytune.report.search_part.search_facts import SearchFacts, SpaceFacts, score_then, searches_of, trial_of
from manytune.report.search_part.search_remarks import about_choices, about_ease, about_rates, rate_sheet
from manytune.report.search_part.search_section import search_content
from manytune.report.search_part.search_sheets import effect_sheet, space_sheet, spent_sheet, trial_sheet, tuning_sheet
from manytune.report.search_part.search_summary import search_summary
from manytune.report.search_part.search_words import about_cost, about_search, about_tuning
from manytune.report.search_part.setting_charts import slice_chart
from manytune.report.sheets import Sheet, to_csv
from manytune.report.traces import Chart
from manytune.report.writing import files_of, write_report
from manytune.storage.record import RunRecord, RunState
from manytune.utils.errors import StoreError
from record_factory import make_record
from search_factory import SEARCH, make_search_directory

DRAWN = (budget_chart, reach_chart, slice_chart, importance_chart, timeline_chart, pareto_chart)


@pytest.fixture(scope="module")
def facts(search_report: Content) -> SearchFacts:
    (search,) = search_report.searches
    return search.facts


def trial(number: int, score: float | None, settings: dict[str, Any], state: str = "finished", **of: Any) -> RunRecord:
    """A trial of LoRA on CoLA."""
    scores = {"accuracy": score}
    own = {"space": "lora", "number": number, "settings": settings, "unpruned": True, "total_steps": 100, "rungs": []}
    place = {"pack": "cola-adapters-0", "joined": 0, "left": 100, "began": 10.0 * number, "ended": 10.0 * number + 10}
    return make_record(
        run_id=f"trial-{number}",
        state=state,
        failure="Memory ran out." if state == "failed" else None,
        best_score=score,
        primary_metric="accuracy",
        scores=scores,
        last_score=None,
        last_scores={},
        selection="train-split",
        steps=100,
        trial={**own, **place, **of.pop("trial", {})},
        **{"cost": {"train_seconds": 8.0, "eval_seconds": 2.0}, **of},
    )


def adaptive(search: SearchFacts, of: SearchFacts) -> SearchFacts:
    """The same search by TPE."""
    assert of.search is not None
    return replace(search, search=of.search.model_copy(update={"sampler": "tpe"}))


def column(sheet: Sheet | None, name: str) -> list[Any]:
    assert sheet is not None
    at = [each.name for each in sheet.columns].index(name)
    return [row[at] for row in sheet.rows]


def made(chart: Chart | None) -> Chart:
    assert chart is not None
    return chart


class TestVerdict:
    def test_it_is_of_the_winners_alone(self, search_report: Content, facts: SearchFacts) -> None:
        (task,) = search_report.tasks
        winners = [space.winner for space in facts.spaces]
        assert [row.label for row in task.analysis.rows] == [winner.label for winner in winners if winner]
        assert [len(row.runs) for row in task.analysis.rows] == [10, 10, 10]
        assert all(run.trial is None for run in task.analysis.records)
        trials = {run.run_id for run in facts.trials}
        assert len(trials) == 72
        verdict = [sheet for part in task.parts for sheet in (*part.sheets, *part.folded)]
        assert not trials & {str(cell) for sheet in verdict for row in sheet.rows for cell in row}

    def test_it_says_which_rows_chose_and_which_judge(self, search_report: Content) -> None:
        judged = search_report.tasks[0].judged
        assert "10 new seeds" in judged
        assert "chosen on a tenth of train, held out" in judged
        assert "dev, which serves as a test set here, rows that no choice has seen" in judged
        files = files_of(search_report)
        assert judged in render_page(search_report)
        assert judged in str(files["report.md"]).replace("\\", "")
        assert json.loads(str(files["summary.json"]))["tasks"][0]["judged"] == judged

    def test_how_far_the_study_is(self, search_report: Content) -> None:
        search, confirmed = search_report.state
        assert search.startswith("searched: 72 trials: ")
        assert confirmed == "searched-confirm: 30 runs: 30 finished"
        assert (search_report.title, search_report.complete) == ("searched", True)
        ((name, text),) = search_report.studies
        assert name == "searched"
        assert "search:" in text

    def test_a_search_without_its_confirm_stage_gives_no_verdict(self, tmp_path: Path) -> None:
        make_search_directory(tmp_path / "s", confirmed=False, trials=6, failed=False)
        content = compose(read([tmp_path / "s"]))
        assert (content.tasks, content.complete) == ((), False)
        (sentence,) = content.unconfirmed
        assert "the winners of cola have not been trained again yet" in sentence
        page = render_page(content)
        assert sentence.split("`")[0] in page
        assert "The search on CoLA" in page
        assert "No run has ended yet" not in page
        path, complete = write_report([tmp_path / "s"])
        assert not complete
        assert json.loads((path.parent / "summary.json").read_text())["tasks"] == []

    def test_of_a_confirm_stage_that_goes_on_it_is_a_verdict_so_far(self, tmp_path: Path) -> None:
        study = {**SEARCH, "confirm": {"seeds": 3}}
        make_search_directory(tmp_path / "s", study, trials=4, failed=False, pending=("cola-lora",))
        content = compose(read([tmp_path / "s"]))
        assert (content.complete, content.unconfirmed) == (False, ())
        assert [len(row.runs) for row in content.tasks[0].analysis.rows] == [3, 3]
        assert "with 3 new seeds" in content.tasks[0].judged

    def test_a_study_may_want_no_confirmation(self, tmp_path: Path) -> None:
        study = {**SEARCH, "confirm": "none", "search": {"trials": 4, "pruning": "none", "select": "dev"}}
        make_search_directory(tmp_path / "s", study, confirmed=False, failed=False)
        content = compose(read([tmp_path / "s"]))
        assert content.complete
        assert "are not confirmed" in content.unconfirmed[0]
        found = search_content(content.searches[0].facts).parts
        assert "compared on dev" in found[0].text[0]
        assert any("pruning: none" in text for part in found for text in part.text)

    def test_the_folder_of_the_confirm_stage_is_no_place_for_a_report(self, searched: Path) -> None:
        with pytest.raises(StoreError, match="own files"):
            write_report([searched], searched / "confirm" / "elsewhere")


class TestFacts:
    def test_spaces_come_in_the_studys_order_with_their_looks(self, facts: SearchFacts) -> None:
        assert [(space.name, space.look.name) for space in facts.spaces] == [
            *(("full", "Full"), ("bitfit", "BitFit"), ("lora", "LoRA")),
        ]
        assert len({space.look.color for space in facts.spaces}) == 3
        assert [[each.title for each in space.dimensions] for space in facts.spaces] == [
            *(["learning rate"], ["learning rate"], ["LoRA rank", "alpha", "learning rate"]),
        ]
        lora = facts.spaces[2]
        assert [each.log for each in lora.dimensions] == [False, False, True]
        assert lora.dimensions[1].values == (16.0, {"of_rank": 1.0})
        assert lora.dimensions[1].shown({"of_rank": 1.0}) == "of rank 1"

    def test_the_winner_is_the_best_of_those_that_trained_to_their_end(self, facts: SearchFacts) -> None:
        for space in facts.spaces:
            done = [run for run in space.trials if run.state is RunState.FINISHED]
            assert space.winner is max(done, key=lambda run: run.best_score or 0)

    def test_a_trial_that_predicts_a_constant_never_wins(self) -> None:
        runs = [trial(at, score, {"rank": at}, "collapsed") for at, score in enumerate((0.6, 0.7, 0.7))]
        (search,) = searches_of(runs)
        assert search.spaces[0].winner is None
        (search,) = searches_of([*runs, trial(3, 0.1, {"rank": 3}), trial(4, 0.9, {"rank": 4}, "pruned")])
        assert trial_of(search.spaces[0].winner).number == 3  # type: ignore[arg-type]

    def test_without_a_study_the_values_say_what_was_searched(self) -> None:
        runs = [
            trial(at, 0.5, {"learning_rate": 10.0**-at, "rank": 8, "seed_words": {"of_rank": 1}}) for at in range(6)
        ]
        ((space,),) = [search.spaces for search in searches_of(runs)]
        rate, rank, words = space.dimensions
        assert (rate.log, rate.values, rate.prefix) == (True, None, "lr ")
        assert (rank.values, rank.prefix) == ((8,), "r=")
        assert words.values == ({"of_rank": 1},)
        assert space.settings(runs[3]) == "lr 1e-3, r=8, seed words of rank 1"

    def test_two_tasks_are_two_searches_of_different_keys(self) -> None:
        runs = [trial(0, 0.5, {}), trial(0, 0.5, {}, task="mrpc"), trial(0, 0.5, {}, model="other"), make_record()]
        found = searches_of(runs)
        assert [(each.task, each.model) for each in found] == [
            ("cola", "minilm"),
            ("mrpc", "minilm"),
            ("cola", "other"),
        ]
        assert [each.key for each in found] == ["cola-minilm-search", "mrpc-search", "cola-other-search"]

    def test_where_less_is_better_the_lowest_wins(self) -> None:
        runs = [trial(at, score, {"learning_rate": 1e-3}) for at, score in enumerate((0.4, 0.2, 0.3, 0.5))]
        runs = [run.model_copy(update={"primary_metric": "rmse"}) for run in runs]
        (search,) = searches_of(runs)
        assert search.spaces[0].winner is runs[1]
        assert search.worst == 0.5
        line = next(each for each in made(budget_chart(search)).data if each["showlegend"])
        assert line["y"][0] == pytest.approx(0.35)
        assert line["y"][-1] == pytest.approx(0.2)


class TestBudget:
    def test_the_line_is_the_mean_over_all_subsets_of_unpruned_trials(self, facts: SearchFacts) -> None:
        chart = made(budget_chart(facts))
        for space in facts.spaces:
            line = next(each for each in chart.data if each["showlegend"] and each["legendgroup"] == space.name)
            scores = [run.best_score for run in space.trials if trial_of(run).unpruned]
            pairs = [max(pair) for pair in itertools.combinations(scores, 2)]  # type: ignore[type-var]
            assert line["x"] == [*range(1, len(scores) + 1)]
            assert line["y"][1] == pytest.approx(fmean(pairs), abs=1e-4)  # type: ignore[type-var]
            assert line["y"][-1] == pytest.approx(max(scores), abs=1e-4)  # type: ignore[type-var]

    def test_the_same_scores_can_be_had_against_time(self, facts: SearchFacts) -> None:
        chart = made(budget_chart(facts))
        trials, ran, whole = chart.choices
        assert [(each["log"], "axis" in each) for each in chart.choices] == [(False, False), (True, True), (True, True)]
        for at, one in enumerate(chart.data):
            assert trials["x"][at] == one["x"]
            assert len(ran["x"][at]) == len(one["y"]) == len(whole["x"][at])
        line = next(at for at, one in enumerate(chart.data) if one["showlegend"])
        full = facts.spaces[0]
        assert ran["x"][line][0] == pytest.approx(full.seconds / 24, rel=1e-4)
        assert whole["x"][line][0] > ran["x"][line][0]

    def test_marks_of_time_are_round(self) -> None:
        assert time_marks(40, 4000)["ticktext"] == [
            "20 s",
            "30 s",
            "1 min",
            "2 min",
            "5 min",
            "10 min",
            "20 min",
            "30 min",
            "1 h",
            "2 h",
        ]

    def test_what_came_first_was_reached_first(self, facts: SearchFacts) -> None:
        chart = made(reach_chart(facts))
        for one in (each for each in chart.data if each["line"].get("shape") == "hv"):
            assert one["x"] == sorted(one["x"])
            assert one["y"] == sorted(one["y"])
            space = next(space for space in facts.spaces if space.name == one["legendgroup"])
            assert one["x"][-1] == pytest.approx(space.seconds, rel=1e-4)


class TestTrialsDrawn:
    def test_every_trial_is_a_dot_and_pruned_ones_are_open(self, facts: SearchFacts) -> None:
        chart = made(slice_chart(facts))
        first = [one for one in chart.data if one["xaxis"] == "x"]
        assert sum(len(one["x"]) for one in first) == 72
        open_dots = [one for one in first if one["marker"]["symbol"] == "circle-open"]
        pruned = [run for run in facts.trials if run.state is RunState.PRUNED]
        assert Counter(y for one in open_dots for y in one["y"]) == Counter(
            trial_of(run).rungs[-1].score for run in pruned
        )
        crosses = [y for one in first if one["marker"]["symbol"] == "x-thin-open" for y in one["y"]]
        failed = [run for run in facts.trials if run.state is RunState.FAILED]
        assert len(failed) == 2
        assert crosses.count(facts.worst) >= 2

    def test_each_setting_has_a_panel_with_the_spaces_that_search_it(self, facts: SearchFacts) -> None:
        chart = made(slice_chart(facts))
        panels: dict[str, set[str]] = {}
        for one in chart.data:
            panels.setdefault(one["xaxis"], set()).add(one["legendgroup"])
        assert panels == {"x": {"full", "bitfit", "lora"}, "x2": {"lora"}, "x3": {"lora"}}
        assert chart.layout["xaxis"]["type"] == "log"
        assert chart.layout["xaxis2"]["ticktext"] == ["2", "8", "64"]
        assert sum(one["showlegend"] for one in chart.data) == 3

    def test_lines_go_through_the_values_to_the_score(self, facts: SearchFacts) -> None:
        (chart,) = parallel_charts(facts)
        lora = facts.spaces[2]
        drawn = lora.in_state(RunState.FINISHED, RunState.PRUNED)
        assert len(chart.data) == len(drawn)
        best = chart.data[-1]
        assert best["line"]["width"] == 3
        assert best["y"][-1] == 1.0
        assert sum(one["line"]["dash"] == "dot" for one in chart.data) == len(lora.in_state(RunState.PRUNED))
        ranks = [round(at, 3) for at in sorted({one["y"][0] for one in chart.data})]
        assert ranks == [0.167, 0.5, 0.833]

    def test_the_front_is_of_trials_that_trained_to_their_end(self, facts: SearchFacts) -> None:
        chart = made(pareto_chart(facts))
        done = {run.best_score for run in facts.trials if run.state is RunState.FINISHED}
        for choice in chart.choices:
            assert set(choice["y"][0]) <= done
            assert choice["y"][0] == sorted(choice["y"][0])
            assert sum(map(len, choice["x"][1:])) == 72

    def test_no_two_trials_are_in_one_place_at_once(self, facts: SearchFacts) -> None:
        found = lanes(facts)
        for lane in found:
            for one, after in itertools.pairwise(lane.trials):
                assert trial_of(one).ended <= trial_of(after).began
        assert Counter(lane.group for lane in found) == {"Full": 1, "pack adapters-0": 8}
        assert sum(len(lane.trials) for lane in found) == 72
        chart = made(timeline_chart(facts))
        bars = [one for one in chart.data if one["type"] == "bar"]
        assert sum(len(one["x"]) for one in bars) == 72
        pruned = next(one for one in chart.data if one["name"] == "pruned")
        assert len(pruned["x"]) == sum(run.state is RunState.PRUNED for run in facts.trials)

    def test_markup_in_settings_shows_as_it_is(self) -> None:
        runs = [trial(at, 0.1 * at, {"rank": at, "<b>": "<i>"}) for at in range(9)]
        (search,) = searches_of(runs)
        content = search_content(search)
        assert "<i>" not in json.dumps([[chart.data, chart.layout] for chart in content.charts])
        assert "&lt;b&gt; &lt;i&gt;" in json.dumps([chart.data for chart in content.charts])

    def test_every_chart_is_plain_data_with_words_for_it(self, facts: SearchFacts) -> None:
        charts = [*map(made, (draw(facts) for draw in DRAWN)), *parallel_charts(facts)]
        assert len({chart.key for chart in charts}) == 7
        for chart in charts:
            json.dumps([chart.data, chart.layout, chart.choices], allow_nan=False)
            assert len(chart.alt) > 40
            assert len(chart.caption) > 40
            axes = [axis for name, axis in chart.layout.items() if name.startswith("xaxis")]
            assert all(axis.get("title") or axis.get("ticktext") for axis in axes)


class TestImportance:
    def space(self, count: int = 24) -> SpaceFacts:
        draw = np.random.default_rng(0)
        rates, ranks = draw.uniform(-5, -2, count), draw.choice([2, 8], count)
        runs = [
            trial(at, 0.1 * rate + 0.8, {"learning_rate": 10.0**rate, "rank": int(rank)})
            for at, (rate, rank) in enumerate(zip(rates, ranks, strict=True))
        ]
        return searches_of(runs)[0].spaces[0]

    def test_what_decides_the_score_matters_most(self) -> None:
        found = importances(self.space())
        assert [*found] == ["learning rate", "LoRA rank"]
        assert found["learning rate"] > 0.9

    def test_of_few_trials_nothing_is_said(self) -> None:
        space = self.space(7)
        assert importances(space) == {}
        (search,) = searches_of(space.trials)
        assert importance_chart(search) is None
        assert "7 trials trained to the end, too few" in next(iter(about_importance(search)))

    def test_without_optuna_it_says_how_to_get_it(self, facts: SearchFacts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importance, "is_installed", lambda package: False)
        (sentence,) = about_importance(facts)
        assert "pip install 'manytune[search]'" in sentence


class TestTables:
    def test_the_winners_stand_beside_what_they_score_on_the_rows_that_judge(
        self, search_report: Content, facts: SearchFacts
    ) -> None:
        sheet = space_sheet(facts)
        names = {space.look.name: space for space in facts.spaces}
        for name, score, confirmed in zip(
            column(sheet, "space"), column(sheet, "best_score"), column(sheet, "confirmed"), strict=True
        ):
            winner = names[name].winner
            assert winner is not None
            assert score == winner.best_score
            assert confirmed == search_report.tasks[0].analysis.row(winner.label).mean
        assert column(sheet, "best_score") == sorted(column(sheet, "best_score"), reverse=True)
        assert column(sheet, "trials") == [24, 24, 24]

    def test_pruned_trials_count_in_what_the_search_took(self, facts: SearchFacts) -> None:
        sheet = spent_sheet(facts)
        for space, steps, saved in zip(facts.spaces, column(sheet, "steps"), column(sheet, "steps_saved"), strict=True):
            assert steps == sum(run.steps or 0 for run in space.trials)
            pruned = space.in_state(RunState.PRUNED)
            assert saved == sum(trial_of(run).total_steps - (run.steps or 0) for run in pruned)
            assert saved > 0
        said = " ".join(about_cost(facts))
        assert f"Pruning ended {sum(run.state is RunState.PRUNED for run in facts.trials)} of 72 trials early" in said

    def test_every_trial_is_in_the_csv_with_each_setting(self, facts: SearchFacts) -> None:
        sheet = trial_sheet(facts)
        assert sheet is not None
        rows = list(csv.DictReader(io.StringIO(to_csv(sheet))))
        assert len(rows) == 72
        for row, run in zip(rows, facts.trials, strict=True):
            found = trial_of(run)
            assert float(row["learning_rate"]) == found.settings["learning_rate"]
            assert row["rank"] == str(found.settings.get("rank", ""))
            assert (row["state"], row["run"]) == (run.state, run.run_id)
            score = score_then(run)
            assert row["score"] == ("" if score is None else repr(score))
            assert row["rungs"].count("✕") == (run.state is RunState.PRUNED)

    def test_a_sentence_a_method_says_how_easy_it_is(self, facts: SearchFacts) -> None:
        sentences = list(about_tuning(facts))
        sheet = tuning_sheet(facts)
        for space, sentence, near in zip(facts.spaces, sentences, column(sheet, "near_best"), strict=True):
            assert sentence.startswith(f"{space.look.name}: {near} of 8 trials come")
            assert "within 0.01 of its best (95 % interval" in sentence

    def test_a_space_that_learned_nothing_is_not_easy_to_tune(self) -> None:
        runs = [trial(at, 0.0, {"learning_rate": 1e-3 * (at + 1)}, "collapsed") for at in range(8)]
        (search,) = searches_of(runs)
        assert list(about_tuning(search)) == ["LoRA: none of 8 trials learned anything."]
        assert column(tuning_sheet(search), "near_best") == [None]
        assert made(slice_chart(search)).data[0]["showlegend"]

    def test_values_of_a_choice_stand_at_their_best_rate(self, facts: SearchFacts) -> None:
        sheet = effect_sheet(facts)
        assert column(sheet, "value") == ["2", "8", "64", "16", "of rank 1"]
        lora = facts.spaces[2]
        for value, best in zip(column(sheet, "value")[:3], column(sheet, "best"), strict=False):
            scores = [run.best_score or 0 for run in lora.finished if str(trial_of(run).settings["rank"]) == value]
            assert best == max(scores)

    def test_for_each_two_spaces_it_says_whether_one_is_easier_to_tune(self, facts: SearchFacts) -> None:
        sentences = list(about_ease(facts))
        assert [text.partition(":")[0] for text in sentences] == [
            *("Full beside BitFit", "Full beside LoRA", "BitFit beside LoRA"),
        ]
        assert all("of 8 trials come" in text or "of 8 trials and" in text for text in sentences)
        assert all("which of them is easier to tune is not known" in text for text in sentences)
        easy = [trial(at, 0.5, {"learning_rate": 1e-4 * (at + 1)}) for at in range(16)]
        hard = [trial(at, 0.1 * at, {"learning_rate": 1e-4 * (at + 1)}) for at in range(16)]
        hard = [run.model_copy(update={"run_id": f"x-{at}", "method": "bitfit"}) for at, run in enumerate(hard)]
        hard = [run.model_copy(update={"trial": trial_of(run).model_copy(update={"space": "bitfit"})}) for run in hard]
        (search,) = searches_of([*easy, *hard])
        (sentence,) = about_ease(search)
        assert "These intervals lie apart: LoRA is easier to tune over the ranges that were searched." in sentence
        assert "octaves (95 %), which lie apart: LoRA's rate matters less." in sentence

    def test_whether_a_choice_matters_is_said_with_its_trials(self, facts: SearchFacts) -> None:
        rank, alpha = about_choices(facts)
        counts = Counter(trial_of(run).settings["rank"] for run in facts.spaces[2].trials)
        assert all(f"of {counts[value]} trial" in rank for value in (2, 8, 64))
        assert "Whether the LoRA rank matters is not known: with values shuffled among the same trials" in rank
        assert "best score of each alpha" in alpha
        runs = [
            trial(at, 0.5 + 0.4 * (at >= 12), {"learning_rate": 1e-3, "rank": 2 if at < 12 else 8}) for at in range(24)
        ]
        few = searches_of([trial(0, 0.5, {"learning_rate": 1e-3})])[0]  # with nothing to say, no heading stands alone
        assert not {"ease", "choices"} & {part.key for part in search_content(few).parts}
        (search,) = searches_of(runs)
        (said,) = [text for text in about_choices(search) if "LoRA rank" in text]
        assert "r=2: 0.500 of 12 trials; r=8: 0.900 of 12 trials" in said
        assert "The LoRA rank matters" in said
        (said,) = [text for text in about_choices(adaptive(search, facts)) if "LoRA rank" in text]
        assert "not known: TPE chose values by the scores so far" in said

    def test_what_one_rate_does_against_another(self, facts: SearchFacts) -> None:
        assert [text.partition(":")[0] for text in about_rates(facts)] == ["Full", "BitFit", "LoRA"]
        rates = [*(2e-4 * 1.05**at for at in range(12)), *(9e-4 * 1.02**at for at in range(12))]
        runs = [trial(at, 0.1 if at < 12 else 0.8, {"learning_rate": rate}) for at, rate in enumerate(rates)]
        (search,) = searches_of(runs)
        (said,) = about_rates(search)
        assert said.startswith("LoRA: scores are best at rates of 8e-4 to ")
        assert "worse, beyond chance, at 2e-4 to 4e-4 (mean 0.100, 12 trials)." in said
        (said,) = about_rates(adaptive(search, facts))
        assert "not known, as TPE chose rates" in said
        assert column(rate_sheet(search), "trials") == [12, 0, 12]
        low = [run.model_copy(update={"primary_metric": "rmse"}) for run in runs]
        (said,) = about_rates(searches_of(low)[0])
        assert said.startswith(
            "LoRA: scores are best at rates of 2e-4 to 4e-4 (mean 0.100, 12 trials); worse, beyond chance"
        )
        dead = [trial(at, 0.0, {"learning_rate": 1e-3 * (at + 1)}, "collapsed") for at in range(8)]
        assert list(about_rates(searches_of(dead)[0])) == [
            "LoRA: no trial at rates of 1e-3 to 8e-3 learned anything, so no rate is better than another."
        ]

    def test_unequal_numbers_of_trials_and_tpe_are_said(self, facts: SearchFacts) -> None:
        runs = [trial(at, 0.5, {"rank": at}) for at in range(3)]
        other = [trial(0, 0.5, {"rank": 1}, trial={"space": "lora long"}).model_copy(update={"run_id": "x"})]
        (search,) = searches_of([*runs, *other], search=facts.search.model_copy(update={"sampler": "tpe"}))  # type: ignore[union-attr]
        said = " ".join(about_search(search))
        assert "different numbers of trials (LoRA 3 and LoRA long 1)" in said
        assert "With TPE" in said

    def test_the_summary_has_the_search(self, search_report: Content, facts: SearchFacts) -> None:
        summary = json.loads(json.dumps(search_summary(search_report.searches[0]), allow_nan=False))
        assert [space["space"] for space in summary["spaces"]] == ["full", "bitfit", "lora"]
        for space, shown in zip(facts.spaces, summary["spaces"], strict=True):
            assert len(shown["trials"]) == 24
            assert shown["best"]["run"] == (space.winner.run_id if space.winner else None)
            assert shown["spent"]["pruned"] == len(space.in_state(RunState.PRUNED))
            assert shown["best_of_n"]["trials"][0] == 1
