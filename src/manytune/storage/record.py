"""What is known of a run once it has ended: its record and its history, a versioned schema.

Unknown is None (null in JSON, an empty cell in CSV), never a made-up number. NaN and infinity are unknown
too: JSON has no word for them. Values of numpy and torch become plain numbers when a record is made.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from manytune.utils.errors import StoreError
from manytune.utils.text import counted, parse_json

SCHEMA_VERSION = 3
"""Raised by every field that is added, renamed or dropped."""

_FEW_STEPS = 100
"""Optimizer steps below which a run that collapsed is first of all a short one."""

_ROSE = 1.5
"""Last training loss / the lowest one, or that of guessing: above this ratio it did not rise by chance."""

_PLAIN = "plain"
"""Validation context: all values are plain already, and need no second look (thousands of records load fast)."""


def plain(value: Any) -> Any:
    """`value` with numpy's and torch's numbers as Python's, and whatever is not finite as None."""
    if isinstance(value, float):  # numpy's float64 is one too
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):  # most values: a study of thousands of runs reads fast
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    # By name, because importing either library would make every start slower.
    if type(value).__module__.partition(".")[0] in {"numpy", "torch"}:
        return plain(value.tolist())
    return value


Whole = Annotated[int, Field(gt=-(10**100), lt=10**100)]
"""A whole number that a float can hold, so that it can be shown and drawn."""


class _FrozenModel(BaseModel):
    """Frozen facts; a key that the schema does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any, info: ValidationInfo) -> Any:
        return values if info.context is _PLAIN else plain(values)


LOSS_FAILURE = "The training loss became"
"""How `failure` begins where a run's loss was no number."""

SCORE_FAILURE = "No evaluation gave a score that is a number."
"""The `failure` of a run whose scores were no numbers."""


