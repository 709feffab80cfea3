"""Many runs over one frozen backbone: its tensors are shared, each run gets its own bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manytune.models.loading import Backbone
from manytune.packing.bank import Bank, Member
from manytune.packing.context import Context
from manytune.packing.dropout import Keys
from manytune.packing.flat_passes import FlatPasses
from manytune.packing.heads import PackedHead
from manytune.packing.kernels import choose_kernels
from manytune.packing.layout import Layout
from manytune.packing.padded_passes import PaddedPasses


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
        if len(members) > 1 and any(member.adaptation.weights for member in members):
            raise ValueError("a run that trains every weight is a pack of one")
        self._passes: FlatPasses | PaddedPasses
        if backbone.model_spec.padded:
            self._passes = PaddedPasses(backbone, members, self.bank, self.context, self.device)
        else:
            self._passes = FlatPasses(backbone, members, self.bank, self.context, self.device, fused=fused)
        self._head = PackedHead(
            backbone.model_spec.head,
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
        self.context.begin(layout, None if step is None else Keys.build(layout, self.seeds, step))
        logits = self._passes.logits(layout, self._head)
        self.context.end()
        return logits

    def keep(self, runs: Sequence[int]) -> None:
        """Shrink the pack to some of its runs, given by their present numbers in ascending order."""
        for hooks in self._passes.hooks.values():
            hooks.keep(runs)
        self.bank.keep(runs)
        for hooks in self._passes.hooks.values():
            hooks.forget_empty()
        self.seeds = [self.seeds[run] for run in runs]
