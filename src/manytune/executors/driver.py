"""The driver: hands packs to an executor, writes the records, and decides what becomes of a pack that broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch

from manytune.config.plan import Pack, smaller_packs
from manytune.executors.base import ExecutorSpec
from manytune.executors.job import run_record
from manytune.executors.orders import Orders
from manytune.executors.pack_inputs import PackInputs
from manytune.search.scheduler import Scheduler
from manytune.storage.directory import Store
from manytune.storage.record import HistoryRow, RunRecord, RunState
from manytune.training.callbacks import Best, Callback, CallbackList, ForwardingCallback, PackEnd
from manytune.training.checkpoints import Checkpoints
from manytune.training.outcome import Checkpoint, Outcome
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import stop_requests
from manytune.utils.text import counted

_MEMORY_ADVICE = "Not even one row at a time fits: use a smaller model, or lower training.max_length."
_MOST_DEATHS = 3  # times that the process which trains a pack may die before the pack is given up


class Driver(Callback):
    """Trains the packs of a study, several at once where the executor can; tries again what can be tried again."""

    def __init__(
        self,
        inputs: PackInputs,
        packs: Sequence[Pack],
        ended: set[str],
        callback: Callback,
        search: Scheduler | None = None,
    ) -> None:
        """`packs` are all of the study; `ended`, the ids of runs that have a record, grows with every run that ends.

        `search` says which trials train where, in a study that has a search.
        """
        self._inputs, self._store = inputs, Store(inputs.root)
        self._packs = list(packs)
        self._ended = ended
        self._search = search
        self._callback: Callback = CallbackList([self, callback])
        if search is not None:
            self._callback = _TrialCallback(search, self._callback)
        self._training: dict[str, Pack] = {}
        self._send: Callable[[Orders], None] = lambda orders: None
        self._queue: list[Pack] = []
        self._deaths: Counter[str] = Counter()

    def train(self, executor: ExecutorSpec, packs: Sequence[Pack]) -> None:
        """Train packs in their order, until none is left.

        Raises Interrupted where the user asked to stop, after all packs stopped where they can go on, and
        ManytuneError where the study cannot go on.
        """
        self._queue = list(packs)
        training = self._training
        with stop_requests() as stop, executor.open(self._inputs, self._callback) as opened:
            self._send = opened.send
            while True:
                if not training:
                    stop.obey()
                while len(training) < opened.capacity and stop.number is None:
                    self._inputs.check()
                    if (pack := self._next_pack()) is None:
                        break
                    if not self._split_after_kill(pack):
                        training[pack.id] = pack
                        opened.submit(pack, self._ended)
                if not training and not self._queue:
                    break
                for end in opened.wait(stop) if training else ():
                    pack = training.pop(end.pack_id)
                    self._settle(pack, end)
                    # Something else than the user has stopped it, such as a node's shutdown: it goes on elsewhere.
                    if end.how == "stopped" and stop.number is None:
                        self._queue.insert(0, pack)
            stop.obey()

    def _next_pack(self) -> Pack | None:
        """The pack to train next: of those that wait, or of a trial that has a pack of its own."""
        if self._queue:
            pack = self._queue.pop(0)
            if (search := self._search_of(pack)) is not None:  # with the runs that its checkpoints know
                pack = replace(pack, runs=search.assigned(pack.id))
            return pack
        if self._search is None or (found := self._search.next_full()) is None:
            return None
        if all(pack.id != found.id for pack in self._packs):
            self._packs.append(found)
            self._store.write_plan(self._packs)
        return found

    def on_room(self, pack_id: str, step: int, room: int, joined: Mapping[str, int]) -> None:
        """Fill a pack of a search."""
        assert self._search is not None
        self._inputs.check()
        if (pack := self._training.get(pack_id)) is None:  # from elsewhere, a call may come after the pack's end
            return
        join, leave, close = self._search.room(pack, room, joined)
        self._note_trials(pack)
        self._send(Orders(pack_id, join, leave, close))

    def _note_trials(self, pack: Pack) -> None:
        """Keep in the plan which trials a pack has, so that commands show them."""
        assert self._search is not None
        self._replan(pack.id, [replace(pack, runs=self._search.assigned(pack.id))])

    def on_evaluate(self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: Best) -> None:
        """Let trials leave that are not among the best."""
        if self._search is not None:
            self._inputs.check()
            if leaving := self._search.evaluated(rows):
                self._send(Orders(pack_id, leave=leaving))

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Stop soon where another process has taken the directory over."""
        if self._inputs.held is not None and self._inputs.held.lost.is_set():
            self._inputs.check()

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """Write the record: by it, and by nothing else, the run has ended."""
        self._inputs.check()
        self._store.write_record(record)
        self._ended.add(record.run_id)
        if self._search is not None:
            self._search.ended(record)

    def _settle(self, pack: Pack, end: PackEnd) -> None:
        """React to the end of a pack's time with the executor: done, or to be failed, split or trained again."""
        self._inputs.check()
        if end.how == "done":
            self._store.remove_pack(pack.id)
            # Under a budget of seconds, what pruning gives back may allow another trial after the pack was told to end.
            if (search := self._search_of(pack)) is not None and search.has_work(pack):
                self._queue.append(pack)
        self._callback.on_pack_end(end)
        reason = end.reason or ""
        if end.how == "refused":
            raise ManytuneError(reason)
        if end.how == "broken" and not (end.out_of_memory and self._split(pack, reason)):
            if end.out_of_memory:
                reason = f"{reason.removesuffix('.')}. {_MEMORY_ADVICE}"
            self._store.write_traceback(pack.id, end.traceback or reason)
            self._fail(pack, reason)
            self._go_on_searching(pack)
        elif end.how == "lost":
            if end.traceback:
                self._store.write_traceback(pack.id, end.traceback)
            self._deaths[pack.id] += 1
            if (times := self._deaths[pack.id]) >= _MOST_DEATHS:
                self._fail(pack, f"What trained it died {times} times, the last time because {reason}.")
                self._go_on_searching(pack)
            else:
                self._callback.on_message(f"{pack.id}: {reason.removesuffix('.')}. It goes on elsewhere.", "warning")
                self._queue.insert(0, pack)

    def _go_on_searching(self, pack: Pack) -> None:
        """After a pack of a search broke, and its trials failed, let others train in a new one, a few times."""
        search = self._search_of(pack)
        if search is None or not search.has_work(pack):
            return
        if pack.id.count(".again") + 1 < _MOST_DEATHS:
            again = replace(pack, id=f"{pack.id}.again", runs=())
            self._replan(pack.id, [_closed(search, pack), again])
            self._queue.insert(0, again)

    def _replan(self, pack_id: str, packs: Sequence[Pack]) -> None:
        """Put other packs in the place of one, and keep the plan if it is another now."""
        index = next(index for index, each in enumerate(self._packs) if each.id == pack_id)
        if self._packs[index : index + 1] != [*packs]:
            self._packs[index : index + 1] = packs
            self._store.write_plan(self._packs)

    def _search_of(self, pack: Pack) -> Scheduler | None:
        """The search whose trials join and leave a pack; None where the pack's runs are known beforehand."""
        return None if pack.room is None else self._search

    def _fail(self, pack: Pack, reason: str) -> None:
        """Record the runs of a pack that have no record yet as failed."""
        started = datetime.now(UTC)
        for run in pack.runs if self._search is None else self._search.assigned(pack.id):
            if run.id not in self._ended:
                record = run_record(
                    self._inputs.works[pack.task],
                    pack,
                    Outcome(run, state=RunState.FAILED, failure=reason),
                    pack_size=pack.size,
                    revision=self._inputs.backbones.revision,
                    device=torch.device("cpu"),
                    started=started,
                )
                self._callback.on_run_end(pack.id, record)

    def _split_after_kill(self, pack: Pack) -> bool:
        """Split a pack if the system killed the process that trained it because memory ran out."""
        # The count of such kills must have risen since the pack was started, on the same machine and in the same boot.
        kills = hardware.oom_kills()
        before = self._store.note_start(pack.id, kills)
        if before is None or before == kills or str(before).split()[0] != str(kills).split()[0]:
            return False
        return self._split(pack, "The system killed the process that trained it, because memory ran out")

    def _split(self, pack: Pack, reason: str) -> bool:
        """Replace a pack by smaller ones, if there are any."""
        shared = self._inputs.works[pack.task].study.training
        batch_size = max([(run.training or shared).batch_size for run in pack.runs], default=shared.batch_size)
        smaller = smaller_packs(pack, self._ended, batch_size)
        if not smaller:
            return False
        parts = _in_words(pack, smaller)
        self._callback.on_message(f"{pack.id}: {reason.removesuffix('.')}. It is tried again in {parts}.", "warning")
        to_train = [each for each in smaller if any(run.id not in self._ended for run in each.runs)]
        if self._search is not None:
            self._search.move(pack.id, smaller[0].id)
        if (search := self._search_of(pack)) is not None:
            to_train = [*smaller]
            smaller = (_closed(search, pack), *smaller)
        else:
            self._hand_checkpoint_on(pack, to_train)
        self._replan(pack.id, smaller)
        self._store.remove_pack(pack.id)
        self._queue[:0] = to_train
        return True

    def _hand_checkpoint_on(self, pack: Pack, parts: Sequence[Pack]) -> None:
        """Give the packs that a pack was cut into what its newest checkpoint holds of their runs."""
        checkpoints = Checkpoints(self._store.pack_dir(pack.id), pack.runs, None, {})
        found = checkpoints.newest(lambda text: self._callback.on_message(text, "warning"))
        if found is None:
            return
        checkpoint, facts = found
        held = {each.outcome.run.id for each in checkpoint.runs}
        for part in parts:
            runs = [run for run in part.runs if run.id in held]
            waits = part.room is not None  # some of its runs may have no checkpoint yet
            if runs and (waits or all(run.id in held or run.id in self._ended for run in part.runs)):
                kept = Checkpoints(self._store.pack_dir(part.id), runs, None, facts)
                kept.keep(Checkpoint.gather(runs, [checkpoint]))


def _in_words(pack: Pack, parts: Sequence[Pack]) -> str:
    """What a pack was cut into, for a message."""
    first = parts[0]
    if len(parts) > 1:
        return f"{counted(len(parts), 'pack')} of {' and '.join(counted(len(each.runs), 'run') for each in parts)}"
    if first.micro_batch != pack.micro_batch:
        return f"parts of {counted(first.micro_batch or 0, 'row')} of the batch"
    return f"a pack with room for {counted(first.size, 'run')}"


class _TrialCallback(ForwardingCallback):
    """Adds to records what the runs are in the search."""

    def __init__(self, search: Scheduler, callback: Callback) -> None:
        self._search, self._callback = search, callback

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        given = dict(arguments)
        if hook == "on_run_end":
            given["record"] = self._search.with_trial(given["record"])
        getattr(self._callback, hook)(**given)


def _closed(search: Scheduler, pack: Pack) -> Pack:
    """A pack of a search that trains no more, with the trials that ended in it: the plan keeps them."""
    return replace(pack, runs=search.assigned(pack.id), room=None)
