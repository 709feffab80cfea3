"""How long the report of a large study takes, and how large its page is: made-up results, everything else real.

python benchmarks/report_of_many_runs.py [--runs 1000] [--evaluations 50] [--keep DIR]

The budget: 1,000 runs in under 20 seconds and under 25 MB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from study_factory import GLUE_LIKE, make_study_directory  # noqa: E402

SEEDS, TASKS = 5, 2


def study_of(runs: int) -> dict[str, Any]:
    """Five seeds on two tasks; as many rates of every method as it takes."""
    ways = runs // (SEEDS * TASKS)
    ranks = [2, 8, 64, 256]
    rates = [round(1e-4 * 1.07**step, 10) for step in range((ways - 2) // len(ranks))]
    rest = ways - len(ranks) * len(rates)
    methods = [
        {"method": "full", "learning_rate": rates[: rest // 2]},
        {"method": "bitfit", "learning_rate": rates[: rest - rest // 2]},
        {"method": "lora", "rank": ranks, "learning_rate": rates},
    ]
    return {**GLUE_LIKE, "name": "large", "seeds": list(range(SEEDS)), "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="make the study here and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch) / "study"
        os.fsync = lambda handle: None  # type: ignore[assignment]
        store = make_study_directory(root, study_of(options.runs), evaluations=options.evaluations)
        status = store.status()
        began = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name("manytune")), "report", str(root)], check=True)
        seconds = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = usage.ru_utime + usage.ru_stime
        page = (root / "report" / "index.html").stat().st_size
        whole = sum(path.stat().st_size for path in (root / "report").rglob("*") if path.is_file())
        print(f"{status.planned} runs of {options.evaluations} evaluations, dev predictions of all of them kept")
        print(f"report: {seconds:.1f} s ({processor:.1f} s of processor), {usage.ru_maxrss / 1e3:.0f} MB of memory")
        print(f"page: {page / 1e6:.1f} MB; all files: {whole / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
