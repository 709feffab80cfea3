"""A run as a folder that transformers or peft loads, verified by loading it there before it is called done."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from manytune.config.plan import Run
from manytune.data import metrics
from manytune.data.splits import Encoded
from manytune.data.tasks import Task
from manytune.inference.model_card import model_card
from manytune.inference.onnx import OnnxModel, onnx_call, write_onnx
from manytune.inference.torch_hooks import add_hooks
from manytune.methods import Method
from manytune.models.loading import (
    MINILM,
    MINILM_PACKAGE,
    load_classifier,
    load_tokenizer,
    locate,
    quiet_transformers,
)
from manytune.models.spec import ModelSpec
from manytune.storage.artifacts import PREDICTIONS
from manytune.storage.directory import Store
from manytune.storage.lookup import altered, refuse_another_backbone, refuse_own_folders
from manytune.storage.record import RunRecord
from manytune.training import snapshot
from manytune.training.workload import encode_texts
from manytune.utils.errors import DependencyError, StoreError, StudyError, choices
from manytune.utils.files import replacing_directory, writing

FORMS = ("peft", "transformers", "onnx")
"""The forms of an export."""
_TOLERANCE = 1e-4  # largest allowed difference between logits of the exported model and the recorded ones, in fp32

_SAME_SCORE = 1e-3  # largest allowed difference between the score that recorded logits give and the recorded score

_ROWS = 32
_UPSTREAM = {MINILM: "sentence-transformers/all-MiniLM-L6-v2"}  # what the offline default is called on the hub


@dataclass(frozen=True)
class Exported:
    """An export that was verified."""

    folder: Path  # where it is
    form: str  # one of FORMS
    call: str  # Python that loads it
    rows: int  # dev rows by which it was verified
    off: float  # the largest difference of a logit from the recorded one
    score: float  # the task's first metric on these rows, by the exported model


def export(
    store: Store,
    record: RunRecord,
    to: Path,
    *,
    form: str | None = None,
    merge: bool = False,
    base: str | None = None,
    known_as: str | None = None,
) -> Exported:
    """Write a run that has a snapshot for other libraries, into a new or empty folder, and verify it there.

    `form` is one of FORMS, by default the first of the method's `exports`. A PEFT adapter holds the head as well; in
    ONNX, and with `merge`, an adapter is merged into the weights; what cannot be merged is a part of the ONNX graph.
    `base` is the base model that an adapter names, by default the study's; `known_as` is the repository that the call
    which loads the export names, by default the folder.

    Raises ManytuneError where the run has no such form, the folder cannot be written, or the export, loaded again, does
    not give the recorded logits.
    """
    refuse_own_folders([store], to)
    with writing(to):
        if to.exists() and (not to.is_dir() or to.samefile(Path.cwd()) or any(to.iterdir())):
            raise StoreError(
                f"{to} is there already. Give the name of a new or empty folder, other than the present one, as --to."
            )
    study, task = store.study(), store.task(record.task)
    run = next((run for run in store.runs() if run.id == record.run_id), None)
    if run is None:
        raise StoreError(f"The plan of {store.root} no longer names {record.run_id}.")
    form = _form(form, run, merge=merge, base=base)
    check = _Check(store, record, task)
    model, parts, revision = load_classifier(study.model, task.num_outputs)
    refuse_another_backbone(record.run_id, record.model, record.provenance.model_revision, revision)
    tokenizer = load_tokenizer(study.model)
    state = _in_own_unit(snapshot.load_own(store, record, run), parts, task)
    model.config.problem_type = task.type.problem_type
    if task.labels:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {name: index for index, name in enumerate(task.labels)}
    name = known_as or str(to)
    auto_class = getattr(transformers, task.type.auto_class)
    named = base or _UPSTREAM.get(study.model) or study.model
    with (
        writing(to),
        replacing_directory(Path(os.path.realpath(to)), empty=True) as folder,
        quiet_transformers(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # what other libraries will change in their next version
        if form == "peft":
            # The hub has the offline default too, but its users may have no network; who reads a hub's page has one.
            offline = study.model == MINILM and base is None and known_as is None
            call = _adapter_call(name, task, offline=offline)
            _write_adapter(model, parts, run.method, state, folder, named, task)
            location = locate(study.model)
            whole = auto_class.from_pretrained(
                location.path, revision=location.revision or "main", num_labels=task.num_outputs, dtype=torch.float32
            )
            again = _peft().PeftModel.from_pretrained(whole, folder).eval()
        elif form == "transformers":
            call = _call(name, task)
            _take_over(model, parts, run.method, state)
            model.save_pretrained(folder)
            again = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
        else:
            call = onnx_call(name, len(task.text_columns), at_hub=known_as is not None)
            _take_over(model, parts, run.method, state)
            # Where there is one token type alone, tokenizers make none.
            types = ("token_type_ids",) if parts.token_types > 1 else ()
            write_onnx(model, ("input_ids", "attention_mask", *types), folder)
            model.config.save_pretrained(folder)
            again = OnnxModel(folder, model.config)
        tokenizer.save_pretrained(folder)
        data = encode_texts(study, parts, AutoTokenizer.from_pretrained(folder), check.texts)
        off, score = check.passes(_logits(again, data, types=parts.token_types > 0))
        card = model_card(record, task, study, form=form, base=named, call=call, score=score)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Exported(to, form, call, len(check.texts), off, score)


def _form(form: str | None, run: Run, *, merge: bool, base: str | None) -> str:
    """The form to write; refuses one that the method does not have, and options that do not go together."""
    exports, label = run.method.exports, run.label
    if form is not None and form not in FORMS:
        raise StudyError(f"--format: {choices(form, FORMS)}")
    if not exports:
        raise StudyError(
            f"{label} cannot be exported: transformers and peft have no form that holds what {run.method.title} "
            "trains, as far as manytune knows. `manytune predict` uses the run as it is."
        )
    if "transformers" not in exports and (merge or (form is not None and form not in exports)):
        raise StudyError(
            f"{label} can be exported as {' or '.join(exports)} alone: what it trains cannot be merged into the "
            "weights of transformers' model, and peft has no such adapter. `manytune predict` uses the run as it is."
        )
    if merge and "peft" not in exports:
        raise StudyError(f"--merge: {label} has no adapter to merge; leave it out")
    if form == "peft" and (merge or "peft" not in exports):
        why = "it is of an adapter, and --merge makes none" if merge else f"{label} has no adapter"
        raise StudyError(f"--format: peft does not go here: {why}")
    chosen = form or ("transformers" if merge else exports[0])
    if chosen not in exports:
        raise StudyError(f"{label} can be exported as {' or '.join(exports)}, not as {chosen}")
    if base is not None and chosen != "peft":
        raise StudyError("--base: only an adapter names its base model; this export holds all weights")
    return chosen


class _Check:
    """The run's recorded logits on dev, which the exported model must reproduce."""

    def __init__(self, store: Store, record: RunRecord, task: Task) -> None:
        examples, kept = store.task_artifacts(task.name).examples(task), store.read_predictions(record.run_id)
        if examples is None or kept is None:
            raise StoreError(
                f"{record.run_id} cannot be verified: {store.root} does not hold its dev rows and predictions. "
                "They are written by `manytune run`; copy the whole directory."
            )
        if problem := altered(store, record, (PREDICTIONS,)):
            raise StoreError(problem)
        labels = np.asarray(examples.labels)
        score = None
        if kept.shape == (len(labels), task.num_outputs):
            score = metrics.evaluate(task, task.type.decode(kept), labels)[task.primary_metric]
        if score is None or record.best_score is None or not abs(score - record.best_score) < _SAME_SCORE:
            raise StoreError(
                f"{store.run_dir(record.run_id) / PREDICTIONS} and {store.root}'s dev rows do not give the score of "
                f"the run's record, {record.best_score}, but {score}. Put back the files that `manytune run` wrote."
            )
        self.record, self.task, self.kept, self.labels = record, task, kept, labels
        self.texts: tuple[tuple[str, ...], ...] = tuple(tuple(row) for row in examples.texts)

    def passes(self, logits: NDArray[Any]) -> tuple[float, float]:
        """The largest difference from the recorded logits, and the score."""
        off = float(np.abs(logits - self.kept).max())
        scores = metrics.evaluate(self.task, self.task.type.decode(logits), self.labels)
        score = float(scores[self.task.primary_metric])
        allowed = _TOLERANCE * (1.0 if self.task.scale is None else self.task.scale.spread)
        if not off <= allowed:
            if self.task.scale is not None and np.spacing(np.float32(self.task.scale.center)) > allowed:
                raise StudyError(
                    f"{self.task.name}: an export computes in fp32, which cannot hold targets around "
                    f"{self.task.scale.center:g} that differ by about {self.task.scale.spread:g}. Train on targets "
                    "counted from a nearer zero to export, or predict with manytune."
                )
            raise StoreError(
                f"The export of {self.record.run_id} was loaded again and is not what was trained: its logits are off "
                f"by up to {off:.2g} (allowed are {allowed:g}), and it scores {score:.4f} where the record says "
                f"{self.record.best_score}. Nothing was written."
            )
        return off, score


