"""All runs in one pass over token-flat batches: packed modules stand in the place of transformers' own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from manytune.methods.adaptation import Weight
from manytune.models.families import family_of
from manytune.models.loading import Backbone
from manytune.packing import flat_attention
from manytune.packing.bank import Bank, BankTensor, Earlier, Member, multiples
from manytune.packing.context import Context, dropped
from manytune.packing.heads import PackedHead
from manytune.packing.hooks import HookSites, ModuleHooks
from manytune.packing.initial import begin_anew
from manytune.packing.layer import PackedLayer, served_kinds
from manytune.packing.layout import Layout
from manytune.packing.linear import PackedLayerNorm, PackedLinear, adapted
from manytune.packing.positions import PositionBias, PositionedAttention
from manytune.packing.sharing import is_in_layers, shared

_Layer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""An encoder layer, called as a `PackedLayer` is."""


class FlatPasses:
    """Forward passes of all runs together, for architectures whose attention goes through transformers' interface."""

    def __init__(
        self,
        backbone: Backbone,
        members: Sequence[Member],
        bank: Bank,
        context: Context,
        device: torch.device,
        *,
        fused: bool,
    ) -> None:
        """Share out the backbone and put what the runs train into the bank; see `PackedModel`."""
        self.context = context
        self._backbone = backbone
        self._positions: PositionBias | None = None
        self._adapted: set[str] = set()  # paths of the modules behind which bottlenecks may stand
        weights = {weight.name: weight for member in members for weight in member.adaptation.weights}
        self._encoder = shared(backbone.model, weights, context.dtype, device)
        if backbone.position_bias is None:
            self._encoder.set_attn_implementation(flat_attention.NAME)
        prefix = backbone.model_spec.prefix
        self._sites = HookSites(prefix, self._encoder, device)
        self.hooks = self._sites.hooks
        self._sites.fill(bank, members)
        self._install()
        if weights:
            self._train_weights(bank, prefix, weights, members[0].seed)
        self.pooler: PackedLinear | None = None
        if backbone.pooler is not None:
            self.pooler = self._encoder.get_submodule(backbone.pooler)
            self._encoder.pooler = None  # it is to see the first tokens alone, and in fp32
        self._names = backbone.layer_names if fused else None
        self._own_layers: dict[str, PackedLayer] = {}  # as far as they were needed so far
        self._layers = self._choose_layers()

    def put_in(self, bank: Bank, members: Sequence[Member], earlier: Earlier) -> None:
        """Serve other runs from now on; those that were here before keep what `earlier` has of them."""
        self._sites.fill(bank, members, earlier)
        self._serve_hooks()
        self._layers = self._choose_layers()

    @property
    def can_be_recorded(self) -> bool:
        """Whether every layer is one of ours, and no hook is of a kind that walks over the bounds of runs."""
        own = bool(self._layers) and all(isinstance(layer, PackedLayer) for layer in self._layers)
        return own and all(
            hooks.kinds <= {"biases", "low_rank"} and all(update.can_be_recorded for update in hooks.low_rank)
            for hooks in self.hooks.values()
        )

    def logits(self, layout: Layout, head: PackedHead) -> Tensor:
        """[R, B, outputs] fp32."""
        context = self.context
        training = context.keys is not None
        if self._encoder.training is not training:  # telling every module takes a while
            self._encoder.train(training)
        if self._positions is not None:
            context.position_bias = self._positions()
        features = self._features(layout)
        context.rows = "sequences"
        if self.pooler is not None:
            features = self.pooler(features).tanh()
        return head(features, context)

    def _features(self, layout: Layout) -> Tensor:
        """[S, H] fp32: each sequence's first token, or the mean of its tokens, as the family's head sees it."""
        positions = (layout.within + self._backbone.first_position)[None]
        inputs = {"input_ids": layout.ids, "position_ids": positions}
        if self._backbone.model_spec.token_types:
            inputs["token_type_ids"] = layout.types
        if not self._layers:
            hidden: Tensor = self._encoder(**inputs, pack=self.context).last_hidden_state[0].float()
            if not self._backbone.mean_pooling:
                return hidden.index_select(0, layout.starts)
            return torch.segment_reduce(hidden[: layout.tokens], "mean", lengths=layout.lengths, unsafe=True)
        children = dict(self._encoder.named_children())
        residual: Tensor = children["embeddings"](**inputs)[0]
        if "embeddings_project" in children:  # ELECTRA's, where its embeddings are narrower than its layers
            residual = children["embeddings_project"](residual)
        hidden = residual.to(self.context.dtype, copy=True)
        for layer in self._layers:
            residual, hidden = layer(residual, hidden)
        return residual

    def _install(self) -> None:
        """Put packed modules in the place of transformers' own, and the bottlenecks behind the modules they are for."""
        if self._backbone.position_bias is not None:
            self._add_positions(self._backbone.position_bias)
        for path, module in list(self._encoder.named_modules()):
            new = self._packed(module, path)
            if new is not None:
                self._encoder.set_submodule(path, new)
        self._modules = dict(self._encoder.named_modules())  # with the pooler, which is taken out of the encoder
        self._serve_hooks()

    def _serve_hooks(self) -> None:
        """Refuse hooks that no packed module applies, and put bottlenecks behind the modules that they are for."""
        for path, hooks in self.hooks.items():
            if not hooks.kinds:
                continue
            packed = self._modules[path]
            served = _SERVED.get(type(packed), {"serial"} if is_in_layers(path) else set())
            if not hooks.kinds <= served or any(not bias.name.endswith(f"{path}.bias") for bias in hooks.biases):
                raise ValueError(f"{', '.join(hooks.kinds)}: no hooks of this kind can stand on {path}")
            if hooks.serial and path not in self._adapted:
                packed.register_forward_hook(partial(_adapt_output, self.context, hooks))
                self._adapted.add(path)

    def _add_positions(self, path: str) -> None:
        """Let attention add a bias by relative position: transformers' own modules for it take padded batches alone."""
        family, encoder = family_of(self._backbone.family), self._encoder
        assert family.layer is not None
        buckets = encoder.get_submodule(path.rpartition(".")[0]).relative_position_bucket
        table = encoder.get_submodule(path).weight
        self._positions = PositionBias(table, buckets, self._backbone.model_spec.max_length)
        encoder.set_submodule(path, self._positions)
        heads = self._backbone.config.num_attention_heads
        for name, layer in encoder.get_submodule("encoder.layer").named_children():
            attention = PositionedAttention(layer, family.layer, self.context, heads)
            encoder.set_submodule(f"encoder.layer.{name}.{family.layer.attention}", attention)

    def _packed(self, module: nn.Module, path: str) -> nn.Module | None:
        if type(module) is nn.Linear:
            # What comes before the layers makes the fp32 residuals; the pooler sees one row a sequence.
            dtype = self.context.dtype if is_in_layers(path) else torch.float32
            return PackedLinear(module, path, self.context, dtype, self.hooks[path])
        if type(module) is nn.LayerNorm:
            return PackedLayerNorm(module, self.context, self.hooks[path])
        if type(module) is nn.Dropout:
            return _KeyedDropout(module.p, path, self.context)
        if type(module) is nn.Embedding:
            return _Embedding(module)
        return None

    def _choose_layers(self) -> list[_Layer]:
        """Our own layers, but transformers' modules where a hook asks for what ours do not know."""
        if self._names is None and self._positions is None:
            return []
        found: list[_Layer] = []
        served = {} if self._names is None else served_kinds(self._names)
        unknown = set()  # numbers of layers
        for path, hooks in self.hooks.items():
            if match := _IN_LAYER.fullmatch(path):
                unknown |= set() if hooks.kinds <= served.get(match[2], set()) else {match[1]}
        layers = list(self._encoder.get_submodule("encoder.layer").named_children())
        for name, layer in layers:
            last = layer is layers[-1][1]
            if self._names is None or name in unknown:
                found.append(partial(_through_modules, layer, self.context, last))
                continue
            if name not in self._own_layers:
                heads = self._backbone.config.num_attention_heads
                self._own_layers[name] = PackedLayer(
                    layer, self._names, self.context, self.hooks, heads=heads, last=last
                )
            found.append(self._own_layers[name])
        return found

    def _train_weights(self, bank: Bank, prefix: str, weights: Mapping[str, Weight], seed: int) -> None:
        """Full fine-tuning: the backbone's own tensors are the bank of a pack of one."""
        group = bank.group(0, 1)
        for name, parameter in list(self._encoder.named_parameters()):
            weight = weights.get(name)
            if weight is None:
                continue
            begin_anew(weight, parameter.detach(), seed)
            parameter.requires_grad_(True)
            rates = multiples([weight.rate])
            tensor = BankTensor(f"{prefix}.{name}", "backbone", group, parameter, stacked=False, rates=rates)
            module = self._encoder.get_submodule(name.rpartition(".")[0])
            if isinstance(module, PackedLinear) and name.endswith(".weight") and module.dtype != parameter.dtype:
                tensor.compute_copy = module.weight = nn.Parameter(parameter.detach().to(module.dtype))
            bank.add(tensor)


