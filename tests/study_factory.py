"""Study directories as `manytune run` leaves them, with made-up results: for whatever reads results.

Everything is written through the store, and scores are computed from the predictions that are kept, so that a
directory is consistent. The same arguments give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from manytune.config import Study
from manytune.config.plan import Run, plan_packs, plan_runs
from manytune.data import metrics
from manytune.data.baselines import TFIDF_TITLE, BaselineScore
from manytune.data.splits import load_split
from manytune.data.tasks import Task, get_task
from manytune.storage.artifacts import Baselines, Examples, Structure, Trained
from manytune.storage.directory import Store
from manytune.storage.lookup import digests
from manytune.storage.record import HistoryRow, RunRecord

__all__ = ["GLUE_LIKE", "HOSTILE", "QUALITY", "make_study_directory", "structure_of"]

HOSTILE = (
    "<script>window.hacked=1</script>",
    "{{7*7}}",
    "</script><img src=x onerror=window.hacked=1>",
    "=1+1",
    "a & b\u2028",
)
"""Texts that must show as they are."""

QUALITY: Mapping[str, float] = {"full": 1.0, "lora": 0.93, "bitfit": 0.75, "head": 0.2}
"""Method → how good its runs are, 1 being the best."""

GLUE_LIKE: Mapping[str, Any] = {
    "name": "glue-like",
    "model": "minilm",
    "tasks": ["cola", "stsb"],
    "seeds": [0, 1, 2, 3, 4],
    "training": {"epochs": 6, "warmup_steps": 200, "weight_decay": 0.1, "adam_epsilon": 1e-6},
    "methods": [
        {"method": "full", "learning_rate": 5e-5},
        {"method": "bitfit", "learning_rate": [2e-4, 1e-3]},
        {"method": "lora", "rank": [2, 8, 64, 256], "alpha": 8, "dropout": 0.1, "learning_rate": 4e-4},
    ],
}
"""The shape of the study that the project is for."""

_FINGERPRINT = "2a95597362003e9c"
_START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_HIDDEN, _LAYERS, _WORDS = 384, 6, 30522


def make_study_directory(
    root: Path,
    study: Mapping[str, Any] = GLUE_LIKE,
    *,
    states: Mapping[str, str] | None = None,
    pending: Sequence[str] = (),
    artifacts: bool = True,
    spread: float = 0.03,
    quality: Mapping[str, float] = QUALITY,
    hostile: bool = False,
    evaluations: int = 6,
    changes: Mapping[str, Any] | None = None,
    baselines: Mapping[str, float | None] | None = None,
    scores: Callable[[Run], float | None] = lambda run: None,
    failure: str = "The training loss became nan at step 7.",
) -> Store:
    """Write a study directory.

    Args:
        root: Where to.
        study: The study's data.
        states: Start of a run id → the state that it ended in, other than finished.
        pending: Starts of ids of runs that have not ended.
        artifacts: Whether predictions, dev rows and the module tree are kept.
        spread: Standard deviation over seeds, as a share of what there is to be learned.
        quality: Method → how good its runs are.
        hostile: Whether sentences and failures hold markup.
        evaluations: Rows of each history.
        changes: FileFacts in place of every record's own.
        baselines: Task → what TF-IDF with a linear model scores in its first metric; the constant scores 0, or is
            undefined.
        scores: Run → its score in its task's first metric, in place of the one that its predictions, which are then not
            kept, give; None: that one.
        failure: Why runs failed.
    """
    made = Study.from_dict(study)
    store = Store.create_or_open(root, made)
    runs = plan_runs(made)
    store.write_plan(plan_packs(runs, 16))
    for name in made.task_names:
        task = get_task(name)
        texts, labels = _dev(task, hostile)
        own = [run for run in runs if run.task == name]
        if artifacts:
            examples = Examples(texts=texts, labels=tuple(labels.tolist()), parts=dict(task.dev_parts))
            store.task_artifacts(name).keep(task, examples, structure_of(own, task))
        if baselines and name in baselines:
            store.task_artifacts(name).keep_baselines(_baselines(made, task, baselines[name]))
        for place, run in enumerate(own):
            if not run.id.startswith(tuple(pending)) or not pending:
                state = next((s for start, s in (states or {}).items() if run.id.startswith(start)), "finished")
                _write_run(
                    store,
                    made,
                    run,
                    task,
                    labels,
                    state,
                    place,
                    artifacts,
                    spread,
                    quality,
                    hostile,
                    evaluations,
                    changes or {},
                    scores(run),
                    failure,
                )
    return store


def _baselines(study: Study, task: Task, tfidf: float | None) -> Baselines:
    constant = 0.0 if task.kind == "classification" else None
    others = dict.fromkeys(task.metrics[1:], 0.5)
    return Baselines(
        fingerprint=_FINGERPRINT,
        selection=study.selection,
        seeds=(),
        versions={"scikit-learn": "1.9.1"},
        settings={},
        scores=(
            BaselineScore("constant", task.type.constant_title, 100, {task.metrics[0]: constant, **others}, "says 1"),
            BaselineScore("tfidf", TFIDF_TITLE, 100, {task.metrics[0]: tfidf, **others}, ""),
        ),
    )


def structure_of(runs: Sequence[Run], task: Task) -> Structure:
    """The module tree of a BERT of MiniLM's size."""
    tensors: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (_WORDS, _HIDDEN)}
    tensors |= {
        "embeddings.position_embeddings.weight": (512, _HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, _HIDDEN),
    }
    tensors |= _norm("embeddings.LayerNorm")
    for layer in range(_LAYERS):
        inside = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            tensors |= _linear(f"{inside}.attention.self.{part}", _HIDDEN, _HIDDEN)
        tensors |= _linear(f"{inside}.attention.output.dense", _HIDDEN, _HIDDEN) | _norm(
            f"{inside}.attention.output.LayerNorm"
        )
        tensors |= _linear(f"{inside}.intermediate.dense", _HIDDEN, 4 * _HIDDEN)
        tensors |= _linear(f"{inside}.output.dense", 4 * _HIDDEN, _HIDDEN) | _norm(f"{inside}.output.LayerNorm")
    tensors |= _linear("pooler.dense", _HIDDEN, _HIDDEN)
    head = _linear("classifier", _HIDDEN, task.num_outputs)
    biases = tuple(name for name in tensors if name.endswith(".bias"))
    trained = {}
    for run in runs:
        method, heads = run.method, {"full": tuple(head), "bias": ("classifier.bias",), "frozen": ()}
        rank = method.rank if method.method == "lora" else None
        targets = tuple(
            (name.removesuffix(".weight"), (rank or 0) * sum(shape))
            for name, shape in tensors.items()
            if method.method == "lora" and name.endswith(tuple(f".{target}.weight" for target in method.targets))
        )
        trained[run.label] = Trained(
            weights=method.method == "full",
            biases=biases if method.method == "bitfit" else (),
            adapters=targets,
            adapter_label=f"r={rank}" if rank else None,
            head=heads[method.head],
        )
    return Structure(model="minilm", tensors=tensors, head=head, trained=trained)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (_HIDDEN,), f"{name}.bias": (_HIDDEN,)}


