"""Reports: pure functions of what a study directory holds.

source.py     directories → data
table.py      records → one table a task; what `run` prints
analysis.py   data → one analysis for each task and backbone, with its statistics
answer.py     the answer in words
tables.py, published.py, mistakes.py   tables as data (`sheets.py`)
series.py     what is drawn; charts.py for the page, figures.py for a paper, drawing.py for the model
content.py    the parts of a report in their order
page.py       content → one HTML file; write.py → all files
compare.py    what changed between two studies
views.py      what the commands print besides

The commands import `write` and `compare` themselves: `status` does without.
"""

from __future__ import annotations

from manytune.report.task_table import MethodRow, MetricSummary, TaskTable, render, tabulate

__all__ = ["MethodRow", "MetricSummary", "TaskTable", "render", "tabulate"]
