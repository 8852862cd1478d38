"""A queue of prompts, and the way of their answers back."""

import queue
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

from collie.interfaces import RunContext
from collie.utils.data_provider._question import End, Pieces, Question


class BaseProvider:
    """Brings prompts to a Server and takes its answers. A subclass says in `provider_handler` where they come from.

        class Console(BaseProvider):
            def provider_handler(self):
                for line in sys.stdin:
                    self.put_data(tokenizer(line).input_ids)
                    while (ids := self.get_feedback()) is not None:
                        print(tokenizer.decode(ids))
                    if self.last_error:
                        print(self.last_error)

    Prompts are answered one after another, in the order in which they came; the pieces of an answer end with None.
    Where several people ask at once, `ask` gives each an answer of their own.

    Args:
        stream: hand over each new token by itself; else all of an answer at once.
        generation_config: how to generate; None means what the model's own says.

    Attributes:
        last_error: why the answer that `get_feedback` ended last is none, or not whole; None where all went well.
    """

    def __init__(self, stream: bool = False, generation_config: GenerationConfig | None = None) -> None:
        self.stream = stream
        self.generation_config = generation_config
        self.last_error: str | None = None
        self._answers: Pieces = queue.SimpleQueue()
        self._waiting: deque[Question] = deque()
        self._current: Question | None = None  # being answered
        self._closed = False
        self._lock = threading.Lock()  # of the three above: whoever asks and the training are different threads
        self._failed: str | None = None
        self._thread: threading.Thread | None = None

    # --- for whoever asks

    def provider_handler(self) -> None:
        """Call `put_data` and `get_feedback`, on a thread of rank 0 that ends with the process."""
        raise NotImplementedError(f"{type(self).__name__} does not implement provider_handler()")

    def put_data(self, input_ids: Iterable[int]) -> None:
        """Ask: token ids, as a list or a tensor [S] or [1, S]. The answer comes by `get_feedback`."""
        self.enqueue(Question(input_ids, pieces=self._answers))

    def ask(self, input_ids: Iterable[int], generation_config: GenerationConfig | None = None) -> Question:
        """Ask, on any thread, and return the question, by which its own answer comes."""
        question = Question(input_ids, generation_config)
        self.enqueue(question)
        return question

    def enqueue(self, question: Question) -> None:
        """Let a question wait for its turn; after `stop_provider` it ends at once."""
        with self._lock:
            if not self._closed:
                self._waiting.append(question)
                return
        question.end("the training has ended: nobody answers any more.")

    def ahead(self, question: Question) -> int:
        """Return how many are answered before a question that waits; 0 for any other."""
        with self._lock:
            if question not in self._waiting:
                return 0
            return self._waiting.index(question) + (self._current is not None)

    def get_feedback(self, timeout: float | None = None) -> list[int] | None:
        """Wait for the next piece of an answer, new tokens only; None where it has ended (see `last_error`).

        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        piece = self._answers.get(timeout=timeout)
        if isinstance(piece, End):
            self.last_error = piece.error
            return None
        return piece

    def cancel(self) -> None:
        """Ask for the end of the answer that is under way; without one nothing happens."""
        with self._lock:
            if self._current is not None:
                self._current.cancel()

    # --- for the server

    def bind(self, context: RunContext) -> None:
        """Become part of a run. Called on rank 0, where there is one, before the provider is started."""

    def start_provider(self) -> None:
        """Begin to take prompts: run `provider_handler` on its thread, once."""
        self._closed = False
        if self._thread is None:
            self._thread = threading.Thread(target=self.provider_handler, name="collie-prompts", daemon=True)
            self._thread.start()

    def stop_provider(self) -> None:
        """Take no more prompts: whoever still waits, or was being answered, is told that the training has ended."""
        with self._lock:
            self._closed = True
            left = [one for one in (self._current, *self._waiting) if one is not None]
            self._current = None
            self._waiting.clear()
        for question in left:
            question.end("the training has ended before this was answered.")

    def get_data(self) -> Any:
        """Return the next prompt's tokens; None, at once, where there is none. The server calls it between steps."""
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                self._current = question = self._waiting.popleft()
            if not question.cancelled:
                return question.input_ids
            self.put_feedback(None)

    def generation_config_now(self) -> GenerationConfig | None:
        """Return how to answer the prompt that `get_data` returned last."""
        own = self._current.generation_config if self._current is not None else None
        return own if own is not None else self.generation_config

    def cancelled(self) -> bool:
        """Whether the answer under way is no longer wanted; asked after each token."""
        return self._current is not None and self._current.cancelled

    def put_feedback(self, feedback: list[int] | None) -> None:
        """Take a piece of an answer, or its end, from the server."""
        if feedback is not None:
            if self._current is not None:
                self._current.put(feedback)
            else:
                self._answers.put(feedback)
            return
        with self._lock:
            question, self._current = self._current, None
            error, self._failed = self._failed, None
        if question is not None:
            question.end(error)
        else:
            self._answers.put(End(error))

    def put_error(self, reason: str) -> None:
        """Take the end of an answer that is none, or not whole, with a sentence for whoever asked."""
        self._failed = reason
        self.put_feedback(None)