def _dev(task: Task, hostile: bool) -> tuple[tuple[tuple[str, ...], ...], np.ndarray]:
    """Rows of the built-in task of the same kind, as many as the task's dev split has."""
    rows = load_split(
        get_task("builtin-acceptability" if task.kind == "classification" else "builtin-similarity"), "dev"
    )
    count = task.sizes.get("dev", len(rows))
    texts = [rows.texts[at % len(rows)] for at in range(count)]
    labels = np.array([rows.labels[at % len(rows)] for at in range(count)])
    if hostile:
        for place, text in enumerate(HOSTILE):
            texts[place] = (text, *texts[place][1:])
    return tuple(texts), labels


def _write_run(
    store: Store,
    study: Study,
    run: Run,
    task: Task,
    labels: np.ndarray,
    state: str,
    place: int,
    artifacts: bool,
    spread: float,
    quality: Mapping[str, float],
    hostile: bool,
    evaluations: int,
    changes: Mapping[str, Any],
    given: float | None,
    failure: str,
) -> None:
    draw = np.random.default_rng(place)
    good = _quality(run, quality) + spread * draw.normal()
    if state == "collapsed":
        good = 0.0
    logits = _logits(task, labels, good, draw)
    steps = 535 * 6 if task.name == "cola" else 360 * 6
    best_at = evaluations - 1 - (place % 2)
    known = state in ("finished", "collapsed", "pruned")
    scores = _scores(task, logits, labels) if known else {}
    last = (
        _scores(task, _logits(task, labels, good * (0.99 if best_at < evaluations - 1 else 1.0), draw), labels)
        if known
        else {}
    )
    if state == "collapsed":
        logits = np.zeros_like(logits) + np.array([0.0, 1.0][: logits.shape[1]], dtype=np.float32)
        scores = last = _scores(task, logits, labels)
    if given is not None and known:
        scores, last = ({**each, task.primary_metric: given} for each in (scores, last))
    store.write_history(run.id, _history(task, run, good, scores, steps, evaluations, best_at))
    if artifacts and known and given is None:
        store.write_predictions(run.id, logits)
    started = _START + timedelta(minutes=7 * place)
    known_seconds = {"full": 260.0, "lora": 110.0, "bitfit": 95.0, "head": 12.0}
    seconds = known_seconds.get(run.method.method, 120.0) * (1 + 0.02 * draw.normal())
    record: dict[str, Any] = {
        "run_id": run.id,
        "study": study.name,
        "study_hash": study.hash,
        "task": task.name,
        "model": run.model,
        "method": run.method.method,
        "label": run.label,
        "hyperparameters": {
            **run.method.hyperparameters(),
            "training": (run.training or study.training).model_dump(mode="json"),
        },
        "template": study.template,
        "selection": study.selection,
        "seed": run.seed,
        "state": state,
        "failure": f"{failure} {HOSTILE[0] if hostile else ''}".strip() if state == "failed" else None,
        "notes": ["It predicts one constant."] if state == "collapsed" else [],
        "primary_metric": task.primary_metric,
        "best_score": scores.get(task.primary_metric),
        "best_step": steps * (best_at + 1) // evaluations if known else None,
        "last_score": last.get(task.primary_metric),
        "scores": {**scores, **dict.fromkeys(task.also_scored.values(), scores.get("accuracy"))},
        "last_scores": last,
        "epochs_done": 6.0,
        "steps": steps,
        "parameters": _parameters(run, task),
        "cost": {
            "train_seconds": seconds,
            "eval_seconds": seconds / 9,
            "peak_memory_bytes": {"full": 1_900_000_000, "lora": 1_500_000_000}.get(run.method.method, 1_200_000_000),
            "samples_per_second": 8551 * 6 / seconds,
            "snapshot_bytes": 4 * _parameters(run, task)["trainable"] + 9000,
            "pack_size": 1 if run.method.method == "full" else 8,
        },
        "provenance": {
            "versions": {"python": "3.11.7", "manytune": "0.1.0", "torch": "2.13.0"},
            "model_revision": "sha256:051e2de600e464d2",
            "data_fingerprint": _FINGERPRINT,
            "git_commit": "980b945c2cbd4bb4add29a58247ebaa958bc6232",
            "hardware": {"device": "cpu", "processor": "a processor", "cores": 2, "threads": 2},
            "started": started,
            "finished": started + timedelta(seconds=seconds),
        },
        "files": digests(store.run_dir(run.id)),
    }
    store.write_record(RunRecord.model_validate(record | changes))


