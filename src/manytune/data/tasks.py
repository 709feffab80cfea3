"""The task table: columns, labels, splits, metrics, and the sizes that the data must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from manytune.data.text_lines import Dialect
from manytune.utils.errors import StudyError, choices

if TYPE_CHECKING:
    from manytune.data.task_types import Scale, TaskType

SPLITS = ("train", "dev")
"""What every task has."""

UNLABELLED = ("test", "test_mismatched", "diagnostic")
"""Splits of GLUE's tasks whose labels only its server knows."""

_NONE: Mapping[str, Any] = MappingProxyType({})
_PLAIN_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"train": ("train.tsv",), "dev": ("dev.tsv", "validation.tsv"), "test": ("test.tsv",)}
)


@dataclass(frozen=True)
class GlueFiles:
    """A task's files in a folder in GLUE's own layout, and their quirks; they are in a folder named like the title."""

    text_columns: tuple[str, ...]
    """The columns of the sentences, by the names in these files."""
    label_column: str = "label"
    """The column of the label, likewise."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _PLAIN_FILES)
    """Split → the names that its file may have; the first one that is there is read."""
    no_header: tuple[str, ...] = ()
    """The columns of train and dev where these have no header line; a test file has one."""
    broken_lines: bool = False
    """Whether lines with too few fields are known to be there, and are left out, rather than refused."""


@dataclass(frozen=True)
class OwnData:
    """Where a user's own task comes from."""

    train: str
    """A file of rows, or the name of a split on the hub."""
    dev: str | float
    """Likewise; or the share of the training rows that is set aside."""
    hub: str | None = None
    """A dataset on the Hugging Face hub (with @revision); None for files."""
    config: str | None = None
    """The dataset's configuration."""
    scaled: bool = False
    """Whether targets are brought to mean 0 and standard deviation 1 for the model."""
    dialect: Dialect = field(default_factory=Dialect)
    """How its files hold their rows."""


@dataclass(frozen=True)
class Task:
    """One sentence, or a pair of them, in; what its type of task predicts out."""

    name: str
    """The name that a study uses."""
    title: str
    """What tables and figures call it."""
    kind: str
    """The name of its type: what studies, records and artifacts hold; `type` is the object."""
    text_columns: tuple[str, ...]
    """The one or two columns that hold the sentences."""
    label_column: str
    """The column of the label."""
    labels: tuple[str, ...]
    """The classes' names, the index being the label; empty without classes, and where only the data knows them."""
    metrics: tuple[str, ...]
    """Names out of `metrics.METRICS`; the first one selects snapshots and ranks runs."""
    target_range: tuple[float, float] | None = None
    """The lowest and the highest target; None with classes, and where only the data knows."""
    sizes: Mapping[str, int] = field(default_factory=lambda: _NONE)
    """Split to the number of rows that it must have; empty where none is known."""
    hub: tuple[str, str] | None = None
    """Dataset and configuration on the Hugging Face hub; None for built-in and own tasks."""
    hub_splits: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """Our split's name to the hub's; where it is in another configuration, `configuration/split`."""
    files: GlueFiles | None = None
    """Where it lies in a GLUE folder; None for built-in and own tasks."""
    own: OwnData | None = None
    """Where it comes from, for a user's own task."""
    scale: Scale | None = None
    """How targets look to the model; None: as they are."""
    dev_parts: Mapping[str, tuple[int, int]] = field(default_factory=lambda: _NONE)
    """Name of a part of the dev split → its first row and the row after its last; empty where it has no parts."""
    also_scored: Mapping[str, str] = field(default_factory=lambda: _NONE)
    """Another labelled split, which selects nothing → the metric of the best snapshot on it, an accuracy."""
    language: str | None = None
    """The texts' language, as an ISO 639 code; None if it is not known."""

    @property
    def type(self) -> TaskType:
        """What depends on the kind of label; a StudyError if no type of that name is registered."""
        from manytune.data.task_types import get_task_type  # numpy, which reading a study does without

        return get_task_type(self.kind)

    @property
    def primary_metric(self) -> str:
        """The metric that selects snapshots and ranks runs."""
        return self.metrics[0]

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """Every metric that a record has."""
        return (*self.metrics, *self.also_scored.values())

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold a row's prediction and the probability of each class."""
        return ("prediction", *(f"p_{name}" for name in self.labels))

    def is_whole(self, texts: Sequence[str]) -> bool:
        """Whether a row has the texts that it needs: all of them; of one's own pairs, and QQP's, one will do."""
        lax = self.own is not None or (self.files is not None and self.files.broken_lines)
        return any(texts) if lax else all(texts)

    def inside(self, targets: Any) -> Any:
        """Targets (an array), in their own unit, as a head learns them."""
        return targets if self.scale is None else (targets - self.scale.center) / self.scale.spread

    def outside(self, outputs: Any) -> Any:
        """What a head puts out (an array), in the targets' own unit."""
        return outputs if self.scale is None else outputs * self.scale.spread + self.scale.center

    @property
    def num_outputs(self) -> int:
        """How many logits the head has; a ValueError where that is not known before the data is read."""
        return self.type.num_outputs(self)


_HUB_SPLITS = MappingProxyType({"train": "train", "dev": "validation", "test": "test"})

_ACCEPTABILITY: dict[str, Any] = {
    "labels": ("unacceptable", "acceptable"),
    "metrics": ("matthews_correlation", "accuracy"),
}
_SIMILARITY: dict[str, Any] = {
    "kind": "regression",
    "label_column": "score",
    "labels": (),
    "metrics": ("pearson", "spearman"),
    "target_range": (0.0, 5.0),
}
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")


