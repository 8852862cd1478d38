"""One prompt on its way to the model, and the answer on its way back."""

import queue
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import GenerationConfig


@dataclass(frozen=True)
class End:
    """Where an answer ends: in order, or with what went wrong."""

    error: str | None = None


Pieces = queue.SimpleQueue[list[int] | End]


class Question:
    """A prompt and its answer: whoever asked reads pieces of new tokens until there are no more.

    Args:
        input_ids: the prompt's tokens.
        generation_config: how to answer this one; None means as the provider does.
        pieces: where the answer goes; None means a queue of its own.

    Attributes:
        error: why there is no answer, or only a part of one; known when it has ended, None where all went well.
        cancelled: whether whoever asked no longer wants it.
        ended: whether nothing more will come, though pieces may still wait to be read.
    """

    def __init__(
        self, input_ids: Iterable[int], generation_config: GenerationConfig | None = None, pieces: Pieces | None = None
    ) -> None:
        self.input_ids = input_ids
        self.generation_config = generation_config
        self.error: str | None = None
        self.cancelled = self.ended = False
        self._pieces: Pieces = pieces if pieces is not None else queue.SimpleQueue()

    # --- of whoever asks

    def cancel(self) -> None:
        """Ask for the end of the answer: it ends after the next token, or is never begun."""
        self.cancelled = True

    def get(self, timeout: float | None = None) -> list[int] | None:
        """Wait for the next piece, new tokens only; None where the answer has ended.

        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        piece = self._pieces.get(timeout=timeout)
        if isinstance(piece, End):
            self.error = piece.error
            return None
        return piece

    # --- of whoever answers

    def put(self, ids: list[int]) -> None:
        """Take the next piece."""
        self._pieces.put(ids)

    def end(self, error: str | None = None) -> None:
        """Take the end, with a sentence where it is not the end of a whole answer."""
        self.ended = True
        self._pieces.put(End(error))
