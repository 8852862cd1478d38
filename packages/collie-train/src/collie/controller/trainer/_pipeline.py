"""Steps of a model whose layers are dealt to pipeline stages."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from collie.config import CollieConfig
from collie.controller.trainer._joined import joined, of_all_rows
from collie.controller.trainer._objective import Objective
from collie.controller.trainer._steps import Shares, StepResult
from collie.data import DEFAULT_PADDING, MicroBatch
from collie.interfaces import DataError
from collie.models import CollieModelForCausalLM
from collie.module import Mask, Rotation, model_inputs, widened
from collie.optim import FusedOptimizer
from collie.parallel import Engine, Pipeline, Topology, draw_alike, draws_of_stage, sum_over_ends

_READ = ("input_ids", "attention_mask", "position_ids", "cu_seqlens")  # what a model on stages takes of a batch


class Update(Protocol):
    """What becomes of the gradients of a step."""

    def gradients(self) -> AbstractContextManager[None]:
        """Backward passes happen within it, of losses that `scaled` returned."""
        ...

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what is backpropagated for a loss."""
        ...

    def __call__(self) -> tuple[float | None, bool]:
        """Update the weights; return the gradient's norm, where known, and whether an update was made."""
        ...


class EngineUpdate:
    """DeepSpeed averages the gradients over the dp ranks and steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def gradients(self) -> AbstractContextManager[None]:
        return nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        return loss

    def __call__(self) -> tuple[float | None, bool]:
        applied = self._engine.step()
        return self._engine.grad_norm(), applied


class FusedUpdate:
    """A fused optimizer keeps the gradients until the last micro-batch."""

    def __init__(self, optimizer: FusedOptimizer, model: CollieModelForCausalLM, topology: Topology) -> None:
        self._optimizer, self._model, self._topology = optimizer, model, topology

    def gradients(self) -> AbstractContextManager[None]:
        return self._optimizer.accumulating()

    def scaled(self, loss: Tensor) -> Tensor:
        return self._optimizer.scaled(loss)

    def __call__(self) -> tuple[float | None, bool]:
        weights = self._model.weights_of_both_ends()
        sum_over_ends([self._optimizer.accumulated(weight) for weight in weights], self._topology)
        norm = self._optimizer.apply_accumulated()
        norm = norm if norm is not None else self._optimizer.applied_norm()
        return (norm, True) if not self._optimizer.overflowed else (None, False)


class PipelineStep:
    """The micro-batches of a step pass through the stages side by side; then comes one update.

    Stages exchange hidden states of one shape. So micro-batches are padded to the longest and largest of their step on
    their way, and cut again before the loss: neither that nor a filler, where there are fewer of them than the schedule
    needs, changes the result.
    """

    def __init__(
        self, model: CollieModelForCausalLM, engine: Any, update: Update, objective: Objective, topology: Topology
    ) -> None:
        config = model.collie_config
        self.engine = engine
        self.objective = objective
        self._model, self._update, self._topology = model, update, topology
        self._pipeline = Pipeline(model, config.pp_schedule, topology, model.dtype)
        _warn_of_fillers(config, self._pipeline)

    def __call__(self, micro_batches: list[MicroBatch], total: int) -> StepResult:
        fillers = self._pipeline.micro_batches_for(len(micro_batches)) - len(micro_batches)
        micro_batches = micro_batches + [MicroBatch(micro_batches[0].batch, 0)] * fillers
        own = [self._inputs(micro_batch) for micro_batch in micro_batches]
        inputs = _alike(own)
        arranged = list(map(self._arranged, own, inputs))
        shares = Shares(self._topology)
        run = partial(self._run, micro_batches, inputs, arranged, total, shares)
        with self._update.gradients():
            rows, length = inputs[0]["input_ids"].shape
            self._pipeline.step(len(inputs), rows, length, run)
        norm, applied = self._update()
        return StepResult(shares.reduce(of_last_stage=True), norm, applied, shares.parts)

    def _inputs(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        inputs = model_inputs(self._model, micro_batch.batch)
        if "input_ids" not in inputs or "inputs_embeds" in inputs:
            raise DataError("the stages of a pipeline begin at input_ids, and a batch has none: give no inputs_embeds.")
        return {key: value for key, value in of_all_rows(inputs).items() if key in _READ}

    def _arranged(self, own: dict[str, Tensor], padded: dict[str, Tensor]) -> tuple[Rotation, Mask]:
        """Positions turn as without the padding: under dynamic scaling a micro-batch's length says how fast."""
        rope, mask = self._shared(own)
        if padded is own:
            return rope, mask
        rows, length = padded["input_ids"].shape
        return rope.padded(rows, length), self._shared(padded)[1]

    def _shared(self, inputs: dict[str, Tensor]) -> tuple[Rotation, Mask]:
        shared = {key: value for key, value in inputs.items() if key != "input_ids"}
        return self._model.arranged(inputs["input_ids"], **shared)

    def _run(
        self,
        micro_batches: list[MicroBatch],
        inputs: list[dict[str, Tensor]],
        arranged: list[tuple[Rotation, Mask]],
        total: int,
        shares: Shares,
        stage: int,
        number: int,
        hidden: Tensor | None,
    ) -> Tensor:
        """Compute one stage for one micro-batch; on the last stage, its share of the loss."""
        model, stages = self._model, self._model.stages
        assert stages is not None
        ids, micro_batch = inputs[number]["input_ids"], micro_batches[number]
        dropout = model.collie_config.dropout if model.training else 0.0
        with draws_of_stage(self._topology, stage, dropout), model.flow(ids.shape[1]):
            x_BSE = model.enter(ids) if hidden is None else hidden
            rope, mask = arranged[number]
            x_BSE = model.run_layers(x_BSE, rope, mask, names=stages.layers[stage])
            if stage < stages.count - 1:
                return x_BSE
            rows, length = micro_batch.batch["input_ids"].shape
            share = self.objective(_finisher(model, x_BSE[:rows], length), micro_batch, total)
        shares.add(share)
        # gradients are averaged over dp; shares are summed
        return self._update.scaled(torch.as_tensor(share) * self._topology.dp_size)


