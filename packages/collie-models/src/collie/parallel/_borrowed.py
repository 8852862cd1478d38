"""Parameters that a module uses while another one has them: ZeRO-3 must know of it, to gather them."""

from collections.abc import Iterable

from torch import nn

from collie.parallel._engine import deepspeed_module
from collie.parallel._shard import is_partitioned


def borrow(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let ZeRO-3 gather these parameters for `module`'s forward and backward pass, too; without ZeRO-3 do nothing.

    Call it when the parameters have their storage.
    """
    for parameter in parameters:
        if is_partitioned(parameter):
            deepspeed_module().zero.register_external_parameter(module, parameter)
