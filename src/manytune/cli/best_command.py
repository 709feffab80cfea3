"""The command `best`: the best configuration that a study found, as a study file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from manytune.cli.common import Directory, app
from manytune.utils.errors import StoreError, StudyError, choices
from manytune.utils.text import counted, say

if TYPE_CHECKING:
    from manytune.config import Study
    from manytune.config.confirm import Configuration
    from manytune.report.task_table import MethodRow
    from manytune.storage.directory import Store
    from manytune.storage.record import RunRecord


@app.command()
def best(
    name: Directory,
    task: Annotated[str | None, typer.Option(help="Which task, where the study has several.")] = None,
) -> None:
    """Print the best configuration as a study file, ready for `run`.

    Of a search: the winner of the confirmation, or, before there is one, the best trial. Of a fixed study: the
    configuration with the best mean.
    """
    from manytune.storage.directory import Store

    store = Store.open(name)
    study = store.study()
    if task is None and len(study.task_names) > 1:
        raise StudyError(f"--task: the study has several tasks; give one of {', '.join(study.task_names)}")
    chosen = study.task_names[0] if task is None else task
    if chosen not in study.task_names:
        raise StudyError(f"--task: {choices(chosen, study.task_names)}")
    lines, found = _of_search(store, study, chosen) if study.search is not None else _of_fixed(store, study, chosen)
    which = "" if task is None else f" --task {task}"
    lines.append(f"To train it: manytune best {name}{which} > best.yaml, and manytune run best.yaml --out DIR")
    say(*(f"# {line}" for line in lines), found.to_yaml().rstrip())


def _of_fixed(store: Store, study: Study, task: str) -> tuple[list[str], Study]:
    from manytune.config.confirm import fixed_study

    row = _best_row(store, study, task)
    if row is None:
        raise _nothing(store, task)
    lines = [
        f"The best configuration of {store.root} on {task}: {row.label}",
        f"{_score(row)}. It was chosen by this score, so it is too good.",
    ]
    found = [configuration_of(row.runs[0])]
    return lines, fixed_study(study, task, found, "best", seeds=study.seeds, selection=study.selection)


def _of_search(store: Store, study: Study, task: str) -> tuple[list[str], Study]:
    """The winner of the confirmation, as far as it has come; before it, the best trial."""
    from manytune.config.confirm import FIRST_SEED, fixed_study
    from manytune.config.search import Confirm
    from manytune.storage.directory import Store

    confirm, folder, row = study.confirm or Confirm(), store.confirm_dir(task), None
    if study.confirm is not None and folder.is_dir():
        confirming = Store.open(folder)
        row = _best_row(confirming, confirming.study(), task)
    if row is not None:
        record, ended, planned = row.runs[0], len(confirming.finished_runs()), len(confirming.runs())
        lines = [
            f"The winner of the search in {store.root} on {task}: {row.label}",
            f"{_score(row)}, on {confirm.on} rows, which chose no setting.",
        ]
        if ended < planned:
            lines.append(f"The confirmation goes on: {counted(ended, 'run', 'has|have', of=planned)} ended so far.")
    else:
        record = _best_trial(store, task)
        assert record.trial is not None
        lines = [
            f"The best trial of the search in {store.root} on {task}: {record.label}",
            f"{_metric(record)} {record.best_score:.4f}, trial {record.trial.number} of {record.trial.space}.",
            "It was chosen by this score, which is too good therefore; no run of a confirmation has ended.",
        ]
    seeds = range(FIRST_SEED, FIRST_SEED + confirm.seeds)
    found = [configuration_of(record)]
    return lines, fixed_study(study, task, found, "best", seeds=seeds, selection="none", on=confirm.on)


def _best_row(store: Store, study: Study, task: str) -> MethodRow | None:
    """The configuration with the best mean, as the report has it; None where no run has a score."""
    from contextlib import suppress

    from manytune.report.judgement import at_look
    from manytune.report.task_table import tabulate
    from manytune.stats.looks import SeedPlan

    records = [record for record in store.finished_runs().values() if record.task == task]
    baselines = {}
    with suppress(StoreError):  # damaged ones, of which the report tells
        if (kept := store.task_artifacts(task).baselines()) is not None:
            baselines[task] = kept
    tables = tabulate(at_look(records, study.seeds, (), SeedPlan.of(store.looks())), baselines)
    row = next(iter(tables[0].by_mean)) if tables else None
    return None if row is None or row.mean is None else row


def _best_trial(store: Store, task: str) -> RunRecord:
    """The trial with the best score of those that came to their ends."""
    from manytune.search.winners import best_trial

    found = best_trial(record for record in store.trials() if record.task == task)
    if found is None:
        raise _nothing(store, task)
    return found


def configuration_of(record: RunRecord) -> Configuration:
    """The method and training of a run, from its record."""
    from manytune.config import Training
    from manytune.methods import METHODS, make_method

    values: dict[str, Any] = dict(record.hyperparameters)
    training = Training.model_validate(values["training"]) if "training" in values else None
    fields = METHODS[record.method].model_fields if record.method in METHODS else {}
    return make_method(record.method, **{name: values[name] for name in fields if name in values}), training


def _score(row: MethodRow) -> str:
    best = row.primary.best
    spread = "" if best.deviation is None else f" (sd {best.deviation:.4f})"
    return f"{row.primary.metric.title} {best.mean:.4f}{spread}, the mean of {counted(best.count, 'seed')}"


def _metric(record: RunRecord) -> str:
    from manytune.data.metrics import METRICS

    return METRICS[record.primary_metric].title


def _nothing(store: Store, task: str) -> StoreError:
    return StoreError(
        f"No run on {task} has finished with a score in {store.root}, so there is no best one yet. "
        f"How far it is: manytune status {store.root}"
    )
