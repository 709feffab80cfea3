"""The driver: hands packs to an executor, writes the records, and decides what becomes of a pack that broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from manytune.config.plan import Pack, smaller_packs
from manytune.executors.base import ExecutorSpec
from manytune.executors.job import run_record
from manytune.executors.pack_inputs import PackInputs
from manytune.storage.directory import Store
from manytune.storage.record import RunRecord, RunState
from manytune.training.callbacks import Callback, CallbackList, PackEnd
from manytune.training.checkpoints import Checkpoints
from manytune.training.outcome import Checkpoint, Outcome
from manytune.utils import hardware
from manytune.utils.errors import ManytuneError
from manytune.utils.signals import stop_requests
from manytune.utils.text import counted

_MOST_DEATHS = 3  # times that the process which trains a pack may die before the pack is given up


class Driver(Callback):
    """Trains the packs of a study, several at once where the executor can; tries again what can be tried again."""

    def __init__(self, inputs: PackInputs, packs: Sequence[Pack], ended: set[str], callback: Callback) -> None:
        """`packs` are all of the study; `ended`, the ids of runs that have a record, grows with every run that ends."""
        self._inputs, self._store = inputs, Store(inputs.root)
        self._packs = list(packs)
        self._ended = ended
        self._callback = CallbackList([self, callback])
        self._queue: list[Pack] = []
        self._deaths: Counter[str] = Counter()

    def train(self, executor: ExecutorSpec, packs: Sequence[Pack]) -> None:
        """Train packs in their order, until none is left.

        Raises Interrupted where the user asked to stop, after all packs stopped where they can go on, and
        ManytuneError where the study cannot go on.
        """
        self._queue = list(packs)
        training: dict[str, Pack] = {}
        with stop_requests() as stop, executor.open(self._inputs, self._callback) as opened:
            while self._queue or training:
                if not training:
                    stop.obey()
                while self._queue and len(training) < opened.capacity and stop.number is None:
                    pack = self._queue.pop(0)
                    self._inputs.check()
                    if not self._split_after_kill(pack):
                        training[pack.id] = pack
                        opened.submit(pack, self._ended)
                for end in opened.wait(stop) if training else ():
                    pack = training.pop(end.pack_id)
                    self._settle(pack, end)
                    # Something else than the user has stopped it, such as a node's shutdown: it goes on elsewhere.
                    if end.how == "stopped" and stop.number is None:
                        self._queue.insert(0, pack)
            stop.obey()

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        """Stop soon where another process has taken the directory over."""
        if self._inputs.held is not None and self._inputs.held.lost.is_set():
            self._inputs.check()

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        """Write the record: by it, and by nothing else, the run has ended."""
        self._inputs.check()
        self._store.write_record(record)
        self._ended.add(record.run_id)

    def _settle(self, pack: Pack, end: PackEnd) -> None:
        """React to the end of a pack's time with the executor: done, or to be failed, split or trained again."""
        self._inputs.check()
        if end.how == "done":
            self._store.remove_pack(pack.id)
        self._callback.on_pack_end(end)
        reason = end.reason or ""
        if end.how == "refused":
            raise ManytuneError(reason)
        if end.how == "broken" and not (end.out_of_memory and self._split(pack, reason)):
            self._store.write_traceback(pack.id, end.traceback or reason)
            self._fail(pack, reason)
        elif end.how == "lost":
            self._deaths[pack.id] += 1
            if (times := self._deaths[pack.id]) >= _MOST_DEATHS:
                self._fail(pack, f"What trained it died {times} times, the last time because {reason}.")
            else:
                self._callback.on_message(f"{pack.id}: {reason.removesuffix('.')}. It goes on elsewhere.", "warning")
                self._queue.insert(0, pack)

    def _fail(self, pack: Pack, reason: str) -> None:
        """Record the runs of a pack that have no record yet as failed."""
        started = datetime.now(UTC)
        for run in pack.runs:
            if run.id not in self._ended:
                record = run_record(
                    self._inputs.works[pack.task],
                    pack,
                    Outcome(run, state=RunState.FAILED, failure=reason),
                    pack_size=len(pack.runs),
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
        smaller = smaller_packs(pack, self._ended, self._inputs.works[pack.task].study.training.batch_size)
        if not smaller:
            return False
        parts = (
            f"{counted(len(smaller), 'pack')} of {' and '.join(counted(len(each.runs), 'run') for each in smaller)}"
            if len(smaller) > 1
            else f"parts of {counted(smaller[0].micro_batch or 0, 'row')} of the batch"
        )
        self._callback.on_message(f"{pack.id}: {reason.removesuffix('.')}. It is tried again in {parts}.", "warning")
        to_train = [each for each in smaller if any(run.id not in self._ended for run in each.runs)]
        self._hand_checkpoint_on(pack, to_train)
        index = next(index for index, each in enumerate(self._packs) if each.id == pack.id)
        self._packs[index : index + 1] = smaller
        self._store.write_plan(self._packs)
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
            if all(run.id in held or run.id in self._ended for run in part.runs):
                kept = Checkpoints(self._store.pack_dir(part.id), runs, None, facts)
                kept.keep(Checkpoint.gather(runs, [checkpoint]))
