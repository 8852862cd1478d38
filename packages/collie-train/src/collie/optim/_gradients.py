"""Gradients in the moment in which a backward pass completes them, one parameter a hook."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from collie.optim._reach import count_over_dp, reached_unevenly
from collie.parallel import Shard, Topology, active_topology, is_partitioned, shard_of

OnGradient = Callable[[nn.Parameter, Tensor], None]


class GradientHooks:
    """Takes each gradient off its parameter as soon as it is complete, and hands it to what the current pass does.

    Backward passes outside `hand_to` are somebody else's: their gradients stay where torch put them.

    Args:
        names: of the parameters.
    """

    def __init__(self, names: dict[nn.Parameter, str]) -> None:
        self._names = names
        self._parameters = list(names)
        self._on_gradient: OnGradient | None = None
        self._uneven: set[nn.Parameter] = set()  # which not every rank will have
        self._waiting: dict[nn.Parameter, Tensor] = {}  # those of them that came, until the pass ends
        self._hooks = [p.register_post_accumulate_grad_hook(self._receive) for p in self._parameters]

    @contextmanager
    def hand_to(self, on_gradient: OnGradient, loss: Tensor | None = None) -> Iterator[None]:
        """Hand the gradients of the backward passes within it to `on_gradient`.

        Args:
            on_gradient: called with a parameter and its whole gradient on this rank.
            loss: what is backpropagated, where `on_gradient` speaks to the other dp ranks. All of these then get the
                same parameters in the same order: with zeros for those that only other ranks' losses depend on.

        Raises:
            RuntimeError: the ranks' losses depend on different parameters that ZeRO-3 has split. On all ranks.
        """
        agreement = None
        if loss is not None and active_topology().dp_group is not None:
            agreement = loss.register_hook(self._agree)
        self._on_gradient = on_gradient
        try:
            yield
            self._hand_over_uneven(on_gradient)
        finally:
            self._on_gradient = None
            self._uneven, self._waiting = set(), {}
            if agreement is not None:
                agreement.remove()

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def _receive(self, parameter: nn.Parameter) -> None:
        """Take a gradient when it is complete, also where two modules share the parameter."""
        if self._on_gradient is None or parameter.grad is None:
            return
        grad, parameter.grad = parameter.grad, None
        if parameter in self._uneven:
            self._waiting[parameter] = grad
        else:
            self._on_gradient(parameter, grad)

    def _agree(self, _: Tensor) -> None:
        """Find, when a backward pass begins, what it will not reach on every rank."""
        self._uneven = reached_unevenly(self._parameters, active_topology())
        self._refuse_uneven_shards()

    def _refuse_uneven_shards(self) -> None:
        """DeepSpeed gathers a module's weights where a backward pass comes to it, and waits for ranks that do not."""
        names = [self._names[p] for p in self._parameters if p in self._uneven and is_partitioned(p)]
        if names:
            raise RuntimeError(
                f"the losses of some dp ranks do not depend on {names[0]} ({len(names)} parameters in all), and under "
                f"ZeRO-3 they would wait for each other for ever. Add 0 times the unused outputs to the loss, or use "
                f"a ZeRO stage below 3."
            )

    @torch.no_grad()
    def _hand_over_uneven(self, on_gradient: OnGradient) -> None:
        for parameter in self._parameters:
            if parameter in self._uneven:
                on_gradient(parameter, grad_or_zero(parameter, self._waiting.pop(parameter, None)))


class KeptGradients:
    """Gradients of several micro-batches, added up until an update."""

    def __init__(self) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, parameter: nn.Parameter, grad: Tensor) -> None:
        """Add this rank's own gradient; of a parameter that ZeRO-3 has split its slice of the dp average."""
        shard = shard_of(parameter, active_topology())
        if shard.partitioned:
            grad = shard.reduce(grad)
        if parameter in self._sums:
            self._sums[parameter].add_(grad)
        else:
            self._sums[parameter] = grad

    def of(self, parameter: nn.Parameter) -> Tensor:
        """Return the sum of a whole parameter's, zeros if there is none yet."""
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros_like(parameter)
        return self._sums[parameter]

    def take(self, parameters: Sequence[nn.Parameter], topology: Topology) -> Iterator[tuple[Shard, Tensor]]:
        """Yield all sums, averaged over dp, and let go of them: the same parameters in the same order on all ranks.

        What only some ranks have is zero on the others. Collective over the dp ranks.
        """
        sums, self._sums = self._sums, {}
        counts = count_over_dp([parameter in sums for parameter in parameters], topology)
        for parameter, count in zip(parameters, counts, strict=True):
            shard = shard_of(parameter, topology)
            if count and shard.partitioned:
                yield shard, sums.pop(parameter)
            elif count:
                yield shard, shard.reduce(grad_or_zero(parameter, sums.pop(parameter, None)))


def grad_or_zero(parameter: nn.Parameter, grad: Tensor | None) -> Tensor:
    """Return a parameter's gradient, zeros where it has none on this rank; not of one that ZeRO-3 has split."""
    if grad is not None:
        return grad
    return torch.zeros_like(parameter)


def squared(grad: Tensor) -> Tensor:
    """The sum of squares, 0-d, in float32."""
    return torch.linalg.vector_norm(grad, dtype=torch.float32).square()
