"""A model's files, looked at before transformers reads them or memory of the size that they claim is taken."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from manytune.utils.errors import ModelError
from manytune.utils.text import counted, parse_json

_READ = re.compile(r".*\.(json|txt|model|safetensors)")
_MOST_BYTES = 512 << 20
"""Of a JSON file; the largest tokenizer.json on the hub has some 30 MB."""

_CONFIG_BYTES = 16 << 20

MOST_TOKENS = 1 << 27
"""Of a vocabulary."""

_MOST = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "num_attention_heads", "n_heads"), 1 << 10),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "embedding_size"), 1 << 17),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "num_labels", "type_vocab_size"), 1 << 20),
    "vocab_size": MOST_TOKENS,
    "max_position_embeddings": 1 << 27,
}
"""The most that each figure of a config may be; no encoder comes near."""

_MAY_BE_NONE = {"type_vocab_size": 0, "max_position_embeddings": -1, "num_labels": 0}
"""Figures of which an architecture may have none, and how it says so; the others are at least 1."""


def check_files(model: str, folder: Path) -> None:
    """Raise a ModelError where a file of the folder is not regular, is too large, or names files elsewhere."""
    for path in sorted(path for path in folder.iterdir() if _READ.fullmatch(path.name)):
        try:
            status = path.stat()
        except OSError as error:
            raise ModelError(f"model: cannot read {path}: {error.strerror}.") from error
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"model: {path} is no regular file. Put the files of {model} themselves into the folder.")
        if not os.access(path, os.R_OK):
            raise ModelError(f"model: cannot read {path}: Permission denied.")
        most = _CONFIG_BYTES if path.name == "config.json" else _MOST_BYTES
        if path.suffix == ".json" and status.st_size > most:
            raise ModelError(f"model: {path} has {status.st_size:,} bytes; at most {most:,} are read.")
    _check_shards(folder)


def _check_shards(folder: Path) -> None:
    """A model in several files is read from its own folder alone, or from the blobs of a hub's cache."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model: {index} does not say which file holds which tensor. Copy the model again.") from error
    homes = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    for name in sorted(map(str, shards)):
        if Path(name).name != name or (folder / name).resolve().parent not in homes:
            raise ModelError(f"model: {index} names the file {name[:100]!r}, which is outside of the model's folder.")


def check_config(model: str, figures: Mapping[str, Any]) -> None:
    """Refuse figures, the content of a config.json, of which no model could be made on this machine.

    Raises ModelError where one is no number or out of range, the model is quantized, or memory cannot hold it.
    """
    if figures.get("quantization_config") is not None:
        raise ModelError(
            f"model: {model} is quantized (its config.json has a quantization_config), and quantized weights cannot be "
            "trained here. Give the model that it was made from."
        )
    for name in _MOST.keys() & figures.keys():
        value, least = figures[name], _MAY_BE_NONE.get(name, 1)
        if value is None and name in _MAY_BE_NONE:
            continue
        if type(value) is not int or not least <= value <= _MOST[name]:
            raise ModelError(
                f"model: the config in {model} cannot be loaded: {name} is {value!r:.40}; it must be a whole number "
                f"from {least} to {_MOST[name]:,}."
            )
    parameters, memory = _parameters(figures), psutil.virtual_memory().total
    if 4 * parameters > memory:
        raise ModelError(
            f"model: by its config.json {model} has about {parameters:,} parameters, {4 * parameters / 1e9:,.0f} GB "
            f"in fp32; this machine has {memory / 1e9:,.0f} GB of memory."
        )


def _parameters(figures: Mapping[str, Any]) -> int:
    """About what an encoder of such figures has, without what they do not tell."""

    def first(*names: str) -> int:
        return next((figures[name] for name in names if isinstance(figures.get(name), int)), 0)

    width = first("hidden_size", "dim", "d_model")
    # ALBERT's layers are one and the same.
    layers = first("num_hidden_groups", "num_hidden_layers", "n_layers", "num_layers")
    matrices = 4 * width * width + 2 * width * first("intermediate_size", "hidden_dim")
    tables = first("vocab_size") + max(0, first("max_position_embeddings"))
    return layers * matrices + tables * (first("embedding_size") or width)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files, whose values are not read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            found.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return found


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a folder's safetensors files, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def check_shapes(
    model: str, prefix: str, wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse weights of other shapes than the config makes, before any of them is read.

    `wanted` has the backbone's tensors, path → shape; `stored` those in its files, with or without `prefix`, the path
    of the backbone in the sequence-classification model. Raises ModelError where a shape differs or a tensor is
    missing.
    """
    ours = {name.removeprefix(f"{prefix}."): shape for name, shape in stored.items()}
    wrong = [name for name, shape in wanted.items() if ours.get(name, shape) != shape]
    parts = {name.partition(".")[0] for name in wanted}
    # What older names mean only transformers knows: where there are such, missing tensors are seen when it loads.
    if not any(name.partition(".")[0] in parts and name not in wanted and "position_ids" not in name for name in ours):
        wrong += [name for name in wanted if name not in ours and not name.startswith("pooler.")]
    if wrong:
        raise misfit(model, [f"{prefix}.{name}" for name in wrong])


def misfit(model: str, wrong: list[str]) -> ModelError:
    """The error for tensors of the encoder that are missing or have another shape."""
    return ModelError(
        f"model: the weights of {model} do not belong to its config.json: {counted(len(wrong), 'tensor')} of the "
        f"encoder are missing or have another shape, such as {wrong[0]}."
    )


def check_values(model: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raise a ModelError where a tensor holds NaN or an infinity."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"model: the weights of {model} hold NaN or infinity, in {name}, so every result would be NaN. "
                "Get the model again; if it is one that you trained, its training had diverged."
            )


def damaged_file(folder: Path) -> str | None:
    """The first of a model's files that cannot be read as what it is called, and why; None where all can."""
    for path in sorted(path for path in folder.iterdir() if _READ.fullmatch(path.name)):
        try:
            if path.suffix == ".json":
                parse_json(path.read_text(encoding="utf-8"), json.JSONDecoder())
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except Exception as error:  # safetensors has an error class of its own
            return f"{path} is damaged: {error!s:.200}"
    return None
