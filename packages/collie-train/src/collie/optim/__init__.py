"""Optimizers that torch does not have."""

from collie.optim._fused import FusedOptimizer, rewind_random_numbers
from collie.optim._lomo import Lomo

__all__ = ["FusedOptimizer", "Lomo", "rewind_random_numbers"]
