"""Reports: pure functions of what a study directory holds.

report_data → analysis → answer, tables (score_sheets, published, mistakes), charts, drawing → content → page
                                                                          figures, for a paper → writing → folder

`task_table` and `views` are what the terminal shows, `compare` what changed between two studies, `live_page/` a page
that shows a study while it trains. The commands import `writing` and `compare` themselves: `status` does without.
"""

from __future__ import annotations

from manytune.report.task_table import MethodRow, MetricSummary, TaskTable, render, tabulate

__all__ = ["MethodRow", "MetricSummary", "TaskTable", "render", "tabulate"]
