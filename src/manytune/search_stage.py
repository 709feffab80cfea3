"""The first stage of a study that searches: trials train and are compared, until each search space has its winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manytune.config import MEANS, Study
from manytune.config.plan import Run, make_runs
from manytune.config.spaces import Choice, Space, search_spaces
from manytune.data.metrics import METRICS
from manytune.executors.auto import best_executor, kept_executor
from manytune.executors.base import ExecutorSpec
from manytune.executors.driver import Driver
from manytune.executors.estimate import largest_packs
from manytune.executors.pack_inputs import Backbones, PackInputs
from manytune.search.journal import FILE as JOURNAL
from manytune.search.journal import Journal
from manytune.search.sampling import SpaceSampler
from manytune.search.scheduler import Scheduler, TaskFacts, expected_trials, search_packs
from manytune.search.winners import FILE as WINNERS
from manytune.search.winners import Winner, choose_winners, write_winners
from manytune.storage import provenance
from manytune.storage.directory import Store, differences
from manytune.storage.lock import Held
from manytune.training.callbacks import Callback
from manytune.training.workload import TaskWork, prepare
from manytune.utils import hardware
from manytune.utils.errors import StoreError
from manytune.utils.text import counted

_EXAMPLES = 64  # trials of a space from which the size of packs is estimated


def find_winners(
    store: Store,
    study: Study,
    device: str,
    executor: ExecutorSpec | None,
    callback: Callback,
    held: Held,
    *,
    accept_changes: bool,
) -> list[Winner]:
    """Train the trials that the search still wants, and keep the winners; arguments and errors as of `run_study`."""
    assert study.search is not None

    _refuse_another_search(store, study)
    # Prepare: what cannot be loaded or trained is refused here, before anything is written.
    backbones = Backbones(study.model)
    works = {name: prepare(study, name, backbones.spec) for name in study.task_names}
    spaces = [space for name in study.task_names for space in search_spaces(study, name)]
    examples = [run for space in spaces for run in _example_runs(study, space)]
    for work in works.values():
        runs = [run for run in examples if run.task == work.task.name]
        for run in runs:
            work.adaptation(run)
        for text in (*work.notes, *work.warnings(runs)):
            callback.on_message(text, "warning")

    # Plan: where packs train, and how many trials are in each.
    planned, records = store.read_plan() or (), store.finished_runs()
    spec = executor or kept_executor(store, device) or best_executor(device, examples, works)
    capacity, profile = spec.profile(study.training.precision, next(iter(works.values())).width)
    packs = planned or search_packs(study, spaces, largest_packs(examples, works, profile, capacity), capacity)
    now: provenance.StudyProvenance = {
        "versions": hardware.versions(),
        "data": {name: work.fingerprint for name, work in works.items()},
    }
    provenance.refuse_changes(store.root, now, callback.on_message, accept_changes=accept_changes)

    # Record: the study, its plan, and what its results rest on.
    store.sweep()
    (store.root / WINNERS).unlink(missing_ok=True)  # of a search that is to go on: its winners may be others
    Store.create_or_open(store.root, study, accept_changes=True)  # what may not change was refused before
    store.write_plan(packs, spec.to_plan())
    provenance.keep(store.root, now)
    facts = {name: TaskFacts(work.task.primary_metric, work.train_size) for name, work in works.items()}
    better = {name: METRICS[each.metric].higher_is_better for name, each in facts.items()}
    own = [pack for pack in packs if pack.room is None and any(run.id not in records for run in pack.runs)]
    waiting = [run.id for pack in own for run in pack.runs]
    scheduler = Scheduler(study, spaces, facts, Journal(store.root, spaces, better), records, waiting)
    scheduler.rehome(packs)
    left = [*(pack for pack in packs if pack.room is not None and scheduler.has_work(pack)), *own]
    for pack in packs:  # a process that was killed may not have removed what a pack that had ended needed
        ended = [records.get(run.id) for run in scheduler.assigned(pack.id)]
        if pack not in left and ended and all(record is not None and not record.failure for record in ended):
            store.remove_pack(pack.id)

    # Execute.
    try:
        callback.on_study_begin(packs, records)
        inputs = PackInputs(store.root, works, backbones, held)
        Driver(inputs, packs, set(records), callback, scheduler).train(spec, left)
    finally:
        callback.on_study_end()
    for space, count in scheduler.unused().items():
        lack = f"{space}: {counted(count, 'trial', 'was|were')} not trained, because packs broke too often."
        callback.on_message(lack, "warning")
    winners = choose_winners(spaces, store.finished_runs().values())
    write_winners(store.root, winners)
    for line in winner_lines(spaces, winners, works):
        callback.on_message(line)
    return winners


def _refuse_another_search(store: Store, study: Study) -> None:
    """Raise StoreError where a search has begun whose trials would not be of this one."""
    if not (store.root / JOURNAL).exists():
        return
    free: Any = {"search": {"trials", "seconds"}, "confirm": True, "report": True, "tracking": True, "training": MEANS}
    there, here = (each.model_dump(mode="json", exclude=free) for each in (store.study(), study))
    if there != here:
        lines = "\n".join(f"  {line}" for line in differences(there, here))
        raise StoreError(
            f"The search in {store.root} has begun otherwise, and its trials would not compare:\n{lines}\n"
            "Give another --out. Of a search that has begun, only its budget and `confirm` may change."
        )


def winner_lines(spaces: Sequence[Space], winners: Sequence[Winner], works: Mapping[str, TaskWork]) -> list[str]:
    """A sentence on each space."""
    found = {(winner.task, winner.space): winner for winner in winners}
    lines = []
    for space in spaces:
        winner = found.get((space.task, space.name))
        if winner is None:
            lines.append(f"{space.task}: {space.name}: no trial learned anything by its end, so none is trained again.")
            continue
        title = METRICS[works[space.task].task.primary_metric].title
        settings = ", ".join(f"{name} {value}" for name, value in winner.settings.items())
        pruned = f", {winner.pruned} pruned" if winner.pruned else ""
        lines.append(
            f"{space.task}: {space.name}: best of {counted(winner.trials, 'trial')}{pruned}: "
            f"{title} {winner.score:.3f} on the rows that select" + (f" ({settings})" if settings else "")
        )
    return lines


def _example_runs(study: Study, space: Space) -> list[Run]:
    """Runs such as the space's trials, the largest of each choice among them: for checks and estimates."""
    assert study.search is not None
    count = min(expected_trials(study.search, [space]), _EXAMPLES)
    sampler = SpaceSampler(study.search, space)
    values = [sampler.draw(number) for number in range(count)]
    choices = [name for name, each in space.dimensions.items() if isinstance(each, Choice)]
    for name in choices:  # one trial with each value
        values += [{**values[0], name: value} for value in space.dimensions[name].values]  # type: ignore[union-attr]
    return [run for each in values for run in make_runs(study, space.task, *space.at(each), seeds=[0])]