class RelayStep:
    """A user's train_fn: it gets a step's rows in one batch, and the model runs one stage after the other.

    All ranks of a replica begin it with equal random numbers: what it draws for the batch is the same on each.
    """

    def __init__(self, engine: Any, update: Update, objective: Objective, topology: Topology) -> None:
        self.engine = engine
        self.objective = objective
        self._update, self._topology = update, topology

    def __call__(self, micro_batches: list[MicroBatch], total: int) -> StepResult:
        shares = Shares(self._topology)
        norm, applied = None, True
        draw_alike(self._topology)
        with self._update.gradients():
            share = self.objective(self.engine, joined(micro_batches), total)
            shares.add(share)
            if isinstance(share, Tensor):
                self._update.scaled(share * self._topology.dp_size).backward()
        if isinstance(share, Tensor):
            norm, applied = self._update()
        return StepResult(shares.reduce(), norm, applied, shares.parts)


def _finisher(model: CollieModelForCausalLM, x_BSE: Tensor, length: int) -> Callable[..., Any]:
    """Return what an objective calls in place of the model, where all layers have been run."""

    def finish(
        labels: Tensor | None = None,
        return_logits: bool = True,
        num_items_in_batch: int | Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> Any:
        return model.finish(x_BSE, labels, return_logits, num_items_in_batch, logits_to_keep, length)

    return finish


def _alike(inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Pad each micro-batch's inputs, [B, S] or [B, …, S], to the largest B and the largest S among them.

    In packs what is added is rows of its own.
    """
    shapes = {tuple(one["input_ids"].shape) for one in inputs}
    if len(shapes) == 1:
        return inputs
    rows, length = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    masked = [{"attention_mask": torch.ones_like(one["input_ids"]), **one} for one in inputs]
    return [{key: _padded(value, rows, length, key, one) for key, value in one.items()} for one in masked]


def _padded(value: Tensor, rows: int, length: int, key: str, inputs: dict[str, Tensor]) -> Tensor:
    """Pad [B, …, S] on the right of its last dimension and below its last row."""
    if key == "cu_seqlens":
        own_rows, own_length = inputs["input_ids"].shape
        return widened(value, (own_rows, own_length), (rows, length))
    widths = [0, length - value.shape[-1], *[0] * (2 * (value.dim() - 2)), 0, rows - value.shape[0]]
    return F.pad(value, widths, value=DEFAULT_PADDING.get(key, 0))


def _warn_of_fillers(config: CollieConfig, pipeline: Pipeline) -> None:
    count = config.gradient_accumulation_steps
    needed = pipeline.micro_batches_for(count)
    if needed > count:
        warnings.warn(
            f"gradient_accumulation_steps={count} gives the pipeline {count} of the {needed} micro-batches that "
            f"pp_schedule={config.pp_schedule!r} with pp_size={config.pp_size} needs: stages compute fillers, "
            f"which count for nothing. Set it to {needed} or more.",
            stacklevel=2,
        )
