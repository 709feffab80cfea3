"""Runs in the trackers that people already use."""

from manytune.tracking.trackers import Trackers

__all__ = ["Trackers"]
