"""Task types, one file each: everything that depends on what a label is."""

from manytune.data.task_types import installed
from manytune.data.task_types.base import TASK_TYPES, Scale, TaskType, get_task_type, register

__all__ = ["TASK_TYPES", "Scale", "TaskType", "get_task_type", "installed", "register"]
