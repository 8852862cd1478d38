"""AdaLomo: LOMO with adaptive learning rates (Lv et al. 2023, arXiv:2310.10195, algorithm 1)."""

from collections import Counter
from typing import ClassVar

import torch
from torch import Tensor, nn

from collie.interfaces import ConfigError
from collie.optim._fused import FusedOptimizer, has_float16
from collie.optim._gradients import squared
from collie.optim._groups import Patterns
from collie.optim._loss_scale import DynamicLossScaler
from collie.parallel import Shard, Whole, cut_of, total_of_whole


class AdaLomo(FusedOptimizer):
    """Adaptive steps with a second moment of one number a row and one a column, updated while gradients are computed.

    For a parameter θ of R rows and C columns with gradient g at its step t, with β = 1 − t^decay_rate (Shazeer and
    Stern 2018, section 7.2):

        r ← β·r + (1 − β)·mean over columns of g² + eps[0];  c ← β·c + (1 − β)·mean over rows of g² + eps[0]
        u = g / √(r·cᵀ / mean(r));  û = u / max(1, RMS(u) / clip_threshold) · max(eps[1], RMS(θ))
        θ ← θ − lr·weight_decay·max(eps[1], RMS(θ))·θ − lr·û

    (eps[0] inside the (1 − β) term.) Vectors have r·cᵀ / mean(r) replaced by a moment of every element. All of it is
    in float32. Means are those of the whole parameter in every layout: where tensor parallelism or ZeRO-3 divide
    it, ranks exchange R + C + 1 numbers and then one a parameter.

    Args:
        model: the model to train (not its parameters: AdaLomo hooks into its backward pass).
        lr: learning rate, relative to the parameters' own size.
        loss_scale: scale of the loss at the start of training a float16 model, which costs a second backward pass: an
            overflow is found before any weight is changed. Of no effect for others.
        eps: what is added to squares, and the least RMS(θ) that a step is multiplied by.
        clip_threshold: largest RMS of an update before it is multiplied by RMS(θ).
        decay_rate: exponent of β, negative.
        clip_grad_norm: largest norm of the whole gradient. Costs a second backward pass over the same graph; the
            update is normalised anyway, so it changes little but the moments.
        clip_grad_value: largest absolute value of a gradient's element.
        weight_decay: decay per step, multiplied by lr and by what the step is multiplied by.
        no_decay: patterns of names of parameters without decay, such as ("*bias", "*norm*").
        stochastic_rounding: whether bfloat16 weights are rounded by chance, so that small steps are not lost.

    Raises:
        ConfigError: a value that cannot be meant, and what FusedOptimizer refuses.
    """

    whole_states: ClassVar[frozenset[str]] = frozenset({"exp_avg_sq_row", "exp_avg_sq_col"})

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        loss_scale: float = 2.0**10,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        weight_decay: float = 0.0,
        *,
        no_decay: Patterns = (),
        stochastic_rounding: bool = False,
    ) -> None:
        if not (min(eps) > 0 and clip_threshold > 0 and decay_rate < 0):
            raise ConfigError(
                f"eps={eps}, clip_threshold={clip_threshold}, decay_rate={decay_rate}: "
                f"both eps and clip_threshold must be above 0, and decay_rate below."
            )
        super().__init__(
            model,
            {"lr": lr, "weight_decay": weight_decay},
            clip_grad_norm,
            clip_grad_value,
            no_decay=no_decay,
            loss_scaler=DynamicLossScaler(init_scale=loss_scale) if has_float16(model) else None,
            stochastic_rounding=stochastic_rounding,
        )
        self.eps, self.clip_threshold, self.decay_rate = eps, clip_threshold, decay_rate
        self._parts_of = Counter(_whole_name(parameter) for parameter in self._parameters())
        self._waiting: dict[str | None, list[_Part]] = {}

    def update(self, shard: Shard, grad: Tensor, lr: float, weight_decay: float) -> None:
        name = _whole_name(shard.parameter)
        parts = [*self._waiting.pop(name, []), (Whole(shard), grad)]
        if name is not None and len(parts) < self._parts_of[name]:
            self._waiting[name] = parts  # a fused projection that this rank holds in two: the other gradient comes soon
            return
        states = [self.state[whole.shard.parameter] for whole, _ in parts]
        for state in states:
            state["step"] = state.get("step", 0) + 1
        whole = parts[0][0]
        of_parts = self._of_matrices if len(whole.shape) > 1 else self._of_vectors
        changes, square, weights_square = of_parts(parts, 1.0 - states[0]["step"] ** self.decay_rate)
        lengthening = (square / whole.numel).sqrt_().div_(self.clip_threshold).clamp_(min=1.0)
        size = (weights_square / whole.numel).sqrt_().clamp_(min=self.eps[1])  # what lr is relative to
        for (part, _), change in zip(parts, changes, strict=True):
            change.mul_(size / lengthening)
            if weight_decay:
                change.add_(part.held(part.shard.data) * (size * weight_decay))
            self.change(part.shard, change, -lr)

    def _of_matrices(self, parts: list["_Part"], beta: float) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return u for the elements held here, part by part, and the sums of squares of all of u and of the weights."""
        matrices = [whole.matrix(grad) for whole, grad in parts]
        shares = [
            (whole, (*whole.marginals(matrix.square()), _weights_square(whole)))
            for (whole, _), matrix in zip(parts, matrices, strict=True)
        ]
        rows, columns, weights_square = total_of_whole(shares)
        count_rows, count_columns = parts[0][0].matrix_shape
        row = self._mean("exp_avg_sq_row", parts, rows / count_columns, beta)
        column = self._mean("exp_avg_sq_col", parts, columns / count_rows, beta)
        by_row, by_column = (row / row.mean()).rsqrt_(), column.rsqrt()
        changes = []
        for (whole, _), matrix in zip(parts, matrices, strict=True):
            matrix.mul_(whole.rows_of(by_row, matrix)).mul_(whole.columns_of(by_column))
            changes.append(whole.elements(matrix))
        [square] = total_of_whole([(whole, [squared(u)]) for (whole, _), u in zip(parts, changes, strict=True)])
        return changes, square, weights_square

    def _of_vectors(self, parts: list["_Part"], beta: float) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `_of_matrices`, with a second moment of every element."""
        changes, shares = [], []
        for whole, grad in parts:
            moment = self._mean("exp_avg_sq", [(whole, grad)], grad.float().square(), beta)
            changes.append(whole.held(grad.float() * moment.rsqrt()))
            shares.append((whole, (squared(changes[-1]), _weights_square(whole))))
        square, weights_square = total_of_whole(shares)
        return changes, square, weights_square

    def _mean(self, name: str, parts: list["_Part"], squares: Tensor, beta: float) -> Tensor:
        """Move the mean of squares that is a state of all parts; return it."""
        first = self.state[parts[0][0].shard.parameter]
        if name not in first:
            first[name] = torch.zeros_like(squares)
        mean: Tensor = first[name].lerp_(squares.add_(self.eps[0]), 1.0 - beta)
        for whole, _ in parts[1:]:
            self.state[whole.shard.parameter][name] = mean
        return mean


_Part = tuple[Whole, Tensor]  # of a parameter on this rank, and its gradient


def _whole_name(parameter: nn.Parameter) -> str | None:
    """The name of the whole that tensor-parallel ranks hold parts of; None of what each holds whole."""
    cut = cut_of(parameter)
    return cut.name if cut is not None else None


def _weights_square(whole: Whole) -> Tensor:
    return squared(whole.held(whole.shard.data))
