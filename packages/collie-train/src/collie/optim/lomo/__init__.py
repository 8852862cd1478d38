"""LOMO under the address that existing scripts import it from."""

from collie.optim._lomo import Lomo

__all__ = ["Lomo"]
