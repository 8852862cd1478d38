"""A training step's micro-batches through the pipeline's stages, side by side: torch's schedules over our stages.

1F1B (Narayanan et al. 2019, PipeDream) keeps as many micro-batches in flight as there are stages; interleaved
(Narayanan et al. 2021, Megatron-LM) gives each rank two stages, which halves the time that ranks wait at a step's ends.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from collie.parallel._stages import Stages
from collie.parallel._topology import Topology

_Run = Callable[[int, int, Tensor | None], Tensor]


class StagedModel(Protocol):
    """What a pipeline needs to know of a model of which this rank holds some stages."""

    stages: Stages | None

    def stage_shape(self, rows: int, length: int) -> tuple[int, int, int]:
        """Return the shape of the hidden states that one stage hands to the next."""
        ...


class Pipeline:
    """Runs forward and backward of several micro-batches of one shape.

    torch's stages have buffers of one shape: they are made anew when a step's differs from that of the step before.

    Args:
        model: the part of it that this rank holds.
        schedule: "1f1b" or "interleaved".
        topology: this rank's place.
        dtype: of the hidden states.
    """

    def __init__(self, model: StagedModel, schedule: str, topology: Topology, dtype: torch.dtype) -> None:
        assert model.stages is not None
        self._model, self._stages = model, model.stages
        self._interleaved = schedule == "interleaved"
        self._topology = topology
        self._dtype = dtype
        self._run: _Run | None = None
        self._made: tuple[tuple[int, int, int], Any] | None = None  # (micro-batches, rows, length), the schedule

    def micro_batches_for(self, count: int) -> int:
        """Return how many micro-batches the schedule needs where there are `count`: the others are fillers."""
        ranks = self._stages.ranks
        return -(-count // ranks) * ranks if self._interleaved else max(count, ranks)

    def step(self, count: int, rows: int, length: int, run: _Run) -> None:
        """Run forward and backward of `count` micro-batches, each [rows, length]; gradients are added up.

        Args:
            count: at least what `micro_batches_for` says.
            rows, length: the shape of a micro-batch's input_ids.
            run: run(stage, number, hidden) computes one of this rank's stages for micro-batch `number` and returns the
                hidden states, or on the last stage the micro-batch's share of the loss, 0-d. `hidden` is None on the
                first stage.
        """
        shape = (count, rows, length)
        if self._made is None or self._made[0] != shape:
            self._made = (shape, self._schedule(*shape))
        numbers = torch.arange(count)
        first = (numbers,) if self._stages.has_first else ()
        target = numbers if self._stages.has_last else None
        self._run = run
        try:
            self._made[1].step(*first, number=numbers, target=target, return_outputs=False)
        except RuntimeError as error:
            if isinstance(error.__cause__, Exception):  # torch says no more than that a stage failed
                raise error.__cause__ from None
            raise
        finally:
            self._run = None

    def _schedule(self, count: int, rows: int, length: int) -> Any:
        stages: list[Any] = [self._stage(stage, self._model.stage_shape(rows, length)) for stage in self._stages.own]
        settings: dict[str, Any] = {"loss_fn": lambda share, _: share.sum(), "scale_grads": False}
        if self._interleaved:
            return ScheduleInterleaved1F1B(stages, count, **settings)
        return Schedule1F1B(stages[0], count, **settings)

    def _stage(self, stage: int, shape: tuple[int, int, int]) -> PipelineStage:
        def example(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=self._dtype, device="meta", requires_grad=True)

        first, last = stage == 0, stage == self._stages.count - 1
        return PipelineStage(
            _Part(self, stage),
            stage,
            self._stages.count,
            self._topology.device,
            input_args=torch.empty(1, dtype=torch.int64, device="meta") if first else example(*shape),
            output_args=torch.empty(1, device="meta", requires_grad=True) if last else example(*shape),
            group=self._topology.pp_group,
        )

    def compute(self, stage: int, number: int, hidden: Tensor | None) -> Tensor:
        """Compute one of the stages as the running step says; what it sends on is what the next stage receives."""
        assert self._run is not None
        result = self._run(stage, number, hidden)
        if stage == self._stages.count - 1:
            return result.reshape(1)
        result = result.to(self._dtype)  # under autocast it may be in another
        # where nothing is trained so far, backward must find something to end in
        return result if result.requires_grad else result.requires_grad_()


class _Part(nn.Module):
    """What torch calls for a stage. It owns no parameters: the model does."""

    def __init__(self, pipeline: Pipeline, stage: int) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._stage = stage

    def forward(self, received: Tensor, number: Tensor) -> Tensor:
        hidden = received if received.is_floating_point() else None  # the first stage gets its number again
        return self._pipeline.compute(self._stage, int(number), hidden)
