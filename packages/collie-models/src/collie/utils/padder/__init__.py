"""ColliePadder under the name that existing scripts import it by; its home is collie.data."""

from collie.data import ColliePadder

__all__ = ["ColliePadder"]
