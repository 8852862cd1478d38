"""A queue of prompts and one of answers, with a thread of the user's own at the other end."""

import queue
import threading
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig


class BaseProvider:
    """Brings prompts to a Server and takes its answers. A subclass says in `provider_handler` where they come from.

        class Console(BaseProvider):
            def provider_handler(self):
                for line in sys.stdin:
                    self.put_data(tokenizer(line).input_ids)
                    while (ids := self.get_feedback()) is not None:
                        print(tokenizer.decode(ids))

    Prompts are answered one after another, in the order in which they came; the pieces of an answer end with None.

    Args:
        stream: hand over each new token by itself; else all of an answer at once.
        generation_config: how to generate; None means what the model's own says.
    """

    def __init__(self, stream: bool = False, generation_config: GenerationConfig | None = None) -> None:
        self.stream = stream
        self.generation_config = generation_config
        self._prompts: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()

    def provider_handler(self) -> None:
        """Call `put_data` and `get_feedback`, on a thread of rank 0 that ends with the process."""
        raise NotImplementedError(f"{type(self).__name__} does not implement provider_handler()")

    def start_provider(self) -> None:
        """Run `provider_handler` on its thread."""
        threading.Thread(target=self.provider_handler, name="collie-prompts", daemon=True).start()

    def put_data(self, input_ids: Iterable[int]) -> None:
        """Ask: token ids, as a list or a tensor [S] or [1, S]."""
        self._prompts.put(input_ids)

    def get_feedback(self, timeout: float | None = None) -> list[int] | None:
        """Wait for the next piece of an answer, new tokens only; None where it has ended.

        Raises:
            queue.Empty: nothing came within `timeout` seconds.
        """
        return self._answers.get(timeout=timeout)

    def get_data(self) -> Any:
        """Return the next prompt; None, at once, where there is none. The server calls it between steps."""
        try:
            return self._prompts.get_nowait()
        except queue.Empty:
            return None

    def put_feedback(self, feedback: list[int] | None) -> None:
        """Take a piece of an answer, or its end, from the server."""
        self._answers.put(feedback)
