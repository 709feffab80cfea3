"""The heads of a pack: a task's classifier or regressor on top of the backbone, one for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from manytune.models.spec import HeadLayer, HeadSpec
from manytune.packing.bank import Bank, BankTensor, Earlier, Member, multiples
from manytune.packing.context import Context, dropped
from manytune.packing.dropout import Drop, generator
from manytune.packing.kernels import Kernels


def initial_head(spec: HeadSpec, seed: int) -> dict[str, Tensor]:
    """Fresh head tensors by name, as transformers has them: normal weights, zero biases, norms that change nothing.

    Every method of the same seed starts from the same head.
    """
    tensors = {}
    for tensor in spec.tensors():
        value = torch.full(tensor.shape, tensor.fill)
        if tensor.std is not None:
            draw = generator("head", seed, tensor.name.rpartition(".")[0])
            if tensor.cutoff is None:
                value.normal_(0.0, tensor.std, generator=draw)
            else:
                far = tensor.cutoff * tensor.std
                nn.init.trunc_normal_(value, 0.0, tensor.std, -far, far, generator=draw)
        tensors[tensor.name] = value
    return tensors


def reach(spec: HeadSpec, seed: int) -> float:
    """How far from its bias the frozen one-output head of a run of this seed can predict, whatever its features are.

    Where tanh makes the inputs of the last layer they lie between -1 and 1, so the output cannot move further
    than the sum of the weights' magnitudes; without tanh, or of a head whose layers are not known, there is no bound.
    A head of one known layer sees the output of the encoder's pooler, which ends in tanh.
    """
    if not spec.layers:
        return math.inf
    last = spec.layers[-1]
    if len(spec.layers) > 1 and spec.layers[-2].activation != "tanh":
        return math.inf
    return float(initial_head(spec, seed)[f"{last.name}.weight"].abs().sum())


class PackedHead:
    """The heads of all runs; runs next to each other that train the same head tensors are computed together."""

    def __init__(
        self,
        spec: HeadSpec,
        members: Sequence[Member],
        bank: Bank,
        device: torch.device,
        earlier: Earlier | None = None,  # where the heads of some runs are already
    ) -> None:
        self.spec = spec
        earlier = earlier or Earlier()
        self.groups: list[dict[str, BankTensor]] = []
        fresh = cache(lambda run: initial_head(spec, members[run].seed))

        def drawn(name: str, runs: Sequence[int]) -> Tensor:
            return torch.stack([fresh(run)[name] for run in runs]).to(device)

        first = 0
        for names, same in groupby(members, key=lambda member: member.adaptation.head):
            group = bank.group(first, first + len(list(same)))
            rates = multiples([member.adaptation.head_rate for member in members[first : group.last]])
            tensors = {}
            for name in (tensor.name for tensor in spec.tensors()):
                value, moments = earlier.stacked(name, group, partial(drawn, name))
                tensors[name] = bank.add(
                    BankTensor(name, "head", group, nn.Parameter(value, name in names), moments=moments, rates=rates)
                )
            self.groups.append(tensors)
            first = group.last

    def tensors_of(self, run: int) -> dict[str, Tensor]:
        """The head's tensors of one run of the pack, views that gradients flow through."""
        (tensors,) = (tensors for tensors in self.groups if next(iter(tensors.values())).holds(run))
        return {name: tensor.of_run(run) for name, tensor in tensors.items()}

    def __call__(self, features: Tensor, context: Context) -> Tensor:
        """Features [S, H] in fp32, sorted by run → logits [R, B, outputs].

        Where a run has fewer sequences than B, what stands behind its own logits is of no sequence.
        """
        bounds = context.segments.bounds
        counts = [last - first for first, last in pairwise(bounds)]
        most = max(counts)
        places = None
        if min(counts) < most:  # the rows of each run are padded with the last row of all
            offsets = context.segments.offsets[:, None]
            firsts, lasts = offsets[:-1], offsets[1:]
            places = firsts + torch.arange(most, device=features.device)
            places = torch.where(places < lasts, places, len(features))
            features = torch.cat([features, features.new_zeros(1, features.shape[1])])
        calls = [(layer, context.site(layer.name)) for layer in self.spec.layers]
        logits = []
        for tensors in self.groups:
            group = next(iter(tensors.values())).group
            if len(group) == 0:
                continue
            keys = context.row_keys
            if places is None:
                own: slice | Tensor = slice(bounds[group.first], bounds[group.last])
            else:
                own = places[group.first : group.last].flatten()
                keys = None if keys is None else torch.cat([keys, keys.new_zeros(1)])
            x = features[own].view(len(group), most, -1)
            keys = None if keys is None else keys[own]
            for layer, site in calls:
                x = self._layer(x, layer, tensors, keys, site, context.kernels)
            logits.append(x)
        return torch.cat(logits)

    def _layer(
        self,
        x: Tensor,
        layer: HeadLayer,
        tensors: dict[str, BankTensor],
        keys: Tensor | None,
        site: int,
        kernels: Kernels,
    ) -> Tensor:
        """[G, B, in] → [G, B, out]."""
        if layer.dropout > 0 and keys is not None:
            x = dropped(x, Drop(keys, site, layer.dropout), kernels)
        y = torch.bmm(x, tensors[f"{layer.name}.weight"].value.mT)
        if layer.bias:
            y = y + tensors[f"{layer.name}.bias"].value[:, None, :]
        if layer.activation != "none":
            y = ACT2FN[layer.activation](y)
        if layer.norm is not None:  # each run with its own gain and shift
            norm = layer.norm
            y = nn.functional.layer_norm(y, y.shape[-1:], eps=norm.epsilon)
            y = y * tensors[f"{norm.name}.weight"].value[:, None, :]
            y = y + tensors[f"{norm.name}.bias"].value[:, None, :] if norm.bias else y
        return y
