"""What CoLLiE raises. Each message is a sentence that names the field, its value and the mend."""

from __future__ import annotations


class CollieError(Exception):
    """Base of every error that CoLLiE raises on purpose."""


class ConfigError(CollieError, ValueError):
    """A value in the configuration cannot work."""


class UnknownFieldError(ConfigError, AttributeError):
    """A name that neither CollieConfig nor its model_config has."""


class ParallelSizeError(ConfigError):
    """Parallel sizes that do not fit the world or the model."""


class CheckpointError(CollieError, ValueError):
    """A checkpoint that lacks something or has it in another shape."""


class DataError(CollieError, ValueError):
    """A row or a batch that cannot be trained or evaluated on."""


class NonFiniteError(CollieError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite, in training."""


class MissingExtraError(CollieError, ModuleNotFoundError):
    """A package that is needed now is not installed; the message is the command that installs it."""


class ForeignPackageError(CollieError, ImportError):
    """Another distribution has installed a package that is also called `collie`."""
