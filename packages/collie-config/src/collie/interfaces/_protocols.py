"""What the packages know of each other: shapes of objects, no implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collie.events import Event


class EventSink(Protocol):
    """Takes a run's events. Neither blocks nor raises, whatever happens to the file behind it."""

    def write(self, event: Event, *, step: int | None = None) -> None:
        """Take one event of the global step `step`."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What a Trainer hands to its monitors and evaluators.

    Attributes:
        events: where this rank's events go.
        rank: this process, 0 … world_size - 1.
        world_size: number of processes.
        step: returns the index of the last finished global step, -1 before the first.
        folder: the run's folder; None where it has none.
    """

    events: EventSink
    rank: int
    world_size: int
    step: Callable[[], int]
    folder: str | None = None


class SupportsEval(Protocol):
    """What a Trainer asks of an evaluator."""

    def bind(self, context: RunContext, model: Any) -> None:
        """Take the run's events and step, and the model as the Trainer has wrapped it."""

    def eval(self, dataloader: Iterable[Any] | None = None) -> dict[str, float]:
        """Evaluate and return results by metric name; equal on all ranks."""
        ...


class SupportsServer(Protocol):
    """What a Trainer asks of a server of prompts."""

    @property
    def answers_requests(self) -> bool:
        """Whether it takes the `prompt` and `cancel` requests out of the run's folder."""
        ...

    def bind(self, context: RunContext) -> None:
        """Take the run's events and step."""

    def start(self) -> None:
        """Begin to take prompts; where that has begun nothing happens. Every rank calls it."""

    def stop(self) -> None:
        """Take no more prompts, when it was called as often as `start`. Waits for no other rank."""

    def waiting(self) -> bool:
        """Whether this rank has a prompt to be answered. Never waits, neither for one nor for other ranks."""
        ...

    def data_provider_handler(self) -> None:
        """Answer a prompt, where any rank had one waiting. Every rank calls it."""


@contextmanager
def serving(server: SupportsServer | None) -> Iterator[None]:
    """Take prompts inside; whoever still waits at the end, however it comes, is told."""
    if server is None:
        yield
        return
    server.start()
    try:
        yield
    finally:
        server.stop()
