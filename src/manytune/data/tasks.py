"""The task table: columns, labels, splits, metrics, and the sizes that the data must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from manytune.utils.errors import StudyError, choices

__all__ = ["GLUE", "SPLITS", "TASKS", "UNLABELLED", "GlueFiles", "OwnData", "Scale", "Task", "get_task", "no_task"]

SPLITS = ("train", "dev")
"""What every task has."""

UNLABELLED = ("test", "test_mismatched", "diagnostic")
"""Splits of GLUE's tasks whose labels only its server knows."""

_EMPTY: Mapping[str, str] = MappingProxyType({})
_UNKNOWN_SIZES: Mapping[str, int] = MappingProxyType({})
_PLAIN_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"train": ("train.tsv",), "dev": ("dev.tsv", "validation.tsv"), "test": ("test.tsv",)}
)


@dataclass(frozen=True)
class GlueFiles:
    """Where a task lies inside a folder in GLUE's own layout, and its files' quirks."""

    folder: str
    """The task's folder; capitals do not matter."""
    text_columns: tuple[str, ...]
    """The columns of the sentences, by the files' own names."""
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
    """Whether targets are brought to mean 0 and standard deviation 1 inside."""
    quoting: str | None = None
    """Whether cells of a CSV or TSV file may stand in double quotes, as for `rows.read_placed`."""


@dataclass(frozen=True)
class Scale:
    """How the targets of a regression look inside: (target - center) / spread."""

    center: float
    """Mean of the training targets."""
    spread: float
    """Their standard deviation, above 0."""


@dataclass(frozen=True)
class Task:
    """One sentence, or a pair of them, in; one class or one number out."""

    name: str
    """The name that a study uses."""
    title: str
    """What tables and figures call it."""
    kind: Literal["classification", "regression"]
    """Single-label classification, or regression of one number."""
    text_columns: tuple[str, ...]
    """The one or two columns that hold the sentences."""
    label_column: str
    """The column of the label."""
    labels: tuple[str, ...]
    """The classes' names, the index being the label; empty for regression, and where only the data knows them."""
    metrics: tuple[str, ...]
    """Names out of `metrics.METRICS`; the first one selects snapshots and ranks runs."""
    target_range: tuple[float, float] | None = None
    """The lowest and the highest target of a regression; None for classification, and where only the data knows."""
    sizes: Mapping[str, int] = field(default_factory=lambda: _UNKNOWN_SIZES)
    """Split to the number of rows that it must have; empty where none is known."""
    hub: tuple[str, str] | None = None
    """Dataset and configuration on the Hugging Face hub; None for built-in and own tasks."""
    hub_splits: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """Our split's name to the hub's; where it is in another configuration, `configuration/split`."""
    files: GlueFiles | None = None
    """Where it lies in a GLUE folder; None for built-in and own tasks."""
    own: OwnData | None = None
    """Where it comes from, for a user's own task."""
    scale: Scale | None = None
    """How targets look inside; None: as they are."""
    dev_parts: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a part of the dev split → its first row and the row after its last; empty where it has no parts."""
    also_scored: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    """Another labelled split, which selects nothing → the metric of the best snapshot on it, an accuracy."""
    language: str | None = None
    """The texts' language, as an ISO 639 code; None if it is not known."""

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
        """Targets (an array) as a head learns them; classes are as they are."""
        return targets if self.scale is None else (targets - self.scale.center) / self.scale.spread

    def learned(self, labels: Any) -> Any:
        """Labels (an array) as a loss takes them: classes as they are, targets inside, in fp32."""
        return labels if self.kind == "classification" else self.inside(labels).astype("float32")

    def outside(self, outputs: Any) -> Any:
        """What a head puts out (an array), in the targets' own unit."""
        return outputs if self.scale is None else outputs * self.scale.spread + self.scale.center

    @property
    def num_outputs(self) -> int:
        """How many logits the head has: one a class, or 1 for regression.

        Raises:
            ValueError: The classes are not known before the data is read.
        """
        if self.kind == "regression":
            return 1
        if not self.labels:
            raise ValueError(f"the classes of {self.name} are not known before its data is read")
        return len(self.labels)


_HUB = "nyu-mll/glue"
_HUB_SPLITS = MappingProxyType({"train": "train", "dev": "validation", "test": "test"})

_ACCEPTABILITY = ("unacceptable", "acceptable")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
_F1 = ("f1", "accuracy")
_CORRELATIONS = ("pearson", "spearman")


def _sizes(train: int, dev: int, test: int, **more: int) -> Mapping[str, int]:
    return MappingProxyType({"train": train, "dev": dev, "test": test, **more})


def _glue(name: str, **facts: Any) -> Task:
    """A task of GLUE, which is in English and on the hub under its own name."""
    return Task(name=name, hub=(_HUB, name), language="en", **{"hub_splits": _HUB_SPLITS, **facts})


