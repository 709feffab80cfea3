"""Where packs run."""

from manytune.executors.local import StudyResult, run_study

__all__ = ["StudyResult", "run_study"]