def _in_own_unit(state: dict[str, Tensor], parts: ModelSpec, task: Task) -> dict[str, Tensor]:
    """The tensors with the scale of a regression's targets in the head's last layer, so that it puts out targets."""
    if task.scale is None:
        return state
    name = parts.head.layers[-1].name
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    if bias is None:
        raise StudyError(f"{task.name}: the head's {name} has no bias, so it cannot put out targets in their own unit")
    return {**state, f"{name}.weight": weight * task.scale.spread, f"{name}.bias": task.outside(bias)}


def _take_over(model: Any, parts: ModelSpec, method: Method, state: Mapping[str, Tensor]) -> None:
    """Put a run's tensors into transformers' model: merged into its weights, or, where they cannot be, as hooks."""
    if "transformers" not in method.exports:
        state = add_hooks(model, parts.prefix, method.adapt(parts).hooks, state)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in method.merge(state, parameters, parts).items():
            if name not in parameters:
                raise StoreError(f"The snapshot holds a tensor that transformers' model has not: {name}.")
            parameters[name].copy_(tensor)


def _write_adapter(
    model: Any, parts: ModelSpec, method: Method, state: Mapping[str, Tensor], folder: Path, base: str, task: Task
) -> None:
    peft = _peft()
    # The top modules of the head: classifier, or pooler where the checkpoint lacks one.
    heads = sorted({name.removeprefix(f"{parts.prefix}.").split(".")[0] for name in parts.head.shapes()})
    config = method.peft_config(peft, parts, task_type=task.type.peft_task, modules_to_save=heads)
    name, _, revision = base.partition("@")
    adapted = peft.get_peft_model(model, config)
    renamed = {f"base_model.model.{key}": tensor for key, tensor in method.peft_state(state, parts).items()}
    renamed |= {f"base_model.{key}": torch.from_numpy(array) for key, array in method.peft_shared(parts).items()}
    result = peft.set_peft_model_state_dict(adapted, renamed)
    if result.unexpected_keys:
        raise StoreError(f"The snapshot holds tensors that peft's model has not: {result.unexpected_keys[0]}.")
    written = adapted.peft_config["default"]
    written.base_model_name_or_path, written.revision, written.inference_mode = name, revision or None, True
    adapted.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the hub about the base model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise DependencyError(
            "An adapter is written and verified by peft, which is not installed: pip install 'manytune[peft]', or "
            "export with --merge."
        ) from error
    return peft


