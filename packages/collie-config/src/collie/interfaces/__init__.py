"""Where the packages meet: errors, optional imports and the shapes of the objects they hand to each other."""

from collie.interfaces import _root  # noqa: F401  # checks that collie/__init__.py is ours
from collie.interfaces._errors import (
    CheckpointError,
    CollieError,
    ConfigError,
    DataError,
    ForeignPackageError,
    MissingExtraError,
    NonFiniteError,
    ParallelSizeError,
    UnknownFieldError,
)
from collie.interfaces._protocols import EventSink, RunContext, SupportsEval, SupportsServer, serving
from collie.interfaces._require import nearest, require

__all__ = [
    "CheckpointError",
    "CollieError",
    "ConfigError",
    "DataError",
    "EventSink",
    "ForeignPackageError",
    "MissingExtraError",
    "NonFiniteError",
    "ParallelSizeError",
    "RunContext",
    "SupportsEval",
    "SupportsServer",
    "UnknownFieldError",
    "nearest",
    "require",
    "serving",
]
