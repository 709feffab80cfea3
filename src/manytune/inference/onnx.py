"""A transformers model as ONNX, by torch's own exporter, and as onnxruntime runs it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from manytune.utils.errors import DependencyError

FILE = "model.onnx"
"""The graph, in an exported folder."""

_MOST_INSIDE = 1_900_000_000
"""Bytes of weights that one ONNX file can hold; more go into a file beside it (protobuf's limit is 2 GiB)."""


def write_onnx(model: Any, inputs: Sequence[str], folder: Path) -> None:
    """Write transformers' sequence-classification model, in fp32, as FILE, for batches and sequences of any length.

    `inputs` are input_ids, attention_mask, and token_type_ids where the model has token types. Raises DependencyError
    where a package that torch's exporter needs is missing.
    """
    onnx_runtime()
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    # Two rows of several tokens: an axis of size one would be taken for fixed.
    examples = tuple(torch.ones(2, 7, dtype=torch.long) for _ in inputs)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with _quiet():
        torch.onnx.export(
            _Logits(model.eval(), inputs),
            examples,
            folder / FILE,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes={"values": tuple({0: batch, 1: sequence} for _ in inputs)},
            dynamo=True,
            external_data=size > _MOST_INSIDE,
        )


class OnnxModel:
    """A written model, called as transformers' own is."""

    def __init__(self, folder: Path, config: Any) -> None:
        """Load what `write_onnx` wrote; `config` is transformers', which callers read from its models."""
        self.config = config
        self._session = onnx_runtime().InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def __call__(self, **inputs: Tensor) -> Any:
        """Logits, as `.logits`, of padded batches [B, L] int64; inputs that the model has not are left out."""
        (logits,) = self._session.run(["logits"], {name: inputs[name].numpy() for name in self._inputs})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def onnx_call(name: str, sentences: int, *, at_hub: bool) -> str:
    """Python that loads it, from a folder or a repository, and predicts one row of one or two sentences."""
    path = f'hf_hub_download("{name}", "{FILE}")' if at_hub else f'"{name}/{FILE}"'
    texts = ", ".join(f'["{text}"]' for text in ("a text", "another one")[:sentences])
    hub = "from huggingface_hub import hf_hub_download\n" if at_hub else ""
    return (
        f"{hub}from onnxruntime import InferenceSession\n"
        "from transformers import AutoTokenizer\n\n"
        f"session = InferenceSession({path})\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'inputs = tokenizer({texts}, return_tensors="np", padding=True)\n'
        "names = [each.name for each in session.get_inputs()]\n"
        'logits = session.run(["logits"], {name: inputs[name] for name in names})[0]'
    )


def onnx_runtime() -> Any:
    """onnxruntime; raises DependencyError where a package that an export needs is missing."""
    try:
        for needed in ("onnx", "onnxscript"):  # by torch's exporter
            importlib.import_module(needed)
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DependencyError(
            f"An export to ONNX needs {error.name}, which is not installed: pip install 'manytune[onnx]'"
        ) from error


class _Logits(nn.Module):
    """The model with its inputs in their order, and the logits alone as its output."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)

    def forward(self, *values: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.inputs, values, strict=True))).logits
        return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps, and its remarks on packages that nobody needs here, off the terminal."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
