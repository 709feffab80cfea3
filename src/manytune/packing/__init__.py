"""The core: many runs in one forward and backward pass over one frozen backbone.

layout.py     token-flat batches: where every token of every run lies
dropout.py    keyed randomness
context.py    what the modules of a pack share during a forward pass
bank.py       the stacked parameters
linear.py     the frozen layer with every run's own bias and LoRA update
attention.py  attention through transformers' interface
head.py       the heads
fill.py       what runs train of a backbone, put into the bank
sharing.py    a module tree anew over the same tensors
flat.py       all runs in one pass, through packed modules
padded.py     each run in its turn, through transformers' unmodified model
model.py      all of it over a transformers encoder
optim.py      AdamW and schedules, per run
"""

from manytune.packing.bank import Adaptation, Bank, BankTensor, LoraAdapter, Member
from manytune.packing.layout import Layout, build_layout
from manytune.packing.model import PackedModel
from manytune.packing.optim import PackedAdamW, schedule_factor

__all__ = [
    "Adaptation",
    "Bank",
    "BankTensor",
    "Layout",
    "LoraAdapter",
    "Member",
    "PackedAdamW",
    "PackedModel",
    "build_layout",
    "schedule_factor",
]
