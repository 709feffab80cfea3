"""A user's callback, which keeps all that it is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from manytune.config.plan import Pack
from manytune.storage.record import HistoryRow, RunRecord
from manytune.training.callbacks import Callback, Level, PackEnd

__all__ = ["CallbackLog"]


class CallbackLog(Callback):
    """Every call, kept; in an order that is checked."""

    def __init__(self) -> None:
        self.open = 0
        self.begun: list[tuple[list[str], list[str]]] = []
        self.training: dict[str, int] = {}
        self.most = 0
        self.packs: list[tuple[str, str, str, tuple[str, ...], int, int]] = []
        self.steps: list[tuple[int, int]] = []
        self.evaluations: list[tuple[str, int]] = []
        self.rows: dict[str, list[HistoryRow]] = {}
        self.bests: list[tuple[str, float] | None] = []
        self.checkpoints: list[tuple[str, int]] = []
        self.records: dict[str, RunRecord] = {}
        self.ends: list[PackEnd] = []
        self.messages: list[str] = []
        self.baselines: list[str] = []

    @property
    def started(self) -> list[str]:
        return [pack[0] for pack in self.packs]

    @property
    def ended(self) -> dict[str, str]:
        return {run_id: str(record.state) for run_id, record in self.records.items()}

    def on_study_begin(self, packs: Sequence[Pack], ended: Mapping[str, RunRecord]) -> None:
        self.open += 1
        self.begun.append(([pack.id for pack in packs], list(ended)))

    def on_train_begin(
        self, pack_id: str, task: str, metric: str, runs: Sequence[str], total_steps: int, first_step: int = 0
    ) -> None:
        assert pack_id not in self.training
        self.training[pack_id] = first_step
        self.packs.append((pack_id, task, metric, tuple(runs), total_steps, first_step))
        self.most = max(self.most, len(self.training))

    def on_step_end(self, pack_id: str, step: int, losses: Sequence[float]) -> None:
        assert step > self.training[pack_id]
        self.training[pack_id] = step
        self.steps.append((step, len(losses)))

    def on_evaluate(
        self, pack_id: str, step: int, rows: Mapping[str, HistoryRow], best: tuple[str, float] | None
    ) -> None:
        assert step >= self.training[pack_id]
        self.evaluations.append((pack_id, step))
        for run_id, row in rows.items():
            self.rows.setdefault(run_id, []).append(row)
        self.bests.append(best)

    def on_checkpoint(self, pack_id: str, step: int) -> None:
        assert step >= self.training[pack_id]
        self.checkpoints.append((pack_id, step))

    def on_run_end(self, pack_id: str, record: RunRecord) -> None:
        assert record.run_id not in self.records
        self.records[record.run_id] = record

    def on_pack_end(self, end: PackEnd) -> None:
        self.training.pop(end.pack_id, None)
        self.ends.append(end)

    def on_message(self, text: str, level: Level = "info") -> None:
        (self.baselines if "without a pretrained model" in text else self.messages).append(text)

    def on_study_end(self) -> None:
        self.open -= 1
        self.training.clear()
