"""All runs in one pass over token-flat batches: packed modules stand in the place of transformers' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from manytune.models.loading import Backbone
from manytune.packing import flat_attention
from manytune.packing.bank import Bank, BankTensor, Member
from manytune.packing.context import Context, dropped
from manytune.packing.fill import add_adapters, add_biases, keep_sites
from manytune.packing.heads import PackedHead
from manytune.packing.layer import PackedLayer
from manytune.packing.layout import Layout
from manytune.packing.linear import PackedLayerNorm, PackedLinear
from manytune.packing.sharing import is_in_layers, shared

__all__ = ["FlatPasses"]


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
        full = any(member.adaptation.weights for member in members)
        self._encoder = shared(backbone.model, full, context.dtype, device)
        self._encoder.set_attn_implementation(flat_attention.NAME)
        self._sites = self._install()
        prefix = backbone.model_spec.prefix
        if full:
            self._train_weights(bank, prefix)
        else:
            for name, bias in add_biases(
                bank, [m.adaptation.biases for m in members], prefix, self._encoder.get_parameter
            ):
                self._sites[name.removesuffix(".bias")].biases.append(bias)
            seeds = [member.seed for member in members]
            adapters = [member.adaptation.lora for member in members]
            for path, update in add_adapters(bank, adapters, seeds, prefix, self._weight):
                self._linear(path).lora.append(update)
        self.modules = list(self._encoder.modules())
        self.pooler: PackedLinear | None = None
        if backbone.pooler is not None:
            self.pooler = self._linear(backbone.pooler)
            self._encoder.pooler = None  # it is to see the first tokens alone, and in fp32
        self._layers: list[PackedLayer] = []
        if fused and backbone.has_bert_layers:
            layers = list(self._encoder.get_submodule("encoder.layer").children())
            self._layers = [PackedLayer(layer, context, last=layer is layers[-1]) for layer in layers]

    def logits(self, layout: Layout, head: PackedHead) -> Tensor:
        """[R, B, outputs] fp32."""
        context = self.context
        training = context.keys is not None
        if self._encoder.training is not training:
            self._encoder.train(training)
        features = self._features(layout)
        context.rows = "sequences"
        if self.pooler is not None:
            features = self.pooler(features).tanh()
        return head(features, context)

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink what is beside the bank to some of the runs, before the bank shrinks."""
        linears = [module for module in self.modules if isinstance(module, PackedLinear)]
        keep_sites([site for linear in linears for site in linear.lora], runs)

    def forget_empty(self) -> None:
        """Let go of what no run of the pack has any more."""
        for module in self.modules:
            if isinstance(module, PackedLinear):
                module.lora = [site for site in module.lora if len(site.group)]
            if isinstance(module, PackedLinear | PackedLayerNorm):
                module.biases = [bias for bias in module.biases if len(bias.group)]

    def _features(self, layout: Layout) -> Tensor:
        """[S, H] fp32: each sequence's first token, or the mean of its tokens, as the family's head sees it."""
        inputs = {
            "input_ids": layout.ids,
            "position_ids": (layout.within + self._backbone.first_position)[None],
        }
        if self._backbone.model_spec.token_types:
            inputs["token_type_ids"] = layout.types
        if not self._layers:
            hidden: Tensor = self._encoder(**inputs, pack=self.context).last_hidden_state[0].float()
            if not self._backbone.mean_pooling:
                return hidden.index_select(0, layout.starts)
            return torch.segment_reduce(hidden[: layout.tokens], "mean", lengths=layout.lengths)
        children = dict(self._encoder.named_children())
        stream: Tensor = children["embeddings"](**inputs)[0]
        if "embeddings_project" in children:  # ELECTRA's, where its embeddings are narrower than its layers
            stream = children["embeddings_project"](stream)
        low = stream.to(self.context.dtype, copy=True)
        for layer in self._layers:
            stream, low = layer(stream, low)
        return stream

    def _linear(self, path: str) -> PackedLinear:
        site = self._sites[path]
        if not isinstance(site, PackedLinear):
            raise ValueError(f"{path} is not a linear layer")
        return site

    def _weight(self, path: str) -> Tensor:
        return self._linear(path).weight

    def _install(self) -> dict[str, PackedLinear | PackedLayerNorm]:
        """Put the packed modules in the place of transformers' own; gives linear layers and norms by their paths."""
        sites = {}
        for path, module in list(self._encoder.named_modules()):
            new = self._packed(module, path)
            if new is None:
                continue
            parent, _, child = path.rpartition(".")
            setattr(self._encoder.get_submodule(parent), child, new)
            if isinstance(new, PackedLinear | PackedLayerNorm):
                sites[path] = new
        return sites

    def _packed(self, module: nn.Module, path: str) -> nn.Module | None:
        if type(module) is nn.Linear:
            # What comes before the layers makes the fp32 stream; the pooler sees one row a sequence.
            dtype = self.context.dtype if is_in_layers(path) else torch.float32
            return PackedLinear(module, path, self.context, dtype)
        if type(module) is nn.LayerNorm:
            return PackedLayerNorm(module, self.context)
        if type(module) is nn.Dropout:
            return _KeyedDropout(module.p, path, self.context)
        if type(module) is nn.Embedding:
            return _Embedding(module)
        return None

    def _train_weights(self, bank: Bank, prefix: str) -> None:
        """Full fine-tuning: the backbone's own tensors are the bank of a pack of one."""
        group = bank.group(0, 1)
        for name, parameter in list(self._encoder.named_parameters()):
            parameter.requires_grad_(True)
            tensor = BankTensor(f"{prefix}.{name}", "backbone", group, parameter, stacked=False)
            site = self._sites.get(name.removesuffix(".weight"))
            if isinstance(site, PackedLinear) and name.endswith(".weight") and site.dtype != parameter.dtype:
                tensor.low = site.weight = nn.Parameter(parameter.detach().to(site.dtype))
            bank.add(tensor)


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
    """An embedding whose gradient is sparse: few of its rows are in a batch; see PackedAdamW."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.padding_idx = embedding.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight, self.padding_idx, sparse=self.weight.requires_grad)
