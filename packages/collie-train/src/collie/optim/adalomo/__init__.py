"""AdaLomo under the address that existing scripts import it from."""

from collie.optim._adalomo import AdaLomo

__all__ = ["AdaLomo"]
