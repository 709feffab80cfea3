"""A study as data: what to train, on which tasks, in which ways; refused here if it cannot be right.

study.yaml ─ study_file ─> plain data ─ schema ─> Study ─ plan ─> runs, each with one concrete method
"""

from manytune.config.own_task import OwnTask
from manytune.config.schema import Study, digest, study_json_schema
from manytune.config.sweeps import Sweep
from manytune.config.training_settings import MEANS, Training
from manytune.config.values import TRACKERS

__all__ = ["MEANS", "TRACKERS", "OwnTask", "Study", "Sweep", "Training", "digest", "study_json_schema"]