def _task(name: str, title: str, text_columns: tuple[str, ...], **facts: Any) -> Task:
    """A task in English; `facts` are added to what most tasks share, or replace it."""
    usual: dict[str, Any] = {
        "kind": "classification",
        "label_column": "label",
        "metrics": ("accuracy",),
        "language": "en",
    }
    read_only = {key: MappingProxyType(fact) if isinstance(fact, dict) else fact for key, fact in facts.items()}
    return Task(name, title, text_columns=text_columns, **{**usual, **read_only})


def _glue(name: str, title: str, text_columns: tuple[str, ...], **facts: Any) -> Task:
    """A task of GLUE, which is on the hub under its name."""
    usual: dict[str, Any] = {"hub": ("nyu-mll/glue", name), "hub_splits": _HUB_SPLITS, "files": GlueFiles(text_columns)}
    return _task(name, title, text_columns, **{**usual, **facts})


def _sizes(train: int, dev: int, test: int, **more: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test, **more}


_GLUE = (
    # Warstadt et al. 2019, https://arxiv.org/abs/1805.12471
    _glue(
        "cola",
        "CoLA",
        ("sentence",),
        **_ACCEPTABILITY,
        sizes=_sizes(8551, 1043, 1063),
        files=GlueFiles(("sentence",), no_header=("source", "label", "mark", "sentence")),
        # Sentences of the publications that train has too, then of others: the paper's section 4.
        dev_parts={"in-domain": (0, 527), "out-of-domain": (527, 1043)},
    ),
    # Socher et al. 2013, https://aclanthology.org/D13-1170
    _glue("sst2", "SST-2", ("sentence",), labels=("negative", "positive"), sizes=_sizes(67349, 872, 1821)),
    # Dolan and Brockett 2005, https://aclanthology.org/I05-5002
    _glue(
        "mrpc",
        "MRPC",
        _PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        sizes=_sizes(3668, 408, 1725),
        # GLUE's script cuts Microsoft's files (msr_…) into its own three; without it, those are here.
        files=GlueFiles(
            ("#1 String", "#2 String"),
            "Quality",
            names={
                "train": ("train.tsv", "msr_paraphrase_train.txt"),
                "dev": ("dev.tsv", "validation.tsv", "msr_paraphrase_train.txt"),
                "test": ("test.tsv", "msr_paraphrase_test.txt"),
            },
        ),
    ),
    # Iyer et al. 2017, https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs
    _glue(
        "qqp",
        "QQP",
        _QUESTIONS,
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        sizes=_sizes(363846, 40430, 390965),
        files=GlueFiles(_QUESTIONS, "is_duplicate", broken_lines=True),
    ),
    # Cer et al. 2017, https://arxiv.org/abs/1708.00055
    _glue("stsb", "STS-B", _PAIR, **_SIMILARITY, sizes=_sizes(5749, 1500, 1379), files=GlueFiles(_PAIR, "score")),
    # Williams et al. 2018, https://arxiv.org/abs/1704.05426
    _glue(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        sizes=_sizes(392702, 9815, 9796, dev_mismatched=9832, test_mismatched=9847, diagnostic=1104),
        hub_splits={
            "train": "train",
            "dev": "validation_matched",
            "dev_mismatched": "validation_mismatched",
            "test": "test_matched",
            "test_mismatched": "test_mismatched",
            "diagnostic": "ax/test",
        },
        files=GlueFiles(
            _PAIR,
            "gold_label",
            names={
                "train": ("train.tsv",),
                "dev": ("dev_matched.tsv",),
                "dev_mismatched": ("dev_mismatched.tsv",),
                "test": ("test_matched.tsv",),
                "test_mismatched": ("test_mismatched.tsv",),
                "diagnostic": ("../diagnostic/diagnostic.tsv", "diagnostic.tsv"),
            },
        ),
        also_scored={"dev_mismatched": "accuracy_mismatched"},
    ),
    # Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, recast by Wang et al. 2018
    _glue("qnli", "QNLI", ("question", "sentence"), labels=_ENTAILMENT, sizes=_sizes(104743, 5463, 5463)),
    # Dagan et al. 2006 and its successors, as put together by Wang et al. 2018, https://arxiv.org/abs/1804.07461
    _glue("rte", "RTE", _PAIR, labels=_ENTAILMENT, sizes=_sizes(2490, 277, 3000)),
    # Levesque et al. 2012, recast by Wang et al. 2018
    _glue("wnli", "WNLI", _PAIR, labels=("not_entailment", "entailment"), sizes=_sizes(635, 71, 146)),
)

GLUE: Mapping[str, Task] = MappingProxyType({task.name: task for task in _GLUE})
"""The nine tasks of GLUE (Wang et al. 2018), in the order of its table."""

_BUILTIN = (
    _task("builtin-acceptability", "Built-in acceptability", ("sentence",), **_ACCEPTABILITY),
    _task("builtin-similarity", "Built-in similarity", _PAIR, **_SIMILARITY),
)

TASKS: Mapping[str, Task] = MappingProxyType({**GLUE, **{task.name: task for task in _BUILTIN}})
"""Every task that needs no more than its name."""


def no_task(name: str) -> str:
    """Say that there is no task called so, and which there are."""
    if name.lower() in ("ax", "diagnostic"):
        return (
            f"{name!r}, GLUE's diagnostic set, has no rows to train on and no public labels. Train mnli: "
            "`manytune submit` predicts the diagnostic rows with it."
        )
    return choices(name, TASKS)


def get_task(name: str) -> Task:
    """The task called `name`; a StudyError, which lists the tasks, if there is none."""
    if name not in TASKS:
        raise StudyError(f"tasks: {no_task(name)}")
    return TASKS[name]
