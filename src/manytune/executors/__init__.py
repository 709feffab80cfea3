"""Where packs run."""

from manytune.executors.auto import best_executor
from manytune.executors.inline import Inline
from manytune.executors.ray_executor import OnRay, Resources
from manytune.executors.workers import Workers

__all__ = ["Inline", "OnRay", "Resources", "Workers", "best_executor"]
