"""Many runs over one frozen backbone: its tensors are shared, each run gets its own bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from manytune.models.loading import Backbone
from manytune.packing import dropout
from manytune.packing.bank import Bank, Earlier, Member
from manytune.packing.context import Context
from manytune.packing.dropout import Keys
from manytune.packing.flat_passes import FlatPasses
from manytune.packing.heads import PackedHead
from manytune.packing.kernels import choose_kernels
from manytune.packing.layout import Layout
from manytune.packing.padded_passes import PaddedPasses
from manytune.utils.hardware import use_exact_products


class PackedModel:
    """The backbone with the banks of R runs."""

    def __init__(
        self,
        backbone: Backbone,  # its tensors are shared, not copied, unless they train or have to change dtype or device
        members: Sequence[Member],  # the runs; neighbours with equal adaptations form one group
        *,
        dtype: torch.dtype = torch.float32,  # of the frozen weights and the activations; trained parameters are fp32
        device: torch.device | str = "cpu",
        fused: bool = True,  # use our own encoder layers where the family has them; results are the same to rounding
    ) -> None:
        use_exact_products()
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # Triton launches on the current one, wherever the tensors are
        self.spec = backbone.model_spec
        self.members = list(members)  # the runs now in the pack, in order
        self.version = 0  # grows with every change of the runs, which moves the bank's tensors
        self.bank = Bank()  # every tensor that belongs to a run
        self.context = Context(dtype, choose_kernels(self.device))
        if len(members) > 1 and any(member.adaptation.weights for member in members):
            raise ValueError("a run that trains every weight is a pack of one")
        self._passes: FlatPasses | PaddedPasses
        if backbone.model_spec.padded:
            self._passes = PaddedPasses(backbone, members, self.bank, self.context, self.device)
        else:
            self._passes = FlatPasses(backbone, members, self.bank, self.context, self.device, fused=fused)
        self._head = PackedHead(backbone.model_spec.head, members, self.bank, self.device)

    @property
    def seeds(self) -> list[int]:
        """Of the runs now in the pack, in order."""
        return [member.seed for member in self.members]

    @property
    def rounds_rows(self) -> bool:
        """Whether batches are to be laid out `rounded`: not for products of our own, which serve any number of rows."""
        return not (self.context.kernels.multiplies and self.context.dtype == torch.float32)

    @property
    def can_be_recorded(self) -> bool:
        """Whether a step reads nothing of its batch on the host but `Plan.shape`."""
        return self.context.kernels.fuses and self._passes.can_be_recorded

    def forward(
        self, layout: Layout, *, step: int | Sequence[int] | None = None, run_keys: Tensor | None = None
    ) -> Tensor:
        """Logits [R, B, outputs] in fp32 of a packed batch sorted by run.

        Of a run with fewer sequences than B, what stands behind its own logits means nothing. The optimizer step, one
        for all runs or one for each, keys the dropout masks; so do `run_keys` [R] int32, what `dropout.run_keys` makes
        of it, on the device. Without either it evaluates, without dropout.
        """
        if run_keys is None and step is not None:
            run_keys = torch.from_numpy(dropout.run_keys(self.seeds, step)).to(self.device)
        keys = None
        if run_keys is not None:
            keys = Keys.of_tokens(layout, run_keys, self.context.kernels.token_keys(layout, run_keys))
        self.context.begin(layout, keys)
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
        self.members = [self.members[run] for run in runs]
        self.version += 1

    def rearrange(self, members: Sequence[Member], numbers: Sequence[int | None]) -> None:
        """Let runs join: from now on the pack is of `members`, in this order.

        `numbers` has for each its present number, None for a run that begins; a run whose number is missing leaves.
        What follows is to the bit what a new model of `members` computes with the same tensors. Raises ValueError
        where a run trains every weight: such a run is a pack of one.
        """
        if any(member.adaptation.weights for member in (*self.members, *members)):
            raise ValueError("a run that trains every weight is a pack of one: no run joins it, and it joins none")
        earlier = Earlier(self.bank.let_go(), numbers)
        self._passes.put_in(self.bank, members, earlier)
        self._head = PackedHead(self._head.spec, members, self.bank, self.device, earlier)
        self.members = list(members)
        self.version += 1
