"""Look at a study's data and model without training: what would spoil a result, before it costs anything."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import RenderableType

from manytune.cli.dry_run_search import search_line
from manytune.config import Study
from manytune.config.confirm import judging_study
from manytune.data.baselines import BaselineScore
from manytune.data.cells import same_to_the_eye
from manytune.data.metrics import METRICS, default_margin
from manytune.data.splits import Encoded, Split, leaked, uneven_classes
from manytune.data.tasks import SPLITS, Task
from manytune.models.loading import check_weights, load_config, load_tokenizer, model_spec
from manytune.models.spec import ModelSpec
from manytune.report.views import percent, plain_table
from manytune.training.workload import blank_rows, encode_split, load_splits, longest, measure_baselines
from manytune.utils.hardware import gpu_note
from manytune.utils.text import counted, listed, shortened

_SHOWN = 5  # examples of a finding
_NOTHING = frozenset({"null", "none", "nan", "na", "n/a", "<na>", "nil", "-", "?"})  # as tools write empty cells


@dataclass(frozen=True)
class Finding:
    """Something that would spoil a result, or that a reader of it should know: a sentence, and some of the rows."""

    what: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitFacts:
    """One split of a task."""

    source: str  # where the rows came from
    rows: int  # how many are used
    limited_from: int | None  # of how many, where the study has a limit
    left_out: tuple[str, ...]  # which rows are not, and why
    # Median, 95th percentile and longest row in tokens, special ones included, before any is cut
    tokens: Mapping[str, int]
    truncated: int  # rows that are cut
    classes: Mapping[str, int]  # class → rows; empty without classes
    targets: Mapping[str, float]  # Lowest, mean, highest and standard deviation of numeric targets; empty with classes

    @property
    def rows_shown(self) -> int | str:
        """The rows in a table: "800 of 8,551" where a limit holds."""
        return self.rows if self.limited_from is None else f"{self.rows:,} of {self.limited_from:,}"


@dataclass(frozen=True)
class TaskCheck:
    """What was found in the data of one task, by split."""

    task: str
    kind: str
    splits: Mapping[str, SplitFacts]
    findings: tuple[Finding, ...]
    baselines: tuple[BaselineScore, ...]  # what methods must beat: scores on dev without a pretrained model
    margin: float | None  # how much worse in the first metric counts as as good; None where it is unknown
    margin_given: bool  # whether the study says so


@dataclass(frozen=True)
class StudyCheck:
    """A study's model, and its tasks in the study's order."""

    model: str
    family: str
    parameters: int  # of the backbone
    longest: int  # most tokens that the model takes
    seeds: int
    looks: tuple[int, ...]  # numbers of seeds at which a look is planned
    search: str | None  # what is searched, in words; None for a fixed study
    gpu: str | None  # what to know of training on this machine's GPU; None without one
    tasks: tuple[TaskCheck, ...]

    def render(self) -> Iterator[RenderableType]:
        """As a terminal shows it."""
        yield f"{self.model}: {self.family}, {self.parameters:,} parameters, at most {self.longest} tokens a row"
        looks = f"planned looks at {listed(self.looks)} seeds" if self.looks else "no looks planned for adding more"
        seeds = f"{counted(self.seeds, 'seed')}; {looks}"
        yield f"{self.search or seeds}\n"
        if self.gpu:
            yield f"{self.gpu}\n"
        for task in self.tasks:
            yield plain_table(
                ("split", "rows", "left out", "tokens: median", "95 %", "longest", "cut", "from"),
                [
                    (name, s.rows_shown, len(s.left_out), *s.tokens.values(), s.truncated, s.source)
                    for name, s in task.splits.items()
                ],
                title=f"{task.task} ({task.kind})",
            )
            yield _labels_table(task)
            yield _baselines_table(task)
            yield _margin_line(task)
            for finding in task.findings or (Finding("Nothing was found that would spoil a result."),):
                yield f"  {finding.what}"
                yield from (f"    {example}" for example in finding.examples)
            yield ""


def check_study(study: Study) -> StudyCheck:
    """Load and check everything that a study trains on; raises ManytuneError where it cannot be used at all."""
    tokenizer = load_tokenizer(study.model)
    parts = model_spec(study.model, 1)
    check_weights(study.model)
    tasks = []
    for name in study.task_names:
        task, splits = load_splits(study, name)
        if study.confirm is not None and study.confirm.on == "test":
            splits["test"] = load_splits(judging_study(study, name), name)[1]["dev"]
        encoded = {split: encode_split(study, parts, tokenizer, rows) for split, rows in splits.items()}
        whole = {split: encode_split(study, parts, tokenizer, rows, whole=True) for split, rows in splits.items()}
        facts = {split: _facts(task, rows, encoded[split], whole[split]) for split, rows in splits.items()}
        blank = {split: blank_rows(tokenizer, rows, whole[split]) for split, rows in splits.items()}
        found = tuple(_findings(study, parts, task, splits, facts, blank))
        baselines = measure_baselines(study, task, splits).scores
        given, constant = study.margin_of(name), baselines[0].scores[task.primary_metric]
        margin = default_margin(task.primary_metric, constant) if given is None else given
        tasks.append(TaskCheck(name, task.kind, facts, found, baselines, margin, given is not None))
    return StudyCheck(
        model=study.model,
        family=load_config(study.model, 1, shipped=True).model_type,
        parameters=sum(int(np.prod(shape)) for shape in parts.tensors.values()),
        longest=parts.max_length,
        seeds=len(study.seeds),
        looks=study.looks,
        search=search_line(study) if study.search is not None else None,
        gpu=gpu_note(),
        tasks=tuple(tasks),
    )


def _facts(task: Task, rows: Split, encoded: Encoded, whole: Encoded) -> SplitFacts:
    at = {"median": 50, "p95": 95, "longest": 100}
    return SplitFacts(
        source=rows.source,
        rows=len(rows),
        limited_from=rows.limited_from,
        left_out=rows.left_out,
        tokens={name: int(np.percentile(whole.lengths, q, method="higher")) for name, q in at.items()},
        truncated=encoded.truncated,
        classes=task.type.class_counts(task, rows.labels),
        targets=task.type.target_facts(rows.labels),
    )


def _labels_table(task: TaskCheck) -> RenderableType:
    splits = task.splits.values()
    if targets := next(iter(splits)).targets:
        rows = [(name, *map(_target, facts.targets.values())) for name, facts in task.splits.items()]
        return plain_table(("targets", *targets), rows)
    columns = ("class", *(part for name in task.splits for part in (name, "of all")))
    rows = [
        (name, *(cell for s in splits for cell in (s.classes[name], percent(s.classes[name], s.rows))))
        for name in next(iter(splits)).classes
    ]
    return plain_table(columns, rows)


def _baselines_table(task: TaskCheck) -> RenderableType:
    metrics = task.baselines[0].scores
    rows = [
        (each.title, *("undefined" if score is None else score for score in each.scores.values()), each.rows, each.note)
        for each in task.baselines
    ]
    return plain_table(("baseline", *(METRICS[name].title for name in metrics), "training rows", ""), rows)


def _margin_line(task: TaskCheck) -> str:
    metric, given = METRICS[next(iter(task.baselines[0].scores))].title, "" if task.margin_given else ", by default"
    if task.margin is None:
        return "  Nothing counts as as good: report.margin would say how much worse may be."
    return f"  As good: at most {task.margin:.4g} worse in {metric} (report.margin{given})."


def _target(value: float) -> object:
    """Large ones with all their digits: those of a date differ in the last alone."""
    return f"{value:.12g}" if 1e4 <= abs(value) < 1e12 else value


def _findings(
    study: Study,
    parts: ModelSpec,
    task: Task,
    splits: Mapping[str, Split],
    facts: Mapping[str, SplitFacts],
    blank: Mapping[str, Sequence[int]],
) -> Iterator[Finding]:
    most, whose = longest(study, parts)
    for name, rows in splits.items():
        yield from map(Finding, rows.notes)
        if rows.left_out:
            yield Finding(f"{counted(len(rows.left_out), f'{name} row')} left out:", rows.left_out[:_SHOWN])
        if (cut := facts[name]).truncated:
            yield Finding(f"{percent(cut.truncated, cut.rows)} of the {name} rows are cut at {most} tokens, {whose}.")
        if blank[name]:
            some = tuple(f"{rows.place(at)}: {_shown(rows.texts[at])!a}" for at in blank[name][:_SHOWN])
            yield Finding(f"{counted(len(blank[name]), f'{name} row')} of which the tokenizer makes no token:", some)
        yield from _repeated(task, name, rows)
    train = splits["train"]
    for name, rows in splits.items():
        if name != "train" and (shared := leaked(train, rows)):
            some = tuple(_shown(rows.texts[index]) for index in shared[:_SHOWN])
            what = f"{counted(len(shared), f'{name} row')} of {len(rows):,} with the text of a training row, "
            yield Finding(what + f"so scores on {name} are too high:", some)
    yield from _odd_names(task)
    yield from _uneven(study, task, train, facts)


def _repeated(task: Task, name: str, rows: Split) -> Iterator[Finding]:
    labels = defaultdict(set)
    for texts, label in zip(rows.texts, rows.labels.tolist(), strict=True):
        labels[texts].add(label)
    counts = Counter(rows.texts)
    if contradicting := [texts for texts, different in labels.items() if len(different) > 1]:
        some = tuple(
            f"{_shown(texts)}: {listed([task.type.shown(task, label) for label in sorted(labels[texts])], _SHOWN)}"
            for texts in contradicting[:_SHOWN]
        )
        number = counted(len(contradicting), f"{name} text")
        yield Finding(f"{number} there more than once, with different {task.type.label_word}s:", some)
    if twice := counts.total() - len(counts):
        some = tuple(
            f"{_shown(texts)}: {counted(count, 'time')}" for texts, count in counts.most_common(_SHOWN) if count > 1
        )
        yield Finding(f"{counted(twice, f'{name} row')} with the text of an earlier one:", some)


def _odd_names(task: Task) -> Iterator[Finding]:
    """Classes of a user's own task that may be meant as one, or as none."""
    if task.own is None:
        return
    if nothing := [name for name in task.labels if name.casefold() in _NOTHING]:
        yield Finding(f"A class like any other is called {listed(nothing)}; where it means none, empty those cells.")
    alike = defaultdict(list)
    for name in task.labels:
        alike[same_to_the_eye(name)].append(name)
    groups = tuple(", ".join(names) for names in alike.values() if len(names) > 1)
    if groups:
        yield Finding("Classes whose names differ in capitals or spelling alone, and may be meant as one:", groups)


def _uneven(study: Study, task: Task, train: Split, facts: Mapping[str, SplitFacts]) -> Iterator[Finding]:
    for name in SPLITS:
        if lacking := [label for label, count in facts[name].classes.items() if count == 0]:
            yield Finding(f"No {name} row is of {listed(lacking)}.")
    if (uneven := uneven_classes(task, train)) is not None:
        (few, least), (many, most) = uneven
        cures = [
            *(["training.class_weights: balanced weighs"] if study.training.class_weights == "none" else []),
            *(["metric: macro_f1 scores"] if task.own is not None and "macro_f1" not in task.metrics else []),
        ]
        what = f"The classes are uneven: {counted(least, 'training row')} of {few}, {most} of {many}."
        yield Finding(" ".join([what, *(f"{cure} them alike." for cure in cures)]))


def _shown(texts: tuple[str, ...]) -> str:
    return " | ".join(shortened(text, 60) for text in texts)