@torch.no_grad()
def _logits(model: Any, data: Encoded, *, types: bool) -> NDArray[Any]:
    """[N, outputs] in fp32 of transformers' model, in padded batches; `types`: whether it takes token types."""
    found = np.empty((data.size, model.config.num_labels), dtype=np.float32)
    order = np.argsort(data.lengths, kind="stable")
    inputs = {"input_ids": (data.ids, model.config.pad_token_id or 0), "attention_mask": (np.ones_like(data.ids), 0)}
    if types:
        inputs["token_type_ids"] = (data.types, 0)
    for rows in np.split(order, range(_ROWS, len(order), _ROWS)):
        spans = [slice(data.offsets[row], data.offsets[row + 1]) for row in rows]
        batch = {
            name: pad_sequence([torch.from_numpy(values[span]).long() for span in spans], True, padding)
            for name, (values, padding) in inputs.items()
        }
        found[rows] = model(**batch).logits.float().numpy()
    return found


def _call(name: str, task: Task) -> str:
    """Python that loads a model of transformers."""
    auto = task.type.auto_class
    return f"""from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def _adapter_call(name: str, task: Task, *, offline: bool) -> str:
    """Python that loads an adapter; with `offline`, onto the copy of the offline default that a package carries.

    An adapter's folder does not hold the number of outputs.
    """
    if not offline:
        auto = task.type.auto_class.replace("Auto", "AutoPeft", 1)
        return f"""from peft import {auto}
from transformers import AutoTokenizer

model = {auto}.from_pretrained("{name}", num_labels={task.num_outputs})
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
    auto = task.type.auto_class
    return f"""from {MINILM_PACKAGE} import get_model_path
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

base = {auto}.from_pretrained(get_model_path(), num_labels={task.num_outputs})
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""
