"""What every metric is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from collie.metrics._gather import gather_rows
from collie.parallel import Topology, active_topology


class Surroundings(Protocol):
    """What a metric may ask of the evaluator that it serves."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def topology(self) -> Topology: ...


class BaseMetric(ABC):
    """A number, or several, over all rows of an evaluation.

    An evaluator calls `construct` and `reset` once, `update` once for each batch, and then `get_metric`. Every rank
    does so, and `get_metric` must give the same on every rank. There are two ways to get there: with
    `gather_result=True` each `update` receives the rows of all data-parallel ranks in the order of the dataset; with
    False it receives this rank's own rows, and `get_metric` reduces over `self.topology.dp_group`.

    Args:
        gather_result: whether `update` receives the rows of all ranks.
    """

    gather_result: bool = False
    tokenizer: Any = None
    _topology: Topology | None = None

    def __init__(self, gather_result: bool = False) -> None:
        self.gather_result = gather_result

    def construct(self, evaluator: Surroundings) -> None:
        """Take the tokenizer and the layout of `evaluator`, at the start of each evaluation."""
        self.tokenizer = evaluator.tokenizer
        self._topology = evaluator.topology

    @property
    def signature(self) -> str | None:
        """How the numbers were computed, by tool, version and options; None where there is no choice."""
        return None

    @property
    def topology(self) -> Topology:
        """The layout of the evaluation; the active one where no evaluator gave any."""
        return self._topology if self._topology is not None else active_topology()

    def reset(self) -> None:
        """Forget all rows."""
        return

    @abstractmethod
    def update(self, result: dict[str, Any]) -> None:
        """Take the rows of one batch: the dict that `eval_fn` returned."""

    @abstractmethod
    def get_metric(self) -> Any:
        """The value over all rows since `reset`: a number, a dict of numbers, or texts."""

    def gather(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Join the rows of `result` over the data-parallel ranks, in rank order, which is the order of the dataset.

        Tensors of equal trailing shape come back joined along the first dimension, tensors of different ones as a list
        of rows, lists as lists; a number becomes the list of all ranks' numbers. With one data-parallel rank `result`
        comes back unchanged. Tensor and pipeline ranks of a replica hold the same rows and take no part.
        """
        return gather_rows(result, self.topology.dp_group)
