"""Token-flat batches give what the unmodified transformers model gives on padded ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from manytune.data.splits import Encoded
from manytune.methods import make_method
from manytune.models.loading import Backbone, load_backbone
from manytune.packing import Member, PackedModel, build_layout
from manytune.packing.heads import initial_head
from tiny import FLAT_FAMILIES, make_small, random_rows


def reference(folder: Path, backbone: Backbone, seed: int) -> torch.nn.Module:
    """Transformers' own model with the head that our runs of `seed` start from."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    model.load_state_dict(initial_head(backbone.model_spec.head, seed), strict=False)
    return model.eval()


def padded(data: Encoded, rows: np.ndarray) -> dict[str, torch.Tensor]:
    lengths = data.lengths[rows]
    shape = (len(rows), int(lengths.max()))
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "token_type_ids", "attention_mask")}
    for index, row in enumerate(rows):
        span = slice(data.offsets[row], data.offsets[row + 1])
        batch["input_ids"][index, : lengths[index]] = torch.from_numpy(data.ids[span])
        batch["token_type_ids"][index, : lengths[index]] = torch.from_numpy(data.types[span])
        batch["attention_mask"][index, : lengths[index]] = 1
    return batch


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_logits_and_gradients_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_small(tmp_path / family, family)
    backbone = load_backbone(str(folder), 2)
    data = random_rows(12, longest=100, types=family == "bert")
    rows = np.arange(12)
    labels = torch.from_numpy(data.labels)
    model = PackedModel(backbone, [Member(3, make_method("full", learning_rate=1.0).adapt(backbone.model_spec))])
    logits = model.forward(build_layout(data, [rows]))
    theirs = reference(folder, backbone, 3)
    expected = theirs(**padded(data, rows)).logits
    torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-5)

    torch.nn.functional.cross_entropy(logits[0], labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    wanted = dict(theirs.named_parameters())
    ours = {tensor.name: tensor.value.grad.to_dense() for tensor in model.bank.tensors}
    assert ours.keys() == wanted.keys()
    for name, grad in ours.items():
        own = grad[0] if grad.dim() > wanted[name].dim() else grad
        torch.testing.assert_close(own, wanted[name].grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", FLAT_FAMILIES)
def test_every_run_of_a_pack_equals_transformers_on_its_own_rows(family: str, tmp_path: Path) -> None:
    folder = make_small(tmp_path / family, family)
    backbone = load_backbone(str(folder), 2)
    data = random_rows(40)
    draws = [np.random.default_rng(seed).permutation(40)[:7] for seed in range(4)]
    head = make_method("head", learning_rate=1.0)
    model = PackedModel(backbone, [Member(seed, head.adapt(backbone.model_spec)) for seed in range(4)])
    logits = model.forward(build_layout(data, draws))
    for seed, rows in enumerate(draws):
        expected = reference(folder, backbone, seed)(**padded(data, rows)).logits
        torch.testing.assert_close(logits[seed], expected, rtol=1e-5, atol=1e-5)
