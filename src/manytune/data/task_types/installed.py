"""The task types that every process knows: the package's own, and those of installed packages."""

from __future__ import annotations

from importlib.metadata import entry_points

from manytune.data.task_types.base import register
from manytune.data.task_types.classification import Classification
from manytune.data.task_types.regression import Regression

for _kind in (Classification, Regression):
    register(_kind())
# Worker processes import this module as well, so they know the types of packages, though not those that a program
# registers by a call of its own.
for _entry in entry_points(group="manytune.task_types"):
    register(_entry.load()())
