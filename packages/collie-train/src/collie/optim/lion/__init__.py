"""Lion under the address that existing scripts import it from."""

from collie.optim._lion import Lion

__all__ = ["Lion"]
