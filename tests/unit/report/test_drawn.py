"""What is drawn: series, charts for the page, figures for a paper, the model."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.text import Text

from manytune.methods.base import LEARNING_RATE
from manytune.methods.lora import Lora
from manytune.report import charts, figures
from manytune.report.analysis import Analysis
from manytune.report.drawing import draw
from manytune.report.figures import PALETTE, draw_figures
from manytune.report.series import COSTS, Look, curves, front, looks, loss_rises, quantities, thinned
from manytune.report.traces import Chart
from manytune.storage.artifacts import Structure, Trained

RANK = Lora.axis


def test_looks_are_short_and_told_apart_without_colour(cola: Analysis) -> None:
    found = looks(cola)
    assert [look.name for look in found.values()] == [
        *("Full", "BitFit lr 2e-4", "BitFit lr 1e-3"),
        *("LoRA r=2", "LoRA r=8", "LoRA r=64", "LoRA r=256"),
    ]
    assert len({(look.color, look.dash, look.symbol) for look in found.values()}) == 7


def test_curves_are_means_and_ranges_of_the_runs_that_finished(cola: Analysis) -> None:
    value = quantities(cola.metric)["evaluation loss"]
    found = {curve.label: curve for curve in curves(cola, value)}
    row = cola.row("bitfit lr 2e-4")
    curve = found[row.label]
    losses = np.array([[each.eval_loss for each in cola.histories[run.run_id]] for run in row.finished])
    np.testing.assert_allclose(curve.mean, losses.mean(0))
    np.testing.assert_allclose(curve.low, losses.min(0))
    np.testing.assert_allclose(curve.high, losses.max(0))
    assert [state for _, state, _, _ in curve.runs].count("collapsed") == 1  # drawn, but in no mean
    assert len(row.finished) == 4


def test_few_points_stay_and_many_are_thinned_with_every_peak() -> None:
    assert thinned([(0, 0), (1, 1)]) == [0, 1]
    assert thinned([]) == []
    points = [(float(at), math.sin(at / 300)) for at in range(5000)]
    points[2345] = (2345.0, 9.0)
    kept = thinned(points)
    assert len(kept) == 240
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, 4999)
    assert 2345 in kept


@given(st.integers(min_value=3, max_value=1000), st.integers(min_value=3, max_value=50))
def test_thinning_keeps_both_ends_and_no_more_than_asked(count: int, most: int) -> None:
    kept = thinned([(float(at), float(at % 7)) for at in range(count)], most)
    assert len(kept) == min(count, most)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))


def test_a_loss_that_rises_with_the_score_is_noticed(cola: Analysis, stsb: Analysis) -> None:
    assert "full lr 5e-5" in loss_rises(cola)
    assert loss_rises(stsb) == ()


pairs = st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(1, 9).map(float)), max_size=8)


@given(pairs, st.booleans(), st.booleans())
def test_nothing_is_cheaper_and_better_than_what_is_on_the_front(
    points: list[tuple[float, float]], less: bool, higher: bool
) -> None:
    cost, score = (1 if less else -1), (1 if higher else -1)

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        cheaper, better = cost * one[0] <= cost * other[0], score * one[1] >= score * other[1]
        return cheaper and better and one != other

    kept = front(points, less_is_better=less, higher_is_better=higher)
    best = {points[at] for at in kept}
    assert best == {point for point in points if not any(beats(other, point) for other in points)}
    assert [points[at][0] for at in kept] == sorted(points[at][0] for at in kept)


def every_chart(analysis: Analysis) -> list[Chart]:
    made = [
        charts.answer_chart(analysis),
        charts.curve_chart(analysis),
        charts.axis_chart(RANK, analysis),
        charts.axis_chart(LEARNING_RATE, analysis),
        charts.cost_chart(analysis),
    ]
    return [chart for chart in made if chart is not None]


def test_every_chart_is_plain_data_with_words_for_it(cola: Analysis, stsb: Analysis) -> None:
    for analysis in (cola, stsb):
        found = every_chart(analysis)
        assert len(found) == 5
        assert len({chart.key for chart in found}) == 5
        for chart in found:
            json.dumps([chart.data, chart.layout], allow_nan=False)
            assert len(chart.alt) > 40
            assert analysis.metric.title in chart.alt


def test_the_dots_are_the_scores_of_the_seeds(cola: Analysis) -> None:
    chart = charts.answer_chart(cola)
    assert chart is not None
    data = {trace["name"]: trace for trace in chart.data if trace["mode"] == "markers"}
    row = cola.row("bitfit lr 2e-4")
    assert data["BitFit lr 2e-4"]["x"] == [run.best_score for run in row.finished]
    assert data["BitFit lr 2e-4, mean"]["x"] == [row.primary.best.mean]
    low, high = cola.seed_interval(row.label) or (0.0, 0.0)
    arms = data["BitFit lr 2e-4, mean"]["error_x"]
    (mean,) = data["BitFit lr 2e-4, mean"]["x"]
    assert (arms["arrayminus"], arms["array"]) == ([mean - low], [high - mean])
    (collapsed,) = row.failures
    crosses = data["BitFit lr 2e-4, did not train"]
    assert (crosses["x"], crosses["text"]) == ([collapsed.best_score], ["seed 3 did not train"])
    assert crosses["marker"]["symbol"] == "x-thin-open"


def test_runs_of_one_configuration_share_a_legend_entry(cola: Analysis) -> None:
    chart = charts.curve_chart(cola)
    assert chart is not None
    shown = [trace for trace in chart.data if trace["showlegend"]]
    assert [trace["legendgroup"] for trace in shown] == [row.label for row in cola.rows]
    groups = [trace["legendgroup"] for trace in chart.data]
    runs = len(cola.row("full lr 5e-5").runs)
    assert groups.count("full lr 5e-5") == 4 * (runs + 1) + 3  # a line a run, the mean; the range where there is one
    assert {trace["xaxis"] for trace in chart.data} == {"x", "x2", "x3", "x4"}


def test_many_runs_are_a_band_alone(cola: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_MOST_LINES", 3)
    chart = charts.curve_chart(cola)
    assert chart is not None
    assert not any("seed" in trace["name"] for trace in chart.data)
    assert "35 runs are not drawn one by one" in chart.alt


def test_ranks_are_drawn_with_full_and_bitfit_as_lines(cola: Analysis) -> None:
    chart = charts.axis_chart(RANK, cola)
    assert chart is not None
    (series,) = [trace for trace in chart.data if trace["mode"] == "lines+markers"]
    assert series["x"] == [2, 8, 64, 256]
    lines = {trace["name"]: trace["y"] for trace in chart.data if trace["x"] == [2, 256]}
    assert lines == {
        "Full": [cola.row("full lr 5e-5").mean] * 2,
        "best BitFit lr 1e-3": [cola.row("bitfit lr 1e-3").mean] * 2,
    }


def test_the_score_can_be_seen_against_every_cost(cola: Analysis) -> None:
    chart = charts.cost_chart(cola)
    assert chart is not None
    assert [choice["title"] for choice in chart.choices] == [cost.title for cost in COSTS]
    for choice, cost in zip(chart.choices, COSTS, strict=True):
        assert len(choice["x"]) == len(choice["y"]) == len(chart.data)
        assert [x for (x,) in choice["x"][1:]] == [cost.value(row) for row in cola.ranked]


@pytest.mark.parametrize("name", ["<b>x</b>", "a %{x} b", "a & b"])
def test_no_name_is_markup_or_a_template_for_plotly(name: str) -> None:
    plain = Look(name, "green", 0).markup
    assert not set("<>{") & set(plain)


def test_older_studies_have_no_curves(old_analysis: Analysis) -> None:
    assert charts.curve_chart(old_analysis) is None
    assert "old-curves.png" not in draw_figures(old_analysis)


def test_figures_are_png_and_svg_and_the_same_bytes_every_time(cola: Analysis) -> None:
    found = draw_figures(cola)
    stems = ("scores", "curves", "rank", "rates", "cost")
    assert set(found) == {f"cola-{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for name, data in found.items():
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    again = draw_figures(cola)
    assert again == found
    assert b"<dc:date>" not in found["cola-scores.svg"]


def test_no_label_of_a_figure_is_an_unset_formula(cola: Analysis) -> None:
    """A dollar sign in a name must show as one, so formulas are off; labels of the axes must do without."""
    with rc_context(figures._STYLE):
        made = {name: figure for name, make in figures.figure_makers().items() if (figure := make(cola)) is not None}
        assert set(made) == {"scores", "curves", "rank", "rates", "cost"}
        for name, figure in made.items():
            figure.draw_without_rendering()
            labels = [text.get_text() for text in figure.findobj(Text)]
            assert len(labels) > 10, name
            assert not [label for label in labels if "$" in label or "\\" in label], name


def test_the_palettes_are_of_the_same_methods() -> None:
    assert set(PALETTE) == {"blue", "green", "vermilion", "purple", "orange", "sky", "wine", "indigo", "brown", "grey"}


class TestDrawing:
    def parts(self, analysis: Analysis) -> dict[tuple[str, str], list[str]]:
        drawing = draw(analysis)
        assert drawing is not None
        return {(part.group, part.name): [box.text for box in part.boxes] for part in drawing.parts}

    def test_the_columns_are_the_ways_to_train(self, cola: Analysis) -> None:
        drawing = draw(cola)
        assert drawing is not None
        lora = ("LoRA r=2", "LoRA r=8", "LoRA r=64", "LoRA r=256")
        assert drawing.columns == (("Full",), ("BitFit lr 2e-4", "BitFit lr 1e-3"), lora)
        assert drawing.colors == ("blue", "vermilion", "green")

    def test_what_trains_where(self, cola: Analysis) -> None:
        found = self.parts(cola)
        layers = "encoder.layer.0–5"
        assert found["embeddings", "word_embeddings"] == ["all", "frozen", "frozen"]
        assert found["embeddings", "LayerNorm"] == ["all", "biases", "frozen"]
        assert found[layers, "attention.self.query"] == ["all", "biases", "frozen + r=2, 8, 64, 256"]
        assert found[layers, "attention.self.key"] == ["all", "biases", "frozen"]
        assert found["pooler", "dense"] == ["all", "biases", "frozen"]
        assert found["head", "classifier"] == ["all", "all", "all"]

    def test_every_parameter_is_somewhere(self, cola: Analysis) -> None:
        drawing, tree = draw(cola), cola.structure
        assert drawing is not None
        assert tree is not None
        drawn = sum(part.parameters * part.repeated for part in drawing.parts)
        assert drawn == sum(math.prod(shape) for shape in (tree.tensors | tree.head).values())
        for column, label in enumerate(("full lr 5e-5", "bitfit lr 2e-4", "lora r=2, lr 4e-4, dropout 0.1")):
            trainable = sum(part.boxes[column].trainable[0] * part.repeated for part in drawing.parts)
            assert trainable == cola.row(label).trainable

    def test_layers_that_train_differently_are_drawn_apart(self, cola: Analysis) -> None:
        import dataclasses

        tree = cola.structure
        assert tree is not None
        last = tuple(f"encoder.layer.{layer}.attention.self.query" for layer in (4, 5))
        trained = {
            "full lr 5e-5": Trained(weights=False, adapters=tuple((path, 64) for path in last), adapter_label="r=2")
        }
        found = self.parts(dataclasses.replace(cola, structure=tree.model_copy(update={"trained": trained})))
        assert found["encoder.layer.0–3", "attention.self.query"] == ["frozen"]
        assert found["encoder.layer.4–5", "attention.self.query"] == ["frozen + r=2"]

    def test_half_a_head_is_its_bias(self, cola: Analysis) -> None:
        import dataclasses

        tree: Structure = cola.structure  # type: ignore[assignment]
        trained = {"full lr 5e-5": Trained(weights=False, head=("classifier.bias",))}
        found = self.parts(dataclasses.replace(cola, structure=tree.model_copy(update={"trained": trained})))
        assert found["head", "classifier"] == ["bias"]

    def test_without_a_module_tree_there_is_none(self, old_analysis: Analysis) -> None:
        assert draw(old_analysis) is None


def test_axes_of_the_four_panels_do_not_overlap(cola: Analysis) -> None:
    chart = charts.curve_chart(cola)
    assert chart is not None
    assert chart.narrow is not None
    domains: list[Any] = [chart.narrow[f"yaxis{panel}.domain"] for panel in ("", "2", "3", "4")]
    flat = [bound for low, high in reversed(domains) for bound in (low, high)]
    assert flat == sorted(flat)
    assert 0 <= flat[0] < flat[-1] <= 1
