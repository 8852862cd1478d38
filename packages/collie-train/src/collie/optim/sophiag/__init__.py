"""SophiaG under the address that existing scripts import it from."""

from collie.optim._sophiag import SophiaG

__all__ = ["SophiaG"]
