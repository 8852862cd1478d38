"""LOMO under the address that existing scripts import it from."""

from collie.optim._lomo import Lomo
from collie.optim._loss_scale import DynamicLossScaler

__all__ = ["DynamicLossScaler", "Lomo"]
