"""What changed between two studies: settings, runs, scores, speed, and the versions and machines they ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from manytune.data.metrics import METRICS
from manytune.report.judgement import configurations_of
from manytune.report.names import joined
from manytune.report.report_data import provenance_facts
from manytune.report.sheets import UNKNOWN, interval, show
from manytune.report.task_table import MethodRow, tabulate
from manytune.report.views import plain_table
from manytune.stats.claims import Judging
from manytune.stats.looks import MINIMUM_SEEDS, SeedPlan
from manytune.stats.verdict import judge
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord

_Key = tuple[str, str, str]  # task, model, label


@dataclass(frozen=True)
class ConfigurationChange:
    """One configuration that both studies have."""

    task: str
    model: str
    label: str
    metric: str
    first: float | None  # mean best score in the first study
    second: float | None
    seeds: tuple[int, int]  # runs that trained in each
    difference: float | None  # second less first
    low: float | None  # 95 % interval for new seeds; None where one has fewer than 5
    high: float | None
    verdict: str
    samples_per_second: tuple[float | None, float | None]


@dataclass(frozen=True)
class StudyChanges:
    """What differs between two studies."""

    settings: tuple[tuple[str, str | None, str | None], ...]
    """Dotted key of the study, its value in the first and in the second; None where it is not set."""
    provenance: tuple[tuple[str, str, str], ...]
    """Versions, hardware and data that differ."""
    only_first: tuple[str, ...]
    """Configurations that only the first study has: "cola: lora r=8, lr 4e-4"."""
    only_second: tuple[str, ...]
    changes: tuple[ConfigurationChange, ...]
    """Configurations that both have; where one study searched, methods that both have in one configuration each."""
    notes: tuple[str, ...] = ()
    """What is compared of a study that searches, and what may make scores unlike."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)


def compare_studies(first: Path | str, second: Path | str) -> StudyChanges:
    """Compare two study directories by configuration; a ManytuneError if one is no study directory or is damaged.

    Of a study that searches the confirmed winners are compared, never its trials. A search finds other settings each
    time, so a method that has one configuration on both sides is then compared whatever its settings are.
    """
    stores = (Store.open(first), Store.open(second))
    settings = [_flat(store.study().model_dump(mode="json")) for store in stores]
    records = [_judged(store) for store in stores]
    searched = any(store.study().search is not None for store in stores)
    facts = [
        {name: ", ".join(values) for name, values in provenance_facts(runs, data="data", commit="commit").items()}
        for runs in (records if all(records) or not searched else ())  # a search may have no winner yet
    ]
    plans = [SeedPlan.of(store.looks()) for store in stores]
    # Whatever was planned was planned for one study alone.
    plan = SeedPlan(grown=any(each.grown or each.looks for each in plans))
    rows, others = (
        {(table.task, table.model, row.label): row for table in tabulate(runs) for row in table.rows}
        for runs in records
    )
    pairs = _pairs(rows, others, searched)
    return StudyChanges(
        settings=tuple(_differing(*settings)),
        provenance=tuple(
            (name, one or UNKNOWN, other or UNKNOWN) for name, one, other in (_differing(*facts) if facts else ())
        ),
        only_first=tuple(f"{task}: {label}" for task, model, label in rows if (task, model, label) not in pairs),
        only_second=tuple(
            f"{task}: {label}" for task, model, label in others if (task, model, label) not in pairs.values()
        ),
        changes=tuple(_change(key, rows[key], others[other], plan) for key, other in pairs.items()),
        notes=tuple(_notes(stores, records)),
    )


def _judged(store: Store) -> tuple[RunRecord, ...]:
    """The finished runs of a study; of one that searches, those of its confirm stage."""
    study = store.study()
    folders = [store.root] if study.search is None else [store.confirm_dir(task) for task in study.task_names]
    found = (Store.open(each).finished_runs().values() for each in folders if each == store.root or each.is_dir())
    return tuple(record for runs in found for record in runs)


def _pairs(rows: Mapping[_Key, MethodRow], others: Mapping[_Key, MethodRow], searched: bool) -> dict[_Key, _Key]:
    """Which configuration of the second study each one of the first is compared with."""
    same = {key: key for key in rows if key in others}
    if not searched:
        return same
    one, other = (_alone({key: row for key, row in each.items() if key not in same}) for each in (rows, others))
    return same | {one[method]: other[method] for method in one if method in other}


