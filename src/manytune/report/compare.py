"""What changed between two studies: settings, runs, scores, cost and what they ran on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from manytune.data.metrics import METRICS
from manytune.report.sheets import UNKNOWN, show, signed
from manytune.report.task_table import MethodRow, tabulate
from manytune.report.views import plain_table
from manytune.stats import MINIMUM_SEEDS, Comparison, Configuration, compare
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord

__all__ = ["Change", "StudyChanges", "compare_studies", "render_changes"]


@dataclass(frozen=True)
class Change:
    """One configuration that both studies have."""

    task: str
    model: str
    label: str
    metric: str
    first: float | None
    """Mean best score in the first study."""
    second: float | None
    seeds: tuple[int, int]
    """Runs that finished in each."""
    difference: float | None
    """Second less first."""
    low: float | None
    """95 % interval over the seeds that both have; None below 5 of them."""
    high: float | None
    verdict: str
    samples_per_second: tuple[float | None, float | None]


@dataclass(frozen=True)
class StudyChanges:
    """What differs between two studies."""

    settings: tuple[tuple[str, str | None, str | None], ...]
    """Key of the study, its value in the first and in the second; None where it is not there."""
    provenance: tuple[tuple[str, str, str], ...]
    """Versions, hardware and data that differ."""
    only_first: tuple[str, ...]
    """Configurations that only the first study has: "cola: lora r=8, lr 4e-4"."""
    only_second: tuple[str, ...]
    changes: tuple[Change, ...]
    """Configurations that both have."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)


def compare_studies(first: Path | str, second: Path | str) -> StudyChanges:
    """Compare two study directories, configuration by configuration.

    Raises:
        ManytuneError: One of them is no study directory, or something in it is damaged.
    """
    stores = (Store.open(first), Store.open(second))
    one, other = (_flat(store.study().model_dump(mode="json")) for store in stores)
    records = [tuple(store.finished_runs().values()) for store in stores]
    rows = [
        {(table.task, table.model, row.label): row for table in tabulate(own) for row in table.rows} for own in records
    ]
    ours, theirs = rows
    return StudyChanges(
        settings=tuple(
            (key, one.get(key), other.get(key))
            for key in dict.fromkeys([*one, *other])
            if one.get(key) != other.get(key)
        ),
        provenance=_provenance(*records),
        only_first=tuple(_named(key) for key in ours if key not in theirs),
        only_second=tuple(_named(key) for key in theirs if key not in ours),
        changes=tuple(_change(key, ours[key], theirs[key]) for key in ours if key in theirs),
    )


def _named(key: tuple[str, str, str]) -> str:
    task, _, label = key
    return f"{task}: {label}"


def _change(key: tuple[str, str, str], first: MethodRow, second: MethodRow) -> Change:
    metric = first.primary.metric
    found = _tested(first, second)
    means = (first.primary.best.mean, second.primary.best.mean)
    both = None if means[0] is None or means[1] is None else means[1] - means[0]
    enough = found is not None and found.seeds >= MINIMUM_SEEDS and found.low is not None and found.high is not None
    low = high = None
    verdict = "too few seeds for a verdict"
    if found is not None and enough and found.low is not None and found.high is not None:
        # The comparison names the better one first; here the second study is looked at from the first.
        second_ahead = found.first == "second"
        low, high = (found.low, found.high) if second_ahead else (-found.high, -found.low)
        both = found.difference if second_ahead else -found.difference
        if not METRICS[metric.name].higher_is_better:
            low, high, both = -high, -low, -both
        verdict = "within noise" if low <= 0 <= high else "changed"
    return Change(
        *key,
        metric=metric.name,
        first=means[0],
        second=means[1],
        seeds=(len(first.finished), len(second.finished)),
        difference=both,
        low=low,
        high=high,
        verdict=verdict,
        samples_per_second=(first.samples_per_second, second.samples_per_second),
    )


def _tested(first: MethodRow, second: MethodRow) -> Comparison | None:
    sign = 1 if first.primary.metric.higher_is_better else -1
    groups = [
        Configuration(name, row.label, {r.seed: sign * r.best_score for r in row.finished if r.best_score is not None})
        for name, row in (("first", first), ("second", second))
    ]
    return compare([groups[0]], [groups[1]], pairs=1) if all(group.scores for group in groups) else None


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Nested data as dotted keys → text."""
    if isinstance(value, Mapping):
        items = (_flat(inner, f"{key}.{name}".lstrip(".")) for name, inner in value.items())
        return {name: text for part in items for name, text in part.items()}
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return {name: text for at, each in enumerate(value) for name, text in _flat(each, f"{key}.{at}").items()}
    return {} if value is None else {key: str(value)}


def _provenance(first: tuple[RunRecord, ...], second: tuple[RunRecord, ...]) -> tuple[tuple[str, str, str], ...]:
    one, other = _origins(first), _origins(second)
    return tuple(
        (key, one.get(key, UNKNOWN), other.get(key, UNKNOWN))
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    )


def _origins(records: tuple[RunRecord, ...]) -> dict[str, str]:
    """Fact → its values over all runs, one after the other."""
    found: dict[str, dict[str, None]] = {}
    for run in records:
        origin = run.provenance
        facts: dict[str, Any] = {
            "model revision": origin.model_revision,
            f"data, {run.task}": origin.data_fingerprint,
            "commit": origin.git_commit,
            **{f"hardware, {name}": value for name, value in origin.hardware.items()},
            **{f"version, {name}": value for name, value in origin.versions.items()},
        }
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


def render_changes(changes: StudyChanges) -> Group:
    """The changes as tables for the terminal."""
    parts: list[Table | Text] = []
    if changes.settings:
        parts.append(plain_table(("setting", "first", "second"), changes.settings, title="Settings that differ"))
    if changes.provenance:
        parts.append(plain_table(("what", "first", "second"), changes.provenance, title="What they ran on"))
    for title, names in (("Only in the first", changes.only_first), ("Only in the second", changes.only_second)):
        if names:
            parts.append(Text(f"{title}: {'; '.join(names)}."))
    if changes.changes:
        columns = ("task", "method", "metric", "first", "second", "seeds", "change", "95 % interval", "", "samples/s")
        parts.append(plain_table(columns, map(_cells, changes.changes), title="Scores, mean over seeds"))
        parts.append(
            Text("Each line by itself: with many lines, about one in twenty that did not change looks as if it had.")
        )
    else:
        parts.append(Text("The two studies have no configuration in common."))
    same = not (changes.settings or changes.provenance or changes.only_first or changes.only_second)
    return Group(*([Text("Settings, machines and methods are the same.")] if same else []), *parts)


def _cells(change: Change) -> tuple[str, ...]:
    interval = (
        UNKNOWN if change.low is None or change.high is None else f"{signed(change.low)} to {signed(change.high)}"
    )
    return (
        change.task,
        change.label,
        METRICS[change.metric].title,
        show(change.first, "score"),
        show(change.second, "score"),
        f"{change.seeds[0]}, {change.seeds[1]}",
        UNKNOWN if change.difference is None else signed(change.difference),
        interval,
        change.verdict,
        " → ".join(show(value, "count") for value in change.samples_per_second),
    )
