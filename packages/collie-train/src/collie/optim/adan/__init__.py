"""Adan under the address that existing scripts import it from."""

from collie.optim._adan import Adan

__all__ = ["Adan"]
