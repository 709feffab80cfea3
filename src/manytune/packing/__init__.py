"""The core: many runs in one forward and backward pass over one frozen backbone.

layout (where every token of every run lies) ─ model ─> flat_passes (all runs in one pass; layer, linear, buckets) or
padded_passes (each run in its turn) ─> heads ─> logits; bank and hooks hold what trains, optim steps it
"""

from manytune.packing.bank import Bank, BankTensor, Member
from manytune.packing.dropout import run_keys
from manytune.packing.layout import Layout, build_layout, plan_batch
from manytune.packing.model import PackedModel
from manytune.packing.optim import PackedAdamW, schedule_factor

__all__ = [
    "Bank",
    "BankTensor",
    "Layout",
    "Member",
    "PackedAdamW",
    "PackedModel",
    "build_layout",
    "plan_batch",
    "run_keys",
    "schedule_factor",
]