_IN_LAYER = re.compile(r"encoder\.layer\.(\d+)\.?(.*)")
"""The number of a layer, and the path inside it, which is empty for the layer itself."""

_SERVED: dict[type, set[str]] = {
    PackedLinear: {"biases", "input_scales", "output_scales", "low_rank", "serial"},
    PackedLayerNorm: {"biases", "gains", "serial"},
}
"""The kinds of hooks that a packed module applies; a bottleneck may stand behind any part of an encoder layer."""


def _through_modules(
    layer: nn.Module, context: Context, last: bool, residual: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """One layer of the encoder by transformers' modules with packed ones inside; see `PackedLayer.__call__`."""
    out = layer(residual[None], pack=context)
    out = (out[0] if isinstance(out, tuple) else out)[0]
    if last:
        assert context.layout is not None
        context.rows = "sequences"
        out = out.index_select(0, context.layout.starts)
    return out, out.to(hidden.dtype, copy=True)


def _adapt_output(context: Context, hooks: ModuleHooks, module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook of torch's: the runs' bottlenecks behind a module; none once those runs have left the pack."""
    if isinstance(output, tuple):
        return _adapt_output(context, hooks, module, inputs, output[0]), *output[1:]
    again = [adapter for adapter in hooks.serial if adapter.renorms]
    behind = [adapter for adapter in hooks.serial if not adapter.renorms]
    if again:  # a run without one has the same sums normed again, which changes no bit
        output = module.forward(adapted(output, again, context, onto=inputs[0]))
    return adapted(output, behind, context) if behind else output


class _KeyedDropout(nn.Module):
    """Dropout of x [..., c] whose flattened rows have keys in the context."""

    def __init__(self, p: float, path: str, context: Context) -> None:
        super().__init__()
        self.p = p
        self.path = path
        self.context = context

    def forward(self, x: Tensor) -> Tensor:
        drop = self.context.drop(self.path, self.p)
        return x if drop is None else dropped(x, drop, self.context.kernels)


class _Embedding(nn.Module):
    """An embedding whose gradient is sparse on a CPU: few of its rows are in a batch; see PackedAdamW.

    A GPU updates all rows in less time than it takes to find those of the batch, for which the host has to wait.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(
            ids, self.weight, self.padding_idx, sparse=self.weight.requires_grad and self.weight.device.type == "cpu"
        )
