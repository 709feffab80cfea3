"""Each run in its turn through transformers' unmodified model, in padded batches.

This is for architectures whose attention does not go through transformers' interface, and for those that have no row
in the table of families. DeBERTa projects its position embeddings, which belong to no sequence, by the very layers
that runs adapt: so one pass cannot serve several runs. The frozen tensors are shared all the same. During its turn a
run's biases, gains and head stand in for the model's own, torch's forward hooks do what else its hooks say, and every
call of dropout is keyed. A turn sees one run alone, so neither a neighbour's NaN nor its lengths count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN

from manytune.models.families import family_of
from manytune.models.loading import Backbone
from manytune.packing.bank import Bank, BankTensor, Earlier, Member, multiples
from manytune.packing.context import Context, dropped
from manytune.packing.dropout import Drop, head_keys, numbered_keys
from manytune.packing.heads import PackedHead
from manytune.packing.hooks import HookSites, ModuleHooks
from manytune.packing.initial import begin_anew
from manytune.packing.layout import Layout
from manytune.packing.sharing import shared
from manytune.utils.errors import ModelError


class PaddedPasses:
    """Forward passes of one run after the other."""

    def __init__(
        self, backbone: Backbone, members: Sequence[Member], bank: Bank, context: Context, device: torch.device
    ) -> None:
        """Share out the model and put what the runs train into the bank; see `PackedModel`."""
        self.context = context
        self._backbone = backbone
        self._device = device
        weights = [weight for member in members for weight in member.adaptation.weights]
        self._dtype = context.dtype if family_of(backbone.family).bf16 else torch.float32
        self.model = shared(backbone.whole, {weight.name for weight in weights}, self._dtype, device)
        self.model.set_attn_implementation("eager")  # whose dropout is a call that can be keyed
        self._turn: _Turn | None = None
        prefix = backbone.model_spec.prefix
        encoder = self.model.base_model
        self._sites = HookSites(prefix, encoder, device)
        self.hooks = self._sites.hooks
        if weights:
            group = bank.group(0, 1)
            for weight in weights:
                parameter = encoder.get_parameter(weight.name)
                begin_anew(weight, parameter.detach(), members[0].seed)
                parameter.requires_grad_(True)
                name, rates = f"{prefix}.{weight.name}", multiples([weight.rate])
                bank.add(BankTensor(name, "backbone", group, parameter, stacked=False, rates=rates))
        # The tensors that a run's own can stand in for; what it trains beside them is added by forward hooks.
        self._parameters = {name for name, _ in self.model.named_parameters()}
        self._registered: set[tuple[str, str]] = set()  # paths of modules, and where torch's hooks are on them
        self.put_in(bank, members)
        if self._dtype != torch.float32:
            pooler = [child for name, child in encoder.named_children() if name == "pooler"]
            for part in [child for child in self.model.children() if child is not encoder] + pooler:
                part.forward = _in_fp32(part.forward, device.type)

    @property
    def can_be_recorded(self) -> bool:
        """Never: the host has to know each run's longest sequence."""
        return False

    def put_in(self, bank: Bank, members: Sequence[Member], earlier: Earlier | None = None) -> None:
        """Serve other runs from now on; those that were here before keep what `earlier` has of them."""
        self._sites.fill(bank, members, earlier)
        for path, hooks in self.hooks.items():
            module = self.model.base_model.get_submodule(path)
            if hooks.input_scales and (path, "before") not in self._registered:
                module.register_forward_pre_hook(partial(self._before, hooks))
                self._registered.add((path, "before"))
            added = any(bias.name not in self._parameters for bias in hooks.biases)
            after = added or hooks.kinds & {"low_rank", "output_scales", "serial"}
            if after and (path, "after") not in self._registered:
                module.register_forward_hook(partial(self._after, hooks, f"{path}.lora"))
                self._registered.add((path, "after"))

    def logits(self, layout: Layout, head: PackedHead) -> Tensor:
        """[R, B, outputs] fp32; behind the logits of a run with fewer sequences than B stand zeros."""
        training = self.context.keys is not None
        if self.model.training is not training:
            self.model.train(training)
        counts = [last - first for first, last in pairwise(layout.sequence_bounds)]
        found = {run: self._logits_of(layout, run, head.tensors_of(run)) for run, count in enumerate(counts) if count}
        nothing = torch.zeros(0, next(iter(found.values())).shape[1], device=self._device)
        return pad_sequence([found.get(run, nothing) for run in range(layout.runs)], batch_first=True)

    def _logits_of(self, layout: Layout, run: int, head: Mapping[str, Tensor]) -> Tensor:
        """[B, outputs] fp32 of one run, with its head's tensors."""
        turn = self._begin(layout, run)
        tensors = [tensor for hooks in self.hooks.values() for tensor in (*hooks.biases, *hooks.gains)]
        replaced = {t.name: t.of_run(run) for t in tensors if t.holds(run) and t.name in self._parameters}
        inputs = {"input_ids": turn.ids, "attention_mask": turn.mask.long()}
        if self._backbone.model_spec.token_types:
            inputs["token_type_ids"] = turn.types
        half = self._dtype != torch.float32
        self._turn = turn
        with turn, torch.autocast(self._device.type, self._dtype) if half else nullcontext():
            logits: Tensor = functional_call(self.model, {**head, **replaced}, kwargs=inputs).logits
        self._turn = None
        return logits.float()

    def _begin(self, layout: Layout, run: int) -> _Turn:
        """A run's sequences, padded to the longest of them."""
        self.context.next_turn()
        sequences = slice(layout.sequence_bounds[run], layout.sequence_bounds[run + 1])
        starts, lengths = layout.starts[sequences], layout.lengths[sequences]
        positions = torch.arange(int(layout.plan.arrays["lengths"][sequences].max()), device=lengths.device)
        mask = positions < lengths[:, None]
        token = starts[:, None] + positions * mask  # a padding slot reads its sequence's first token
        keys = self.context.keys
        return _Turn(
            run,
            self.context,
            ids=layout.ids[0][token].masked_fill(~mask, self._backbone.config.pad_token_id or 0),
            types=layout.types[0][token].masked_fill(~mask, 0),
            mask=mask,
            keys=None if keys is None else _TurnKeys(keys.tokens[token], keys.sequences[sequences], keys.runs[run]),
        )

    def _before(self, hooks: ModuleHooks, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A forward pre-hook of torch's: what a module sees of the run whose turn it is."""
        turn = self._turn
        assert turn is not None
        x, *rest = inputs
        for scale in hooks.input_scales:
            if scale.holds(turn.run):
                x = (x * scale.of_run(turn.run)).to(x.dtype)
        return (x, *rest)

    def _after(self, hooks: ModuleHooks, site: str, module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """A forward hook of torch's: what the run whose turn it is makes of a module's output."""
        if isinstance(output, tuple):  # a layer that gives its attention weights too
            return self._after(hooks, site, module, inputs, output[0]), *output[1:]
        turn = self._turn
        assert turn is not None
        run, y = turn.run, output
        for bias in hooks.biases:
            if bias.holds(run) and bias.name not in self._parameters:
                y = y + bias.of_run(run).to(y.dtype)
        for update in hooks.low_rank:
            if update.group.first <= run < update.group.last:
                x = turn.drop(inputs[0], update.dropout, site)
                y = y + update.of_run(run, x, module.weight).to(y.dtype)
        for factor in hooks.output_scales:
            if factor.holds(run):
                y = (y * factor.of_run(run)).to(y.dtype)
        for adapter in hooks.serial:
            if adapter.down.holds(run):
                inner = ACT2FN[adapter.activation](y @ adapter.down.of_run(run) + adapter.down_bias.of_run(run))
                added = (inner @ adapter.up.of_run(run) + adapter.up_bias.of_run(run)).to(y.dtype)
                y = module.forward(inputs[0] + added) if adapter.renorms else y + added
        return y


@dataclass(frozen=True)
class _TurnKeys:
    """Dropout keys of a turn."""

    slots: Tensor  # [B, L] int32, those of the tokens, as they are in the flat layout
    sequences: Tensor  # [B] int32
    run: Tensor  # [] int32, for rows that are of no sequence

    def for_shape(self, shape: torch.Size) -> Tensor:
        """[n] int32 keys of the rows of what has the shape [..., c]; they do not depend on the padded length.

        What a row is, its shape says: a token [B, L, c], a query of a head [B, heads, L, c], a sequence [B, c].
        """
        batch, length = self.slots.shape
        rows = tuple(shape[:-1])
        if rows == (batch, length):
            return self.slots.flatten()
        if len(rows) == 3 and rows[::2] == (batch, length):
            return head_keys(self.slots, rows[1]).flatten()
        if rows == (batch,):
            return self.sequences
        return numbered_keys(self.run, math.prod(rows))


@dataclass(eq=False)
class _Turn(TorchFunctionMode):
    """The turn of one run; while it lasts, every dropout is keyed and nothing else may be drawn."""

    run: int  # its number in the pack
    context: Context
    ids: Tensor  # [B, L] int64
    types: Tensor  # [B, L] int64
    mask: Tensor  # [B, L] bool, False where a slot is padding
    keys: _TurnKeys | None

    def drop(self, x: Tensor, p: float, site: str) -> Tensor:
        """Keyed dropout of x [..., c] at this call of a site."""
        key = self.context.site(site)
        if self.keys is None or p == 0:
            return x
        return dropped(x, Drop(self.keys.for_shape(x.shape), key, p), self.context.kernels)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._keyed_dropout(*args, **kwargs)
        if func in _DRAWS and self.keys is not None:
            raise ModelError(
                f"model: this architecture draws random numbers of its own ({func.__name__}) while it trains, so a "
                "run would not come out the same in another pack. Choose one that draws for dropout alone."
            )
        return func(*args, **kwargs)

    def _keyed_dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """What stands in for torch's, with its arguments."""
        return self.drop(input, p, "dropout") if training else input


_DRAWS = frozenset(
    {
        *(torch.rand, torch.rand_like, torch.randn, torch.randn_like, torch.randint, torch.randperm, torch.bernoulli),
        *(torch.multinomial, Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_),
        *(F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    }
)


def _in_fp32(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The forward of a part of the head, or of the pooler: in fp32, whatever the encoder's layers compute in."""

    def call(*inputs: Any, **named: Any) -> Any:
        with torch.autocast(device, enabled=False):
            raised = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
            return forward(*raised, **named)

    return call
