"""Draw a study's table as an SVG picture, as the terminal shows it.

python benchmarks/picture.py STUDY_DIR table.svg
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from manytune.report import render, tabulate
from manytune.report.writing import read_headlines
from manytune.storage.directory import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study_dir", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    store = Store.open(options.study_dir)
    console = Console(record=True, width=190, file=io.StringIO())
    records = store.finished_runs().values()
    baselines = {name: kept for name in store.study().task_names if (kept := store.task_artifacts(name).baselines())}
    console.print(render(tabulate(records, baselines), read_headlines(options.study_dir)))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(options.picture), title=f"manytune run {store.study().name}.yaml")


if __name__ == "__main__":
    main()
