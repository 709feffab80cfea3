"""Where packs run."""

from manytune.executors.choice import best_place
from manytune.executors.inline import Inline
from manytune.executors.on_ray import OnRay, Resources
from manytune.executors.study import StudyResult, run_study
from manytune.executors.workers import Workers

__all__ = ["Inline", "OnRay", "Resources", "StudyResult", "Workers", "best_place", "run_study"]