def _alone(rows: Mapping[_Key, MethodRow]) -> dict[_Key, _Key]:
    """(task, model, method) → the key of its configuration, where it has but one."""
    groups: dict[_Key, list[_Key]] = {}
    for (task, model, label), row in rows.items():
        groups.setdefault((task, model, row.method), []).append((task, model, label))
    return {method: keys[0] for method, keys in groups.items() if len(keys) == 1}


def _notes(stores: Sequence[Store], records: Sequence[Sequence[RunRecord]]) -> Iterator[str]:
    for store, runs in zip(stores, records, strict=True):
        if store.study().search is not None:
            what = "the confirmed winners are compared, not the trials" if runs else "no winner has been confirmed yet"
            yield f"{store.root} is a search: {what}."
    if not any(store.study().search is not None for store in stores):
        return
    chosen = [{run.selection for run in runs} for runs in records]
    if all(chosen) and chosen[0] != chosen[1]:
        yield (
            "One study chose its best evaluations on the rows that are compared, so its scores are optimistic; the "
            "winners of a search are scored once, after their last step."
        )
    rows = [{(run.task, run.provenance.data_fingerprint) for run in runs} for runs in records]
    shared = {task for task, _ in rows[0]} & {task for task, _ in rows[1]}
    if unlike := sorted(task for task in shared if len({each for each in rows[0] | rows[1] if each[0] == task}) > 1):
        yield f"The rows of {joined(unlike)} are not the same in both, so a difference may be that of the rows."


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[tuple[str, str | None, str | None]]:
    """Key and both values, of the keys whose values differ."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def _change(key: _Key, first: MethodRow, second: MethodRow, plan: SeedPlan) -> ConfigurationChange:
    metric = first.primary.metric
    difference = None if first.mean is None or second.mean is None else second.mean - first.mean
    low = high = None
    verdict = "too few seeds for a verdict"
    sides = [
        replace(one, method=name, label=name)
        for name, row in (("first", first), ("second", second))
        for one in configurations_of([row])
    ]
    for found in judge(sides, Judging(seeds=plan)).comparisons:
        if min(found.seeds) >= MINIMUM_SEEDS and found.low is not None and found.high is not None:
            # The comparison names the better one first; a change is the second study less the first.
            turned = metric.sign if found.first == "second" else -metric.sign
            low, high = sorted((turned * found.low, turned * found.high))
            verdict = "within noise" if low <= 0 <= high else "changed"
    label = first.label if first.label == second.label else f"{first.label} → {second.label}"
    return ConfigurationChange(
        *key[:2],
        label=label,
        metric=metric.name,
        first=first.mean,
        second=second.mean,
        seeds=(len(first.trained), len(second.trained)),
        difference=difference,
        low=low,
        high=high,
        verdict=verdict,
        samples_per_second=(first.samples_per_second, second.samples_per_second),
    )


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Nested data as dotted keys → text; what is None is left out."""
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        parts = (_flat(inner, f"{key}.{name}".lstrip(".")) for name, inner in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {} if value is None else {key: str(value)}


def render_changes(changes: StudyChanges) -> Group:
    """The changes as tables for the terminal."""
    parts: list[Table | Text] = [Text(note) for note in changes.notes]
    if changes.settings:
        parts.append(plain_table(("setting", "first", "second"), changes.settings, title="Settings that differ"))
    if changes.provenance:
        parts.append(plain_table(("what", "first", "second"), changes.provenance, title="What they ran on"))
    for title, names in (("Only in the first", changes.only_first), ("Only in the second", changes.only_second)):
        if names:
            parts.append(Text(f"{title}: {'; '.join(names)}."))
    if changes.changes:
        columns = ("task", "method", "metric", "first", "second", "seeds", "change", "95 % interval", "", "samples/s")
        rows = [
            (
                change.task,
                change.label,
                METRICS[change.metric].title,
                show(change.first, "score"),
                show(change.second, "score"),
                f"{change.seeds[0]}, {change.seeds[1]}",
                show(change.difference, "difference"),
                interval(change.low, change.high),
                change.verdict,
                " → ".join(show(value, "count") for value in change.samples_per_second),
            )
            for change in changes.changes
        ]
        parts.append(plain_table(columns, rows, title="Scores, mean over seeds"))
        parts.append(
            Text("Each line by itself: with many lines, about one in twenty that did not change looks as if it had.")
        )
    else:
        parts.append(Text("The two studies have no configuration in common."))
    same = not (changes.settings or changes.provenance or changes.only_first or changes.only_second)
    return Group(*([Text("Settings, machines and methods are the same.")] if same else []), *parts)
