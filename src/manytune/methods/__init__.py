"""The methods: each is one class that holds its configuration and all that is special to it."""

from manytune.methods.adaptation import Adaptation, ParameterCount, count_parameters
from manytune.methods.base import HeadMode, Method, PackKind
from manytune.methods.registry import METHODS, AnyMethod, make_method, register

__all__ = [
    "METHODS",
    "Adaptation",
    "AnyMethod",
    "HeadMode",
    "Method",
    "PackKind",
    "ParameterCount",
    "count_parameters",
    "make_method",
    "register",
]
