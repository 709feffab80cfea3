"""Many runs over one frozen backbone: the module tree is shared out, each run gets its own bank."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.backbones import Backbone
from manytune.packing import attention
from manytune.packing.bank import Adaptation, Bank, BankTensor, Group, LoraAdapter
from manytune.packing.context import Context
from manytune.packing.dropout import Drop, Keys, generator
from manytune.packing.head import PackedHead
from manytune.packing.kernels import Kernels, choose_kernels
from manytune.packing.layer import PackedLayer
from manytune.packing.layout import Layout
from manytune.packing.linear import LoraSite, PackedLayerNorm, PackedLinear

__all__ = ["Member", "PackedModel"]

T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """What the model needs to know of one run: its seed and what it trains."""

    seed: int
    adaptation: Adaptation


class PackedModel:
    """The backbone with the banks of R runs.

    Attributes:
        bank: Every tensor that belongs to a run.
        seeds: Of the runs now in the pack, in order.
    """

    def __init__(
        self,
        backbone: Backbone,
        members: Sequence[Member],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        fused: bool = True,
    ) -> None:
        """Build the pack's model.

        Args:
            backbone: The pretrained encoder; its tensors are shared, not copied, unless they train or have to
                change dtype or device.
            members: The runs; equal adaptations should stand next to each other, so that they form one group.
            dtype: Of the frozen weights and the activations; trained parameters are fp32.
            device: Where everything lives.
            fused: Use our own encoder layers where the family has them, rather than transformers' modules; the
                results are the same to rounding.
        """
        self.device = torch.device(device)
        self.seeds = [member.seed for member in members]
        self.bank = Bank()
        self.context = Context(dtype, choose_kernels(self.device))
        self._backbone = backbone
        full = any(member.adaptation.weights for member in members)
        if full and len(members) > 1:
            raise ValueError("a run that trains every weight is a pack of one")
        self._encoder = _share(backbone.model, full, dtype, self.device)
        self._encoder.set_attn_implementation(attention.NAME)
        self._pooler: nn.Module | None = None
        if backbone.has_pooler:
            self._pooler = self._encoder.get_submodule("pooler")
            self._encoder.pooler = None
        self._install()
        if full:
            self._train_weights()
        else:
            self._add_biases([member.adaptation.biases for member in members])
            self._add_adapters([member.adaptation.lora for member in members])
        self._layers: list[PackedLayer] = []
        if fused and backbone.has_bert_layers:
            layers = list(self._encoder.get_submodule("encoder.layer").children())
            self._layers = [PackedLayer(layer, self.context, last=layer is layers[-1]) for layer in layers]
        self._head = PackedHead(
            backbone.anatomy.head,
            self.seeds,
            [member.adaptation.head for member in members],
            self.bank,
            self.device,
        )

    def forward(self, layout: Layout, *, step: int | None = None) -> Tensor:
        """Logits [R, B, outputs] in fp32 of a packed batch.

        Args:
            layout: The batch, sorted by run.
            step: The optimizer step, which keys the dropout masks; None evaluates, without dropout.
        """
        context = self.context
        training = step is not None
        context.begin(layout, None if step is None else Keys.build(layout, self.seeds, step))
        if self._encoder.training is not training:
            self._encoder.train(training)
        features = self._features(layout)
        context.rows = "sequences"
        if self._pooler is not None:
            features = self._pooler(features[:, None, :])
        logits = self._head(features, context)
        context.end()
        return logits

    def _features(self, layout: Layout) -> Tensor:
        """[S, H] fp32: what the encoder makes of each sequence's first token."""
        inputs = {
            "input_ids": layout.ids,
            "position_ids": (layout.within + self._backbone.first_position)[None],
            "token_type_ids": layout.types,
        }
        if not self._layers:
            hidden: Tensor = self._encoder(**inputs, pack=self.context).last_hidden_state
            return hidden[0].index_select(0, layout.starts).float()
        stream: Tensor = self._encoder.get_submodule("embeddings")(**inputs)[0]
        low = stream.to(self.context.dtype, copy=True)
        for layer in self._layers:
            stream, low = layer(stream, low)
        return stream

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink the pack to some of its runs, given by their present numbers in ascending order."""
        sites = [site for module in self._modules() for site in getattr(module, "lora", ())]
        for site in sites:
            group = site.group
            site.scale = site.scale[[run - group.first for run in runs if group.first <= run < group.last]]
        self.bank.keep(runs)
        self.seeds = [self.seeds[run] for run in runs]
        for module in self._modules():
            if isinstance(module, PackedLinear):
                module.lora = [site for site in module.lora if len(site.group)]
            if isinstance(module, PackedLinear | PackedLayerNorm):
                module.biases = [bias for bias in module.biases if len(bias.group)]

    def _roots(self) -> dict[str, nn.Module]:
        """The backbone's module trees, by the prefix of their paths in the backbone."""
        return {"": self._encoder} if self._pooler is None else {"": self._encoder, "pooler.": self._pooler}

    def _modules(self) -> list[nn.Module]:
        return [module for root in self._roots().values() for module in root.modules()]

    def _install(self) -> None:
        """Put the packed modules in the place of transformers' own."""
        self._sites: dict[str, PackedLinear | PackedLayerNorm] = {}
        for prefix, root in self._roots().items():
            for path, module in list(root.named_modules()):
                new = self._packed(module, prefix + path)
                if new is None:
                    continue
                parent, _, child = path.rpartition(".")
                setattr(root.get_submodule(parent), child, new)
                if isinstance(new, PackedLinear | PackedLayerNorm):
                    self._sites[prefix + path] = new

    def _packed(self, module: nn.Module, path: str) -> nn.Module | None:
        if type(module) is nn.Linear:
            # The pooler sees one row a sequence and works in fp32.
            dtype = torch.float32 if path.startswith("pooler.") else self.context.dtype
            return PackedLinear(module, path, self.context, dtype)
        if type(module) is nn.LayerNorm:
            return PackedLayerNorm(module, self.context)
        if type(module) is nn.Dropout:
            return _KeyedDropout(module.p, path, self.context)
        if type(module) is nn.Embedding:
            return _Embedding(module)
        return None

    def _train_weights(self) -> None:
        """Full fine-tuning: the backbone's own tensors are the bank of a pack of one."""
        group = self.bank.group(0, 1)
        prefix = self._backbone.anatomy.prefix
        for start, root in self._roots().items():
            for name, parameter in list(root.named_parameters()):
                parameter.requires_grad_(True)
                tensor = BankTensor(f"{prefix}.{start}{name}", "backbone", group, parameter, stacked=False)
                site = self._sites.get(start + name.removesuffix(".weight"))
                if isinstance(site, PackedLinear) and name.endswith(".weight") and site.dtype != parameter.dtype:
                    tensor.low = site.weight = nn.Parameter(parameter.detach().to(site.dtype))
                self.bank.add(tensor)

    def _add_biases(self, biases: Sequence[tuple[str, ...]]) -> None:
        prefix = self._backbone.anatomy.prefix
        for first, last, names in _stretches(biases):
            group = self.bank.group(first, last)
            for name in names:
                site = self._sites[name.removesuffix(".bias")]
                start = site.bias.detach().expand(last - first, -1).clone()
                tensor = BankTensor(f"{prefix}.{name}", "bias", group, nn.Parameter(start))
                site.biases.append(self.bank.add(tensor))

    def _add_adapters(self, adapters: Sequence[LoraAdapter | None]) -> None:
        # Runs of one group may differ in alpha, which is but a factor.
        kinds = [None if a is None else replace(a, alpha=1.0) for a in adapters]
        for first, last, kind in _stretches(kinds):
            group = self.bank.group(first, last)
            alphas = [a.alpha for a in adapters[first:last] if a is not None]
            scale = torch.tensor([alpha / kind.rank for alpha in alphas], device=self.device)
            for path in kind.targets:
                site = self._sites[path]
                if not isinstance(site, PackedLinear):
                    raise ValueError(f"{path} is not a linear layer")
                a, b = self._factors(path, site, kind.rank, group)
                site.lora.append(LoraSite(a, b, scale.clone(), kind.dropout))

    def _factors(self, path: str, site: PackedLinear, rank: int, group: Group) -> tuple[BankTensor, BankTensor]:
        """A from peft's Kaiming-uniform draw, keyed by each run's seed; B zero: no update at first."""
        outputs, inputs = site.weight.shape
        draws = []
        for seed in self.seeds[group.first : group.last]:
            weight = torch.empty(rank, inputs)
            nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator("lora", seed, path, rank))
            draws.append(weight.mT)
        a = nn.Parameter(torch.stack(draws).contiguous().to(self.device))
        b = nn.Parameter(torch.zeros(len(group), rank, outputs, device=self.device))
        name = f"{self._backbone.anatomy.prefix}.{path}"
        return (
            self.bank.add(BankTensor(f"{name}.lora_A.weight", "adapter", group, a, transposed=True)),
            self.bank.add(BankTensor(f"{name}.lora_B.weight", "adapter", group, b, transposed=True)),
        )


