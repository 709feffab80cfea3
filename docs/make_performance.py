"""Write the tables of `performance.md`, and of README, from the files in `results`; and the picture of growth.

    python docs/make_performance.py

What lies between `<!-- made: NAME -->` and `<!-- end -->` is made anew; a test fails where a page has anything else.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from manytune.data.metrics import METRICS

DOCS = Path(__file__).parent
README, PAGE, METHODS = DOCS.parent / "README.md", DOCS / "performance.md", DOCS / "methods.md"
PICTURE = DOCS / "images" / "growth.svg"
RESULTS = {"AVX-512": DOCS / "results" / "speed-cpu.json", "AVX2": DOCS / "results" / "speed-cpu-avx2.json"}
"""Kind of machine → the result file of `benchmarks/speed.py`; one that was not measured yet is left out."""
BASE_SIZE = DOCS / "results" / "speed-cpu-mpnet.json"
"""The same of all-mpnet-base-v2, on the machine with AVX-512."""

BY_METHOD = DOCS / "results" / "speed-cpu-methods.json"
"""The same of packs of every method, on the machine with AVX-512."""

AIMS = {"8 LoRA runs r=8, STS-B": 3.0, "LoRA r = 2, 8, 64, 256, two seeds each, CoLA": 3.0}
AIMS |= {"8 LoRA runs r=8, CoLA": 3.5, "8 BitFit runs, CoLA": 3.5, "full fine-tuning, one run, CoLA": 1.6}
"""The ratios to Trainer at its best that were asked for at the beginning, on the machine with AVX-512."""


def made(page: str) -> str:
    """A page with its tables made anew."""

    def anew(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_PARTS[match[2]](measured())}\n{match[4]}"

    return re.sub(r"(<!-- made: (\S+) -->)\n(.*?)\n?(<!-- end -->)", anew, page, flags=re.DOTALL)


def measured() -> dict[str, Any]:
    """Kind of machine → what was measured on it."""
    return {name: json.loads(path.read_text()) for name, path in RESULTS.items() if path.exists()}


def _table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    if any(len(line) != len(heading) for line in lines):
        raise ValueError(f"a line of the table {heading} has another number of cells")
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _by_machine(results: Mapping[str, Any], rows: Mapping[str, Callable[[Any], object]]) -> str:
    """A line for each figure, a column for each machine."""
    return _table(["", *results], ([name, *map(figure, results.values())] for name, figure in rows.items()))


def _machines(results: Mapping[str, Any]) -> str:
    def versions(result: Any) -> str:
        return ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "transformers", "peft"))

    def limits(result: Any) -> str:
        return ", ".join(f"`{name}={value}`" for name, value in result["machine"]["limits"].items()) or "nothing"

    def step(result: Any) -> str:
        seconds = result["profile"]["operations"] / result["profile"]["ceiling_per_second"]
        return f"{1e3 * seconds:.0f} ms, so at most {16 * 8 / seconds:,.0f} samples/s"

    def memory(result: Any, who: str) -> str:
        return _gigabytes(result["memory"][who]) if "memory" in result else "not measured"

    def start(result: Any) -> str:
        return f"{statistics.median(result['start']):.1f} s" if "start" in result else "not measured"

    rows: dict[str, Callable[[Any], object]] = {
        "processor": lambda result: result["machine"]["processor"],
        "limited by": limits,
        "threads": lambda result: result["threads"],
        "dtype of products": lambda result: result["machine"]["dtype"],
        "products alone, GFLOP/s": lambda result: f"{result['profile']['ceiling_per_second'] / 1e9:.0f}",
        "a step's products at that speed": step,
        "share of it that a whole step reaches": lambda result: f"{100 * result['profile']['share_of_ceiling']:.0f} %",
        "peak memory of 16 LoRA runs in a pack": lambda result: memory(result, "pack"),
        "of one full run by Trainer": lambda result: memory(result, "trainer"),
        "from the command to the first step": start,
        "versions": versions,
        "commit": lambda result: result["commit"][:10],
    }
    return _by_machine(results, rows)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _ways(row: Any) -> tuple[float, float, float]:
    """Samples a second, medians of the rounds: of manytune, of Trainer as in the study, and of Trainer at its best."""
    medians = {way: statistics.median(values) for way, values in row["samples_per_second"].items()}
    return medians["manytune"], medians["study"], max(medians[way] for way in medians if way.startswith("best"))


def _compare(results: Mapping[str, Any]) -> str:
    heading = ("work", "machine", "manytune", "Trainer, study", "ratio", "Trainer, best", "ratio", "aim")

    def lines() -> Iterator[Sequence[object]]:
        first = next(iter(results))
        for work in (row["work"] for row in results[first]["compare"]):
            for name, result in results.items():
                row = next((row for row in result["compare"] if row["work"] == work), None)
                if row is not None:
                    ours, study, best = _ways(row)
                    ratios = f"{study:.0f}", f"{ours / study:.1f}", f"{best:.0f}", f"{ours / best:.2f}"
                    yield work, name, f"{ours:.0f}", *ratios, AIMS[work] if name == first else ""

    return _table(heading, lines())


def _base_size(_: Mapping[str, Any]) -> str:
    """The encoder of base size, beside MiniLM on the same kind of machine."""
    small, base = (json.loads(path.read_text())["compare"] for path in (RESULTS["AVX-512"], BASE_SIZE))
    heading = ("work", "manytune", "Trainer, study", "ratio", "Trainer, best", "ratio", "MiniLM's two ratios")

    def lines() -> Iterator[Sequence[object]]:
        for row in base:
            ours, study, best = _ways(row)
            of_small = next(_ways(each) for each in small if each["work"] == row["work"])
            ratios = f"{of_small[0] / of_small[1]:.1f} and {of_small[0] / of_small[2]:.2f}"
            speeds = f"{ours:.1f}", f"{study:.1f}", f"{ours / study:.1f}", f"{best:.1f}", f"{ours / best:.2f}"
            yield row["work"], *speeds, ratios

    return _table(heading, lines())


def _methods(_: Mapping[str, Any]) -> str:
    """Samples a second of packs of 8 runs, beside LoRA's: the ratio's median over rounds, and its range."""
    rounds: dict[str, list[float]] = json.loads(BY_METHOD.read_text())["methods"]
    first = next(iter(rounds.values()))
    rows = []
    for name, values in rounds.items():
        ratios = sorted(value / base for value, base in zip(values, first, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if values != first else "1"
        rows.append([name, f"{statistics.median(values):.0f}", ratio])
    return _table(["pack of 8 runs", "samples/s", "beside LoRA"], rows)


def _profile(results: Mapping[str, Any]) -> str:
    profiles = [result["profile"] for result in results.values()]
    heading = ["kind of work", *(f"{name}, {what}" for name in results for what in ("ms a step", "share"))]

    def cells(kind: str) -> Iterator[str]:
        for profile in profiles:
            spent = profile["milliseconds"][kind]
            yield from (f"{spent:.1f}", f"{100 * spent / profile['step_ms']:.1f} %")

    whole = [cell for profile in profiles for cell in (f"{profile['step_ms']:.1f}", "100 %")]
    return _table(heading, [*([kind, *cells(kind)] for kind in profiles[0]["milliseconds"]), ["whole step", *whole]])


def _growth(results: Mapping[str, Any]) -> str:
    results = _with_growth(results)
    sizes = list(next(iter(results.values()))["growth"])
    rows = ([name, *(f"{speed:.0f}" for speed in _speeds(result))] for name, result in results.items())
    return _table(["runs in the pack", *sizes], rows)


def _with_growth(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result for name, result in results.items() if "growth" in result}


def _speeds(result: Any) -> list[float]:
    """Samples a second by size of the pack."""
    return [statistics.median(values) for values in result["growth"].values()]


def _workers(_: Mapping[str, Any]) -> str:
    rows = json.loads((DOCS / "results" / "workers-cpu.json").read_text())["rows"]
    heading = ("model", "work", "1 process × 2 threads", "2 processes × 1 thread", "ratio")

    def lines() -> Iterator[Sequence[object]]:
        for row in rows:
            one, two = (statistics.median(row["seconds"][way]) for way in ("1 x 2 threads", "2 x 1 thread"))
            yield row["model"], row["work"], f"{one:.1f} s", f"{two:.1f} s", f"{one / two:.2f}"

    return _table(heading, lines())


def _quickstart(_: Mapping[str, Any]) -> str:
    """The table of the demo's records, the best mean first."""
    records = [json.loads(path.read_text()) for path in sorted((DOCS / "results" / "quickstart").glob("*.json"))]
    by_label: dict[str, list[Any]] = {}
    for record in records:
        by_label.setdefault(record["label"], []).append(record)

    def line(label: str) -> tuple[float, Sequence[object]]:
        of_it = by_label[label]
        scores = [record["best_score"] for record in of_it]
        trained, all_of_it = (of_it[0]["parameters"][what] for what in ("trainable", "total"))
        seconds = statistics.mean(record["cost"]["train_seconds"] for record in of_it)
        mean, spread = statistics.mean(scores), statistics.stdev(scores)
        share = f"{trained:,}", f"{100 * trained / all_of_it:.2f} %"
        return mean, (label, f"{mean:.3f} ± {spread:.3f}", len(scores), *share, f"{seconds:.1f} s")

    lines = [row for _, row in sorted(map(line, by_label), reverse=True)]
    return _table(
        ("method", METRICS[records[0]["primary_metric"]].title, "seeds", "trainable", "of all", "training a run"), lines
    )