def _quality(run: Run, quality: Mapping[str, float]) -> float:
    good = quality.get(run.method.method, 0.4)
    if run.method.method == "lora":  # the best rank is 8
        good -= 0.02 * abs(math.log2(run.method.rank) - 3) / 2
    if run.method.method == "bitfit":  # the best rate is 1e-3
        good -= 0.12 * abs(math.log10(run.method.learning_rate) + 3)
    return good


def _logits(task: Task, labels: np.ndarray, good: float, draw: np.random.Generator) -> np.ndarray:
    """Some rows are easy and some hard for every run; the first ones are the hardest."""
    ease = np.random.default_rng(1).gamma(2.0, 0.7, len(labels)) * np.linspace(0.2, 1.4, len(labels))
    if task.kind == "classification":
        sign = np.where(labels == 1, 1.0, -1.0)
        margin = sign * good * ease * 0.9 + draw.normal(0, 0.8, len(labels)) + 0.25
        margin[: len(HOSTILE)] = -3 * sign[: len(HOSTILE)]  # every run gets them wrong, so that they are shown
        return np.stack([-margin, margin], axis=1).astype(np.float32)
    noise = draw.normal(0, 1, len(labels)) * (0.6 + 1.6 * (1 - min(good, 1.0)))
    middle = labels.mean()
    shrunk = middle + (labels - middle) * min(max(good, 0.02), 1.2) * np.clip(ease, 0.3, 1.3)
    shrunk[: len(HOSTILE)] = 5 - labels[: len(HOSTILE)]
    return (shrunk + noise)[:, None].astype(np.float32)


def _scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return metrics.evaluate(task, logits.argmax(-1) if task.kind == "classification" else logits[:, 0], labels)


def _history(
    task: Task, run: Run, good: float, scores: Mapping[str, float], steps: int, evaluations: int, best_at: int
) -> list[HistoryRow]:
    rows = []
    for at in range(evaluations):
        done = (at + 1) / evaluations
        reached = 1 - math.exp(-4 * (at + 1) / (best_at + 1)) if at != best_at else 1.0
        reached -= 0.03 * max(0, at - best_at)
        rows.append(
            HistoryRow(
                step=steps * (at + 1) // evaluations,
                epoch=6 * done,
                samples_seen=int(8551 * 6 * done),
                train_loss=0.62 - 0.45 * good * done,
                learning_rate=run.method.learning_rate * (1 - done),
                # On a classification the loss rises again while the score still does: it gets surer of its mistakes.
                eval_loss=0.6
                - 0.2 * done
                + (0.5 * good * max(0.0, done - 0.4) if task.kind == "classification" else 0),
                metrics={name: score * reached for name, score in scores.items()},
                seconds=200 * done,
            )
        )
    return rows


def _parameters(run: Run, task: Task) -> dict[str, int]:
    base, head = 22_713_216, (_HIDDEN + 1) * task.num_outputs
    method = run.method
    adapter = 2 * 2 * _LAYERS * _HIDDEN * method.rank if method.method == "lora" else 0
    parts = {
        "backbone": base if method.method == "full" else 0,
        "bias": 26_112 if method.method == "bitfit" else 0,
        "adapter": adapter,
        "head": {"full": head, "bias": task.num_outputs, "frozen": 0}[method.head],
    }
    return {"total": base + head + adapter, "trainable": sum(parts.values()), **parts}
