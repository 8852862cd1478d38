"""Optimizers that torch does not have, and what chooses parameters by their names."""

from collie.optim._adalomo import AdaLomo
from collie.optim._adan import Adan
from collie.optim._fused import FusedOptimizer
from collie.optim._groups import freeze, param_groups, train_only
from collie.optim._lion import Lion
from collie.optim._lomo import Lomo
from collie.optim._loss_scale import DynamicLossScaler
from collie.optim._rewind import rewind_random_numbers
from collie.optim._sophiag import SophiaG

__all__ = [
    "AdaLomo",
    "Adan",
    "DynamicLossScaler",
    "FusedOptimizer",
    "Lion",
    "Lomo",
    "SophiaG",
    "freeze",
    "param_groups",
    "rewind_random_numbers",
    "train_only",
]
