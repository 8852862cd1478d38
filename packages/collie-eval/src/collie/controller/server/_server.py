"""Prompts to a model in training, answered between its steps on all ranks."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from collie.events import Alert
from collie.interfaces import ConfigError, DataError, RunContext
from collie.parallel import active_topology, current_engine
from collie.utils.data_provider import BaseProvider

_logger = logging.getLogger(__name__)


class Server:
    """Answers the prompts of a provider with a model, as a Trainer's `server`: between two steps, and on all ranks.

    Rank 0 has the provider; the others hear of a prompt from it, since a model that is spread over ranks generates on
    all of them. Training goes on as if there had been no prompt: torch's random numbers and the model's mode are put
    back. A prompt that cannot be answered is an alert, and its feedback ends.

    Args:
        model: CoLLiE's, or one of transformers.
        data_provider: where prompts come from and answers go.

    Raises:
        ConfigError: the provider is none, or the model cannot generate.
    """

    def __init__(self, model: nn.Module, data_provider: BaseProvider) -> None:
        if not isinstance(data_provider, BaseProvider):
            raise ConfigError(
                f"data_provider is a {type(data_provider).__name__}: derive it from collie.utils.data_provider's "
                f"BaseProvider."
            )
        if not callable(getattr(model, "generate", None)):
            raise ConfigError(f"{type(model).__name__} has no generate, which a Server answers prompts with.")
        self.model = model
        self.data_provider = data_provider
        self._next: Any = None  # rank 0: the prompt that was looked at, and is to be answered
        self._started = False
        self._context: RunContext | None = None

    def bind(self, context: RunContext) -> None:
        """Become part of a run: take its events."""
        self._context = context

    def start(self) -> None:
        """Start the provider, on rank 0; a second time it does nothing."""
        if not self._started and active_topology().rank == 0:
            self.data_provider.start_provider()
        self._started = True

    def waiting(self) -> bool:
        """Whether the provider has a prompt: an answer for rank 0, and False on the others. Nobody is waited for."""
        if active_topology().rank == 0 and self._next is None:
            self._next = self.data_provider.get_data()
        return self._next is not None

    def data_provider_handler(self) -> None:
        """Answer one prompt, if there is any. Collective."""
        problem: DataError | None = None
        box: list[list[int] | None] = [None]
        if self.waiting():
            given, self._next = self._next, None
            try:
                box[0] = self._checked(given)
            except DataError as error:
                problem = error
        if active_topology().world_size > 1:
            dist.broadcast_object_list(box, src=0)
        if problem is not None:
            self._give_up(problem)
        elif box[0] is not None:
            self.run(torch.tensor([box[0]]))

    def run(self, input_ids_BS: Tensor) -> None:
        """Generate from one prompt, [1, S], equal on all ranks, and hand the new tokens to the provider. Collective."""
        trained, topology = self.model.training, active_topology()
        provider = self.data_provider if topology.rank == 0 else None
        cuda = topology.device.type == "cuda"
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=[topology.device] if cuda else []):
                new = self._generated(input_ids_BS.to(topology.device), provider)
            if provider is not None:
                if not provider.stream:
                    provider.put_feedback(new)
                provider.put_feedback(None)
        except Exception as error:  # such as a prompt that is too long: the same on every rank
            self._give_up(error)
        finally:
            self.model.train(trained)

    def _generated(self, input_ids_BS: Tensor, provider: BaseProvider | None) -> list[int]:
        extra: dict[str, Any] = {}
        if provider is not None and provider.stream:
            extra["streamer"] = _Streamer(provider)
        engine = current_engine(self.model)
        if engine is not None and engine.zero_stage == 3 and active_topology().dp_size > 1:
            extra["synced_gpus"] = True  # CoLLiE's models know it, those of transformers must be told
        output = self.model.generate(  # type: ignore[operator]  # transformers' GenerationMixin
            input_ids=input_ids_BS,
            attention_mask=torch.ones_like(input_ids_BS),
            generation_config=self.data_provider.generation_config,
            **extra,
        )
        sequences = output if isinstance(output, Tensor) else output.sequences
        ids: list[int] = sequences[0, input_ids_BS.shape[1] :].tolist()
        return ids

    def _checked(self, data: Any) -> list[int]:
        """Return a prompt as a list of ids."""
        ids = data.reshape(-1).tolist() if isinstance(data, Tensor) else data
        vocab = getattr(getattr(self.model, "config", None), "vocab_size", None)
        ids = list(ids) if isinstance(ids, Iterable) else []
        fits = all(isinstance(one, int) and one >= 0 and (vocab is None or one < vocab) for one in ids)
        if not ids or not fits:
            raise DataError(f"a prompt is a list of token ids, 0 … {vocab or 'vocab_size'} - 1, and at least one.")
        return ids

    def _give_up(self, error: Exception) -> None:
        if active_topology().rank != 0:
            return
        message = f"a prompt was not answered: {type(error).__name__}: {error}"
        _logger.warning("%s", message)
        if self._context is not None:
            self._context.events.write(Alert("warning", "prompt", message), step=self._context.step())
        self.data_provider.put_feedback(None)


class _Streamer(BaseStreamer):
    """Hands each new token to the provider as soon as it is there."""

    def __init__(self, provider: BaseProvider) -> None:
        self._provider = provider
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first and which the provider has, then a token at a time."""
        if not self._prompt:
            self._provider.put_feedback(value.reshape(-1).tolist())
        self._prompt = False

    def end(self) -> None:
        """Nothing: the server says when an answer has ended."""
