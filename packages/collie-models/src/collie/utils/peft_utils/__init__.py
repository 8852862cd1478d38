"""load_peft under the name that existing scripts import it by; its home is collie.adapters."""

from collie.adapters import load_peft

__all__ = ["load_peft"]
