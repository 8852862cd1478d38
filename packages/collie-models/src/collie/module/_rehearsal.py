"""Kernels that are compiled when they are first called: each kind of call is tried before a model relies on it."""

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_logger = logging.getLogger("collie.module")


class Rehearsal:
    """What one kernel has shown that it can do in this process.

    Compilation may fail for want of a toolchain, or of a driver that knows the GPU; its backward pass is compiled on
    its own, in the middle of training, where nothing could take its place anymore. So the first call of each kind is
    made twice, backward pass included, and the first time is for this alone. A kernel that fails is not used again.

    Args:
        name: what it is called in the warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: str | None = None
        self._passed: set[Hashable] = set()

    def passes(self, kind: Hashable, run: Callable[..., Any], inputs: tuple[Tensor, ...], grad: bool) -> bool:
        """Whether `run(*inputs)` can be relied on for this kind of call. The inputs and their graph stay as they are.

        Args:
            kind: calls that are compiled alike.
            run: returns a tensor, or None where it does not take the inputs.
            inputs: floating point tensors.
            grad: whether there will be a backward pass.

        Raises:
            torch.OutOfMemoryError: there is no room for it; that says nothing about the kernel.
        """
        if self.failure is not None or kind in self._passed:
            return self.failure is None
        try:
            _both_ways(run, inputs, grad)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, a driver or a loader raises: there are other kernels
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _logger.warning("%s failed and is not used anymore in this process: %s", self.name, self.failure)
            return False
        self._passed.add(kind)
        return True


def _both_ways(run: Callable[..., Any], inputs: tuple[Tensor, ...], grad: bool) -> None:
    # hooks that save nothing elsewhere: a layer whose forward is checkpointed must not count these tensors as its own
    with torch.set_grad_enabled(grad), saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        leaves = [x.detach().requires_grad_(grad) for x in inputs]
        out = run(*leaves)
        if grad and out is not None:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
