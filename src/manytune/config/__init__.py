"""A study as data: what to train, on which tasks, in which ways; refused here if it cannot be right.

study.yaml ─ study_file ─> plain data ─ schema ─> Study ─ plan ─> runs, each with one concrete Method

study_file.py  the file as text: strict YAML, overrides, where each value came from
problems.py    what is wrong, in the user's words
values.py      the types that fields are made of, each with its bounds
methods.py     the concrete methods: one value for each hyper-parameter
own_task.py    a task of the user's own
sweeps.py      the entries under `methods`: several values for each
schema.py      Training and Study
plan.py        runs, packs and steps
"""

from __future__ import annotations

from manytune.config.methods import METHODS, BitFit, Full, Head, Lora, Method, choose_methods, make_method
from manytune.config.own_task import OwnTask
from manytune.config.schema import MEANS, Study, Training, digest, study_json_schema
from manytune.config.sweeps import Sweep
from manytune.config.values import TRACKERS

__all__ = [
    "MEANS",
    "METHODS",
    "TRACKERS",
    "BitFit",
    "Full",
    "Head",
    "Lora",
    "Method",
    "OwnTask",
    "Study",
    "Sweep",
    "Training",
    "choose_methods",
    "digest",
    "make_method",
    "study_json_schema",
]
