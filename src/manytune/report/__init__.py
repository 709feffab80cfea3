"""Reports: pure functions of what a study directory holds.

directories ─ report_data ─> ReportData ─ analysis ─> an Analysis for each task and backbone ─ answer, score_sheets,
charts, figures, drawing ─> values ─ content ─> the sections in order ─ page, writing ─> files

The commands import `writing` and `compare` themselves: `status` does without.
"""

from __future__ import annotations

from manytune.report.task_table import MethodRow, MetricSummary, TaskTable, render, tabulate

__all__ = ["MethodRow", "MetricSummary", "TaskTable", "render", "tabulate"]
