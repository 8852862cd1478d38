"""Models that PEFT has wrapped: those of transformers with any adapter, and ours with prompts that are learnt."""

from typing import Any

from torch import nn

from collie.parallel import Choice


def wrapped_adapters(model: nn.Module) -> Choice | None:
    """Return what chooses the parameters of a PeftModel that belong to its adapters or are trained; else None."""
    adapters: Any = getattr(model, "peft_config", None)
    if adapters is None:
        return None
    names = frozenset(adapters)
    return lambda name, parameter: parameter.requires_grad or not names.isdisjoint(name.split("."))
