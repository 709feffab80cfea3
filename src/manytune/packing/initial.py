"""What a run's own tensors begin as: drawn by its seed, or made of the frozen weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from manytune.methods.adaptation import Hook, HookTensor, LowRank, SharedLowRank, TrainBias, Weight
from manytune.packing.dropout import generator
from manytune.packing.updates import row_norms


def initial_values(hook: Hook, seed: int, frozen: Mapping[str, Tensor]) -> list[Tensor]:
    """What the tensors of a hook begin as, on the CPU; a matrix lies as (in, out), as rows are multiplied by it.

    `frozen` has the backbone's parameters by their paths inside it. Raises ValueError where a pretrained tensor has
    another shape than the hook's, or none is there.
    """
    if isinstance(hook, LowRank):
        norms = [row_norms(frozen[f"{hook.path}.weight"].detach()).cpu()] if hook.magnitude else []
        return _low_rank(hook, seed, frozen) + norms
    if isinstance(hook, SharedLowRank):
        return [torch.zeros(hook.outputs), torch.full((hook.projections.rank,), hook.d_initial)]
    return [
        _initial(tensor, hook, seed, frozen.get(name)) for name, tensor in zip(hook.names, hook.tensors, strict=True)
    ]


def begin_anew(weight: Weight, value: Tensor, seed: int) -> None:
    """Overwrite a backbone's tensor with what it begins as, where that is not what was pretrained."""
    if weight.std is not None:
        draw = torch.empty(value.shape).normal_(weight.mean, weight.std, generator=generator("anew", seed, weight.name))
        value.copy_(draw)


def _initial(tensor: HookTensor, hook: Hook, seed: int, frozen: Tensor | None) -> Tensor:
    shape = tensor.shape[::-1]
    if tensor.init == "pretrained" and (frozen is not None or not isinstance(hook, TrainBias)):
        if frozen is None or frozen.shape != shape:
            has = "nothing" if frozen is None else f"the shape {tuple(frozen.shape)}"
            raise ValueError(f"{type(hook).__name__} is for a {tensor.name} {shape}; {hook.path} has {has}")
        return frozen.detach().clone()
    if tensor.init == "kaiming":
        return _kaiming(tensor, hook, seed)
    return torch.full(shape, float(tensor.init == "ones"))


def _kaiming(tensor: HookTensor, hook: Hook, seed: int) -> Tensor:
    draw = generator(hook.stream, seed, hook.path, tensor.shape[0])
    return nn.init.kaiming_uniform_(torch.empty(tensor.shape), a=5**0.5, generator=draw).mT.contiguous()


def _low_rank(hook: LowRank, seed: int, frozen: Mapping[str, Tensor]) -> list[Tensor]:
    """A [in, rank] and B [rank, out], as peft's `init_lora_weights` has them; both twice where they are subtracted."""
    inputs, outputs, rank = hook.inputs, hook.outputs, hook.rank
    draw = generator(hook.stream, seed, hook.path, rank)
    if hook.init == "kaiming":
        return [_kaiming(hook.tensors[0], hook, seed), torch.zeros(rank, outputs)]
    if hook.init == "gaussian":
        return [torch.empty(inputs, rank).normal_(0.0, 1 / rank, generator=draw), torch.zeros(rank, outputs)]
    if hook.init == "orthogonal":  # rows of one orthogonal matrix in turn, so that A B is zero
        q = torch.linalg.qr(torch.randn(rank, rank, generator=draw))[0]
        a = torch.randn(inputs, rank // 2, generator=draw) @ q[0::2] / 10
        b = torch.randn(rank // 2, outputs, generator=draw).mT @ q[1::2] / 10
        return [a, b.mT.contiguous()]
    weight = frozen[f"{hook.path}.weight"].detach().cpu().float()  # [out, in]
    if hook.init == "olora":
        q, r = torch.linalg.qr(weight)
        a, b = r[:rank].mT.contiguous(), q[:, :rank].mT.contiguous()
    else:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        roots = (values[:rank] / hook.scale).sqrt()
        a, b = (right[:rank].mT * roots).contiguous(), (left[:, :rank] * roots).mT.contiguous()
    return [a, b, a.clone(), b.clone()]