class RunState(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    """It trained to its end, or to its early stop."""
    FAILED = "failed"
    """It could not go on (its loss was no number, memory ran out, …); the record's `failure` says why."""
    COLLAPSED = "collapsed"
    """Its best snapshot predicts one constant: the same class, or the same number, for every dev row."""
    PRUNED = "pruned"
    """A search ended it early because others were better."""


Scores = dict[str, float | None]
"""Metric name → score, in the task's order of metrics, the primary one first; None where there is none."""


class Parameters(_FrozenModel):
    """How many numbers the run's model has; `trainable` = `backbone` + `bias` + `adapter` + `head`."""

    total: Whole | None = None
    """All parameters of the model, adapters included."""
    trainable: Whole | None = None
    """Parameters that trained."""
    backbone: Whole | None = None
    """Trained parameters of the backbone other than biases that trained by themselves (BitFit)."""
    bias: Whole | None = None
    """Trained biases of the backbone, where only its biases train."""
    adapter: Whole | None = None
    """Trained parameters that were added to the backbone, such as the factors of a low-rank update."""
    head: Whole | None = None
    """Trained parameters of the head."""


class Cost(_FrozenModel):
    """What the run took; where it trained in a pack, its share of the pack's time."""

    train_seconds: float | None = None
    """Seconds of training: the pack's, divided by the runs that were in it."""
    eval_seconds: float | None = None
    """Seconds of evaluation, shared in the same way."""
    peak_memory_bytes: Whole | None = None
    """Most memory held at once while the whole pack trained: of the process (CPU) or on the GPU."""
    samples_per_second: float | None = None
    """Training samples of this run a second of `train_seconds`."""
    snapshot_bytes: Whole | None = None
    """Size of the best snapshot on disk."""
    pack_size: Whole | None = None
    """Runs that started in the pack."""

    @property
    def seconds(self) -> float:
        """Of training and evaluation; what is not known counts as none."""
        return (self.train_seconds or 0.0) + (self.eval_seconds or 0.0)


class Provenance(_FrozenModel):
    """Where the result comes from: enough to repeat it."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Package → version, Python among them."""
    model_revision: str | None = None
    """Commit or digest of the pretrained weights."""
    data_fingerprint: str | None = None
    """Digest over the texts and labels that the run trained on and was scored on."""
    git_commit: str | None = None
    """Commit of the source tree that ran, if it was one."""
    hardware: dict[str, JsonValue] = Field(default_factory=dict)
    """What it ran on: processor, cores, memory, accelerator."""
    started: AwareDatetime | None = None
    """When the pack started (with time zone)."""
    finished: AwareDatetime | None = None
    """When the run ended (with time zone)."""


class Rung(_FrozenModel):
    """A trial at one of the steps at which a search compares trials."""

    step: Whole
    """Optimizer steps that it had taken."""
    score: float | None
    """The primary metric then, on the rows that select; None where it was no number."""
    kept: bool
    """Whether it went on."""


class Trial(_FrozenModel):
    """What a run is in a search: the place that it has there, and what was decided of it."""

    space: str
    """The search space that its settings are drawn from, such as "lora"."""
    number: Whole
    """From 0, in the order in which the trials of the space began."""
    settings: dict[str, JsonValue]
    """The searched settings with the values it has: `learning_rate`, `rank`, `training.epochs`, …"""
    unpruned: bool
    """Whether it was chosen beforehand to train to its end whatever it scores."""
    rungs: list[Rung] = Field(default_factory=list)
    """In the order of their steps."""
    total_steps: Whole
    """Optimizer steps that it takes if it is not pruned."""
    pack: str
    """Id of the pack that it trained in."""
    joined: Whole
    """Steps of the pack when it joined it."""
    left: Whole
    """Steps of the pack when it left it."""
    began: float
    """Seconds of the search's work when it joined; times in which the search was stopped do not count."""
    ended: float
    """Seconds of the search's work when it left."""


class RunRecord(_FrozenModel):
    """The facts of one ended run; `record.json` holds exactly this."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    """Version of this schema."""
    run_id: str
    """The run's id, its directory's name."""
    study: str
    study_hash: str | None = None
    """Hash of the effective study."""
    task: str
    model: str
    """Name of the backbone, as the study gave it."""
    method: str
    label: str
    """What tells the method from the study's others: "lora r=8, lr 4e-4"; the same for all seeds."""
    hyperparameters: dict[str, JsonValue] = Field(default_factory=dict)
    """The method's hyper-parameters and the training settings, as the run used them."""
    template: str | None = None
    """How texts were laid out for the tokenizer: native or spaced."""
    selection: str | None = None
    """The rows that selected the best snapshot, or compare a trial with others: dev or train-split; or none. Trials of
    earlier versions say dev, whatever their search says."""
    seed: Whole
    """The run's seed."""
    state: RunState
    """How the run ended."""
    failure: str | None = None
    """Why it failed: what happened and at which step; set exactly when `state` is failed."""
    notes: list[str] = Field(default_factory=list)
    """What a reader should know: advice for a collapsed run, truncated rows, …"""
    primary_metric: str
    """Name of the metric that selects."""
    best_score: float | None = None
    """The primary metric of the best snapshot, scored once more at the end, alone and in fp32."""
    best_step: Whole | None = None
    """Optimizer step of the best snapshot."""
    last_score: float | None = None
    """The primary metric of the run's last tensors, scored like `best_score`; null where a share of train selects."""
    last_collapsed: bool = False
    """Whether the predictions of the last evaluation were one constant."""
    scores: Scores = Field(default_factory=dict)
    """All metrics of the best snapshot."""
    last_scores: Scores = Field(default_factory=dict)
    """All metrics of the run's last tensors; empty where `last_score` is null."""
    files: dict[str, str] = Field(default_factory=dict)
    """Path in the run's directory → SHA-256, of its snapshot and predictions; not known before version 2."""
    learned: str | None = None
    """SHA-256 of a user's own task's classes, or of its targets' scale; None for other tasks, and before version 2."""
    epochs_done: float | None = None
    """Passes over the training data."""
    steps: Whole | None = None
    """Optimizer steps taken."""
    parameters: Parameters = Parameters()
    """Parameter counts."""
    cost: Cost = Cost()
    """Time and memory."""
    provenance: Provenance = Provenance()
    """Where the result comes from."""
    trial: Trial | None = None
    """What the run is in a search; its scores are then those of its last evaluation, on the rows that select, as its
    pack saw them. None outside a search, and before version 3."""

    @property
    def did_not_train(self) -> bool:
        """Whether it collapsed, or its loss or scores were no numbers.

        A run that failed for another reason, such as memory that ran out, says nothing of its method.
        """
        failure = self.failure or ""
        return self.state is RunState.COLLAPSED or failure.startswith((LOSS_FAILURE, SCORE_FAILURE))

    @model_validator(mode="after")
    def _failure_has_a_reason(self) -> Self:
        if (self.state is RunState.FAILED) != bool(self.failure):
            raise ValueError("`failure` must say why a failed run failed, and be null in any other state")
        return self

    def to_json(self) -> str:
        """The text of `record.json`, indented, ending in a newline."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "record") -> Self:
        """Read what `to_json` wrote; a StoreError about `where` if it is no record, or of a newer manytune."""
        try:
            values = parse_json(text)
            version = values["schema_version"] if isinstance(values, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise StoreError(
                    f"{where} has schema version {version}; this manytune reads versions up to "
                    f"{SCHEMA_VERSION}. Use the newer manytune that wrote it."
                )
            return cls.model_validate(plain(values), context=_PLAIN)
        except (ValueError, KeyError) as error:  # JSON's and pydantic's errors are ValueErrors
            raise StoreError(
                f"{where} is not a record of a run: {_first_problem(error)}. "
                "Delete the run's directory to have the run trained again."
            ) from error


def collapse_note(
    title: str, score: float | None, steps: int, history: Sequence[HistoryRow], classes: int | None = None
) -> str:
    """The first note of a run that collapsed.

    `score` is the best snapshot's, by the metric called `title`; `steps` are the optimizer's; `classes` is how many
    there are, None for a regression.
    """
    scored = "" if score is None else f" ({title} {score:.3f})"
    finding = f"It predicts one constant for all dev rows{scored}, whatever their text."
    losses = [row.train_loss for row in history if row.train_loss is not None]
    guessing = [] if classes is None else [math.log(classes)]  # cross-entropy where all classes are as likely
    if losses and losses[-1] > _ROSE * min(*losses, *guessing, losses[-1]):
        return (
            f"{finding} Its training loss rose to {losses[-1]:.3g}, from {min(losses + guessing):.3g}. "
            "Use a lower learning rate or a longer warm-up."
        )
    if steps < _FEW_STEPS:
        return f"{finding} It took only {counted(steps, 'step')}: train longer."
    cure = "Use a lower learning rate or a longer warm-up; if the rate is low already, a higher one or more steps."
    return f"{finding} {cure}"


class HistoryRow(_FrozenModel):
    """What one evaluation saw."""

    step: Whole
    """Optimizer steps taken."""
    epoch: float | None = None
    """Passes over the training data, with its fraction."""
    samples_seen: Whole | None = None
    """Training samples taken, repeats counted."""
    train_loss: float | None = None
    """Mean training loss since the evaluation before."""
    learning_rate: float | None = None
    """The learning rate of the last step."""
    eval_loss: float | None = None
    """Mean loss on the evaluated split."""
    metrics: Scores = Field(default_factory=dict)
    """Metric name → score."""
    seconds: float | None = None
    """Seconds since the pack started."""


_BEFORE_METRICS = ("step", "epoch", "samples_seen", "train_loss", "learning_rate", "eval_loss")
_AFTER_METRICS = ("seconds",)


def history_to_csv(rows: Sequence[HistoryRow]) -> str:
    """The text of `history.csv`: a header, then one line a row; each metric has the column of its name."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    # Floats are written by repr, as csv does it: they read back bit for bit.
    table = csv.DictWriter(text, [*_BEFORE_METRICS, *metrics, *_AFTER_METRICS], lineterminator="\n")
    table.writeheader()
    table.writerows(row.model_dump(exclude={"metrics"}) | row.metrics for row in rows)
    return text.getvalue()


def history_from_csv(text: str, where: str = "history") -> tuple[HistoryRow, ...]:
    """Read what `history_to_csv` wrote; a StoreError, which calls the text `where`, if it is something else."""
    try:
        header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    except csv.Error as error:
        raise StoreError(f"{where} cannot be read: {error}.") from error
    start, stop = len(_BEFORE_METRICS), len(header) - len(_AFTER_METRICS)
    if stop < start or (*header[:start], *header[stop:]) != (*_BEFORE_METRICS, *_AFTER_METRICS):
        raise StoreError(
            f"{where} has the columns {', '.join(header) or '(none)'}; they must be "
            f"{', '.join(_BEFORE_METRICS)}, one for each metric, {', '.join(_AFTER_METRICS)}."
        )
    rows = []
    try:
        for line in lines:
            cells: dict[str, Any] = {name: cell or None for name, cell in zip(header, line, strict=True)}
            scores = {name: cells.pop(name) for name in header[start:stop]}
            rows.append(HistoryRow.model_validate({**cells, "metrics": scores}))
    except ValueError as error:
        raise StoreError(f"{where} cannot be read: {_first_problem(error)}.") from error
    return tuple(rows)


def _first_problem(error: Exception) -> str:
    """One line for the first thing that is wrong: the field, what is the matter, the value."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        return f"{field}: {first['msg']} (received {str(first['input'])[:80]!r})"
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    return str(error)
