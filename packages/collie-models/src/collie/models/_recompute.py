"""Activation checkpointing: a layer keeps its input alone, and is run again in the backward pass (Chen et al. 2016)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collie.parallel import is_partitioned


def run_again(layer: nn.Module, run: Callable[..., Tensor], x_BSE: Tensor, *args: Any) -> Tensor:
    """Return run(x_BSE, *args), of which backward makes what it needs by running it again.

    layer: whose parameters `run` uses.
    """
    if not has_frozen_slices(layer):
        return checkpoint(run, x_BSE, *args, use_reentrant=False)
    # the other way runs backward inside of backward, and sees no gradient where nothing before the layer is trained
    begin = x_BSE if x_BSE.requires_grad else x_BSE.detach().requires_grad_()
    return checkpoint(run, begin, *args, use_reentrant=True)


def has_frozen_slices(module: nn.Module) -> bool:
    """Whether ZeRO-3 has split parameters here that are not trained, as under an adapter.

    What torch's newer way of checkpointing keeps of these is the parameter itself, which DeepSpeed empties between the
    second forward and the backward pass (torch 2.13, deepspeed 0.19).
    """
    return any(is_partitioned(parameter) and not parameter.requires_grad for parameter in module.parameters())
