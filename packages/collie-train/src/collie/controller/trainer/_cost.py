"""The line of docs/en/optimizers.md that applies to a run: what its kind of step costs in memory and time."""

import torch
from torch import nn

from collie.config import CollieConfig
from collie.optim import FusedOptimizer


def cost_of(optimizer: torch.optim.Optimizer, model: nn.Module, config: CollieConfig) -> str:
    """Say what a step keeps in memory beside activations, and which passes it makes, in a sentence."""
    name, size = type(optimizer).__name__, next(model.parameters()).element_size()
    split = f", divided by {config.dp_size} ranks" if config.zero_stage == 3 and config.dp_size > 1 else ""
    weights = f"{name}: weights are {size} bytes a parameter{split}"
    if not isinstance(optimizer, FusedOptimizer):
        return f"{weights}; gradients and the optimizer's states are kept (DeepSpeed, ZeRO stage {config.zero_stage})."
    if config.pp_size > 1 or config.gradient_accumulation_steps > 1:
        why = f"pp_size={config.pp_size}" if config.pp_size > 1 else "gradient_accumulation_steps"
        return (
            f"{weights}; gradients are kept until the last micro-batch ({why}), {size} bytes a parameter more{split}."
        )
    if not optimizer.needs_norm:
        return f"{weights}; one parameter's gradient is alive at a time."
    why = "clip_grad_norm" if optimizer.clip_grad_norm is not None else "float16"
    passes = "forward and backward pass" if optimizer.needs_second_forward else "backward pass"
    return f"{weights}; one parameter's gradient is alive at a time; a second {passes} measures the norm ({why})."
