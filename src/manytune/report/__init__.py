"""Reports: pure functions of the records."""

from __future__ import annotations

from manytune.report.table import MethodRow, MetricSummary, TaskTable, render, tabulate

__all__ = ["MethodRow", "MetricSummary", "TaskTable", "render", "tabulate"]
