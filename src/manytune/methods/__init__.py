"""The methods: each turns its configuration into what a bank holds. One visible table."""

from manytune.methods.registry import METHODS, ParameterCount, adapt, count_parameters

__all__ = ["METHODS", "ParameterCount", "adapt", "count_parameters"]