def _speed(results: Mapping[str, Any]) -> str:
    """README's sentence."""
    parts = []
    for name, result in results.items():
        ours, study, best = _ways(result["compare"][0])
        where = f"on a processor with {name}" if not parts else f"on the same one limited to {name}"
        parts.append(f"{ours / study:.1f} and {ours / best:.1f} times as fast {where}")
    return f"manytune is {', and '.join(parts)}."


_PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "machines": _machines,
    "compare": _compare,
    "base-size": _base_size,
    "methods": _methods,
    "profile": _profile,
    "growth": _growth,
    "workers": _workers,
    "quickstart": _quickstart,
    "speed": _speed,
}
"""What stands between the marks of a name."""


def draw_growth(results: Mapping[str, Any]) -> None:
    """Samples a second by the number of runs in a pack, beside Trainer's at its best."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "manytune"  # the same bytes from the same figures
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for marker, (name, result) in zip("os", results.items(), strict=False):
        sizes, speeds = [int(size) for size in result["growth"]], _speeds(result)
        axes.plot(sizes, speeds, f"{marker}-", color="#0072b2", label=f"manytune, all runs together, {name}")
        best = _ways(result["compare"][0])[2]
        dashes = {"o": "--", "s": ":"}[marker]
        axes.axhline(best, color="#b35900", linestyle=dashes, label=f"Trainer + peft at its best, {name}")
        for size, speed in zip(sizes, speeds, strict=True):
            above = {"textcoords": "offset points", "xytext": (0, 7), "ha": "center", "fontsize": 8}
            axes.annotate(f"{speed:.0f}", (size, speed), **above)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    highest = max(max(_speeds(result)) for result in results.values())
    axes.set(xlabel="LoRA runs (r = 8) in one pack, CoLA", ylabel="samples a second", ylim=(0, 1.15 * highest))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    for path in (PAGE, README, METHODS):
        path.write_text(made(path.read_text(encoding="utf-8")), encoding="utf-8")
    draw_growth(_with_growth(measured()))