class _KeyedDropout(nn.Module):
    """Dropout of x [..., c] whose flattened rows have keys in the context."""

    def __init__(self, p: float, path: str, context: Context) -> None:
        super().__init__()
        self.p = p
        self.path = path
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        drop = self.context.drop(self.path, self.p)
        if drop is None:
            return x
        dropped: Tensor = _Dropped.apply(x.reshape(-1, x.shape[-1]), drop, self.context.kernels)
        return dropped.view(x.shape)


class _Dropped(torch.autograd.Function):
    """Dropout of rows; the mask is hashed again for the gradient rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, drop: Drop, kernels: Kernels) -> Tensor:
        ctx.drop, ctx.kernels = drop, kernels
        return kernels.drop(x.contiguous(), drop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kernels.drop(grad.contiguous(), ctx.drop), None, None


class _Embedding(nn.Module):
    """An embedding whose gradient is sparse: few of its rows are in a batch; see PackedAdamW."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight, self.padding_idx, sparse=self.weight.requires_grad)


def _share(model: PreTrainedModel, full: bool, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A new module tree over the same tensors; over tensors of its own where they train.

    Frozen matrices are cast to `dtype`, for products; not embeddings, of which few rows are read at a time, nor
    biases and norms, which add up in fp32, nor the pooler, which works in it.
    """
    products = {
        id(module.weight)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not path.startswith("pooler.")
    }
    memo: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        wanted = dtype if id(tensor) in products and not full else tensor.dtype
        new = tensor.detach().to(device, wanted, copy=full)
        memo[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(model, memo)


def _stretches(items: Sequence[T | None]) -> list[tuple[int, int, T]]:
    """Neighbours with equal, non-empty items: (first, last, item)."""
    found: list[tuple[int, int, T]] = []
    first = 0
    for item, members in groupby(items):
        last = first + len(list(members))
        if item:
            found.append((first, last, item))
        first = last
    return found