GLUE: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            # Warstadt et al. 2019, https://arxiv.org/abs/1805.12471
            _glue(
                name="cola",
                title="CoLA",
                kind="classification",
                text_columns=("sentence",),
                label_column="label",
                labels=_ACCEPTABILITY,
                metrics=("matthews_correlation", "accuracy"),
                sizes=_sizes(8551, 1043, 1063),
                files=GlueFiles("CoLA", ("sentence",), no_header=("source", "label", "mark", "sentence")),
                # Sentences of the publications that train has too, then of others: the paper's section 4.
                dev_parts=MappingProxyType({"in-domain": (0, 527), "out-of-domain": (527, 1043)}),
            ),
            # Socher et al. 2013, https://aclanthology.org/D13-1170
            _glue(
                name="sst2",
                title="SST-2",
                kind="classification",
                text_columns=("sentence",),
                label_column="label",
                labels=("negative", "positive"),
                metrics=("accuracy",),
                sizes=_sizes(67349, 872, 1821),
                files=GlueFiles("SST-2", ("sentence",)),
            ),
            # Dolan and Brockett 2005, https://aclanthology.org/I05-5002
            _glue(
                name="mrpc",
                title="MRPC",
                kind="classification",
                text_columns=_PAIR,
                label_column="label",
                labels=("not_equivalent", "equivalent"),
                metrics=_F1,
                sizes=_sizes(3668, 408, 1725),
                # GLUE's script cuts Microsoft's files into its own three; without it, these are here.
                files=GlueFiles(
                    "MRPC",
                    ("#1 String", "#2 String"),
                    "Quality",
                    names=MappingProxyType(
                        {
                            "train": ("train.tsv", "msr_paraphrase_train.txt"),
                            "dev": ("dev.tsv", "validation.tsv", "msr_paraphrase_train.txt"),
                            "test": ("test.tsv", "msr_paraphrase_test.txt"),
                        }
                    ),
                ),
            ),
            # Iyer et al. 2017, https://quoradata.quora.com/First-Quora-Dataset-Release-Question-Pairs
            _glue(
                name="qqp",
                title="QQP",
                kind="classification",
                text_columns=("question1", "question2"),
                label_column="label",
                labels=("not_duplicate", "duplicate"),
                metrics=_F1,
                sizes=_sizes(363846, 40430, 390965),
                files=GlueFiles("QQP", ("question1", "question2"), "is_duplicate", broken_lines=True),
            ),
            # Cer et al. 2017, https://arxiv.org/abs/1708.00055
            _glue(
                name="stsb",
                title="STS-B",
                kind="regression",
                text_columns=_PAIR,
                label_column="score",
                labels=(),
                metrics=_CORRELATIONS,
                target_range=(0.0, 5.0),
                sizes=_sizes(5749, 1500, 1379),
                files=GlueFiles("STS-B", _PAIR, "score"),
            ),
            # Williams et al. 2018, https://arxiv.org/abs/1704.05426
            _glue(
                name="mnli",
                title="MNLI",
                kind="classification",
                text_columns=("premise", "hypothesis"),
                label_column="label",
                labels=("entailment", "neutral", "contradiction"),
                metrics=("accuracy",),
                sizes=_sizes(392702, 9815, 9796, dev_mismatched=9832, test_mismatched=9847, diagnostic=1104),
                hub_splits=MappingProxyType(
                    {
                        "train": "train",
                        "dev": "validation_matched",
                        "dev_mismatched": "validation_mismatched",
                        "test": "test_matched",
                        "test_mismatched": "test_mismatched",
                        "diagnostic": "ax/test",
                    }
                ),
                files=GlueFiles(
                    "MNLI",
                    _PAIR,
                    "gold_label",
                    names=MappingProxyType(
                        {
                            "train": ("train.tsv",),
                            "dev": ("dev_matched.tsv",),
                            "dev_mismatched": ("dev_mismatched.tsv",),
                            "test": ("test_matched.tsv",),
                            "test_mismatched": ("test_mismatched.tsv",),
                            "diagnostic": ("../diagnostic/diagnostic.tsv", "diagnostic.tsv"),
                        }
                    ),
                ),
                also_scored=MappingProxyType({"dev_mismatched": "accuracy_mismatched"}),
            ),
            # Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, recast by Wang et al. 2018
            _glue(
                name="qnli",
                title="QNLI",
                kind="classification",
                text_columns=("question", "sentence"),
                label_column="label",
                labels=_ENTAILMENT,
                metrics=("accuracy",),
                sizes=_sizes(104743, 5463, 5463),
                files=GlueFiles("QNLI", ("question", "sentence")),
            ),
            # Dagan et al. 2006 and its successors, as put together by Wang et al. 2018, https://arxiv.org/abs/1804.07461
            _glue(
                name="rte",
                title="RTE",
                kind="classification",
                text_columns=_PAIR,
                label_column="label",
                labels=_ENTAILMENT,
                metrics=("accuracy",),
                sizes=_sizes(2490, 277, 3000),
                files=GlueFiles("RTE", _PAIR),
            ),
            # Levesque et al. 2012, recast by Wang et al. 2018
            _glue(
                name="wnli",
                title="WNLI",
                kind="classification",
                text_columns=_PAIR,
                label_column="label",
                labels=("not_entailment", "entailment"),
                metrics=("accuracy",),
                sizes=_sizes(635, 71, 146),
                files=GlueFiles("WNLI", _PAIR),
            ),
        )
    }
)
"""The nine tasks of GLUE (Wang et al. 2018), in the order of its table."""

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        **GLUE,
        "builtin-acceptability": Task(
            name="builtin-acceptability",
            title="Built-in acceptability",
            kind="classification",
            text_columns=("sentence",),
            label_column="label",
            labels=_ACCEPTABILITY,
            metrics=("matthews_correlation", "accuracy"),
            language="en",
        ),
        "builtin-similarity": Task(
            name="builtin-similarity",
            title="Built-in similarity",
            kind="regression",
            text_columns=_PAIR,
            label_column="score",
            labels=(),
            metrics=_CORRELATIONS,
            target_range=(0.0, 5.0),
            language="en",
        ),
    }
)
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
    """Return the task called `name`.

    Raises:
        StudyError: there is no such task; the message lists those that there are.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise StudyError(f"tasks: {no_task(name)}") from None
