"""Where packs run."""

from manytune.executors.inline import Inline
from manytune.executors.study import StudyResult, run_study
from manytune.executors.workers import Workers

__all__ = ["Inline", "StudyResult", "Workers", "run_study"]
