"""Prompts to a model in training, answered between its steps on all ranks."""

import copy
import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from collie.controller.evaluator._evaluator import evaluating
from collie.controller.server._company import Company, OtherRankFailed, Word
from collie.controller.server._limits import cache_bytes, free_bytes, is_out_of_memory, new_tokens, positions
from collie.events import Alert
from collie.interfaces import CollieError, ConfigError, DataError, RunContext
from collie.parallel import active_topology, current_engine
from collie.utils.data_provider import BaseProvider, RunFolderProvider

_PATIENCE = 60.0  # seconds that a rank which failed in an answer waits for the others
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A prompt as rank 0 tells it to the others."""

    ids: list[int]
    config: GenerationConfig | None


class Server:
    """Answers the prompts of a provider with a model, as a Trainer's `server`: between two steps, and on all ranks.

    Rank 0 has the provider; the others hear of a prompt from it, since a model that is spread over ranks generates on
    all of them. Training goes on as if there had been no prompt: torch's random numbers and the model's mode are put
    back. A prompt that cannot be answered is an alert, and whoever asked is told why.

    Refused are prompts that leave the model no position for an answer, and those whose keys and values would not fit
    the free memory of a rank; an answer ends where the model's positions do. Where memory runs out nevertheless, it is
    given back and training goes on, if all ranks can hear of it. A rank cannot that waits, inside an exchange of the
    model's own, for one that has run out; under ZeRO-3 that is any rank that did not run out itself. Then the one that
    failed raises after a minute, and the launcher ends the run, which is better than ranks that wait for ever.

    Args:
        model: CoLLiE's, or one of transformers.
        data_provider: where prompts come from and answers go; of several, each has its turn.

    Raises:
        ConfigError: a provider is none, or the model cannot generate.
    """

    def __init__(self, model: nn.Module, data_provider: BaseProvider | Sequence[BaseProvider]) -> None:
        several = isinstance(data_provider, Sequence) and len(data_provider) > 0
        providers: list[Any] = [*data_provider] if several else [data_provider]  # type: ignore[misc]
        for provider in providers:
            if not isinstance(provider, BaseProvider):
                raise ConfigError(
                    f"data_provider is a {type(provider).__name__}: derive it from collie.utils.data_provider's "
                    f"BaseProvider."
                )
        if not callable(getattr(model, "generate", None)):
            raise ConfigError(f"{type(model).__name__} has no generate, which a Server answers prompts with.")
        self.model = model
        self.data_provider: BaseProvider = providers[0]  # the one whose prompt is answered, or was last
        self._providers: list[BaseProvider] = providers
        self._next: Any = None  # rank 0: the prompt that was looked at, and is to be answered
        self._started = 0  # by how many, of a training and the evaluations in it
        self._context: RunContext | None = None
        self._last_company: Company | None = None

    @property
    def answers_requests(self) -> bool:
        """Whether the prompt requests in the run's folder are answered here."""
        return any(isinstance(provider, RunFolderProvider) for provider in self._providers)

    def bind(self, context: RunContext) -> None:
        """Become part of a run: take its events."""
        self._context = context
        if context.rank == 0:
            for provider in self._providers:
                provider.bind(context)

    def start(self) -> None:
        """Start the providers, on rank 0; nothing where they are started already. Collective.

        Raises:
            ConfigError: one cannot be started, such as a page whose port is taken; on every rank.
        """
        self._started += 1
        if self._started > 1:
            return
        problem: list[str | None] = [None]
        if active_topology().rank == 0:
            try:
                for provider in self._providers:
                    provider.start_provider()
            except Exception as error:
                problem[0] = str(error) if isinstance(error, CollieError) else f"{type(error).__name__}: {error}"
                for provider in self._providers:  # those that have started, too
                    provider.stop_provider()
        if active_topology().world_size > 1:
            dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            self._started = 0
            raise ConfigError(problem[0])

    def stop(self) -> None:
        """Stop the providers, on rank 0, with the last that started them: what still waits is told of the end."""
        self._started -= 1
        if self._started == 0 and active_topology().rank == 0:
            self._next = None
            for provider in self._providers:
                provider.stop_provider()

    def waiting(self) -> bool:
        """Whether a provider has a prompt: an answer for rank 0, and False on the others. Nobody is waited for."""
        if active_topology().rank == 0 and self._next is None:
            for _ in range(len(self._providers)):
                provider = self._providers.pop(0)  # each has its turn
                self._providers.append(provider)
                try:
                    self._next = provider.get_data()
                except Exception as error:  # somebody's own code, whose fault must not end a training
                    self._alert(f"{type(provider).__name__} is asked no more: {_sentence(error)}")
                    self._providers.remove(provider)
                if self._next is not None:
                    self.data_provider = provider
                    break
        return self._next is not None

    def data_provider_handler(self) -> None:
        """Answer one prompt, if there is any. Collective."""
        box: list[_Asked | None] = [None]
        if self.waiting():
            given, self._next = self._next, None
            try:
                box[0] = _Asked(self._checked(given), self.data_provider.generation_config_now())
            except Exception as error:  # of the provider's own code, too
                self._give_up(_sentence(error))
        if active_topology().world_size > 1:
            dist.broadcast_object_list(box, src=0)
        if box[0] is not None:
            self.run(torch.tensor([box[0].ids]), box[0].config)

    def run(self, input_ids_BS: Tensor, generation_config: GenerationConfig | None = None) -> None:
        """Answer one prompt, [1, S], and hand the new tokens to the provider. Collective: equal on all ranks.

        Raises:
            RuntimeError: this rank failed, and others wait for it inside an exchange of the model's own.
        """
        topology, company = active_topology(), self._company()
        if not company.takes_part:
            return  # this replica trains on with the others when they have answered
        config, refusal = self._within_limits(company, input_ids_BS.shape[1], generation_config)
        if refusal is not None:
            self._give_up(refusal)
            return
        with evaluating(self.model, topology):
            failure = self._answer(company, input_ids_BS.to(topology.device), config)
        if failure is not None:
            self._give_up(failure)
        elif topology.rank == 0:
            self._tell(self.data_provider.put_feedback, None)

    def _company(self) -> Company:
        """Return the ranks that answer together. Collective when it is asked in a new layout."""
        topology, engine = active_topology(), current_engine(self.model)
        everyone = engine is not None and engine.zero_stage == 3 and topology.dp_size > 1
        last = self._last_company
        if last is None or last.topology is not topology or last.everyone != everyone:
            last = self._last_company = Company(topology, everyone, _PATIENCE)
        return last

    def _within_limits(
        self, company: Company, prompt: int, given: GenerationConfig | None
    ) -> tuple[GenerationConfig | None, str | None]:
        """Return how to answer within the model's positions, or why the prompt is refused; the same on every rank."""
        longest, new = positions(self.model), new_tokens(self.model, given, prompt)
        if new < 1:
            return given, f"a prompt of {prompt} tokens has no room for an answer within the asked max_length."
        if longest is not None and prompt >= longest:
            return given, f"a prompt of {prompt} tokens leaves no room to answer: the model has {longest} positions."
        if longest is not None and prompt + new > longest:
            new = longest - prompt
            given = copy.deepcopy(given) if given is not None else GenerationConfig()
            given.max_new_tokens, given.max_length = new, None
        need = cache_bytes(self.model, prompt + new, given)
        found = company.everyones(need, free_bytes(active_topology().device))
        missing_R = found[:, 0] - found[:, 1]
        if (missing_R <= 0).all():
            return given, None
        worst, free = found[missing_R.argmax()].tolist()
        return given, (
            f"the keys and values of {prompt} + {new} tokens need {worst:,} bytes, and {free:,} are free. "
            f"Ask for a shorter answer (max_new_tokens), or with a shorter prompt."
        )

    def _answer(self, company: Company, input_ids_BS: Tensor, config: GenerationConfig | None) -> str | None:
        """Generate, and return what went wrong on any rank; None where the answer is whole."""
        problem: Exception | None = None
        word = Word.GO
        try:
            self._generate(company, input_ids_BS, config)
        except OtherRankFailed:
            word = Word.FAILED  # all of them have heard it
        except Exception as error:
            problem = error
        if word is Word.GO:
            try:
                word = company.exchange(Word.GO if problem is None else Word.FAILED)
            except RuntimeError as timeout:
                raise RuntimeError(
                    f"rank {company.rank} failed while the ranks answered a prompt together, and the others wait for "
                    f"it inside the model, so the run cannot go on: {type(problem).__name__}: {problem}"
                ) from (problem or timeout)
        if word is not Word.FAILED:
            return None
        reason = _sentence(problem) if problem is not None else None
        problem = None  # with its traceback go the tensors of the forward that it came from
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return company.first_reason(reason) or "a rank failed, and does not say why."

    def _generate(self, company: Company, input_ids_BS: Tensor, config: GenerationConfig | None) -> None:
        provider = self.data_provider if company.rank == 0 else None
        extra: dict[str, Any] = {}
        if provider is not None and provider.stream:
            extra["streamer"] = _Streamer(provider)
        if company.everyone:
            extra["synced_gpus"] = True  # CoLLiE's models know it, those of transformers must be told
        adapted: Any = self.model  # one of peft hands over to the model inside, whose forward is what repeats
        looping = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted
        with company.answering(looping, self.data_provider.cancelled) as stop:
            output = self.model.generate(  # type: ignore[operator]  # transformers' GenerationMixin
                input_ids=input_ids_BS,
                attention_mask=torch.ones_like(input_ids_BS),
                generation_config=config,
                stopping_criteria=[stop],
                **extra,
            )
        if provider is not None and not provider.stream:
            sequences = output if isinstance(output, Tensor) else output.sequences
            provider.put_feedback(sequences[0, input_ids_BS.shape[1] :].tolist())

    def _checked(self, data: Any) -> list[int]:
        """Return a prompt as a list of ids."""
        ids = data.reshape(-1).tolist() if isinstance(data, Tensor) else data
        vocab = getattr(getattr(self.model, "config", None), "vocab_size", None)
        ids = list(ids) if isinstance(ids, Iterable) else []
        fits = all(isinstance(one, int) and one >= 0 and (vocab is None or one < vocab) for one in ids)
        if not ids or not fits:
            raise DataError(f"a prompt is a list of token ids, 0 … {vocab or 'vocab_size'} - 1, and at least one.")
        return ids

    def _give_up(self, reason: str) -> None:
        if active_topology().rank != 0:
            return
        self._alert(f"a prompt was not answered: {reason}")
        self._tell(self.data_provider.put_error, reason)

    def _tell(self, say: Callable[[Any], None], what: str | None) -> None:
        """Tell the provider of an answer's end; what it makes of that is no matter of the training's."""
        try:
            say(what)
        except Exception as error:
            self._alert(f"{type(self.data_provider).__name__} took no end of an answer: {_sentence(error)}")

    def _alert(self, message: str) -> None:
        _logger.warning("%s", message)
        if self._context is not None:
            self._context.events.write(Alert("warning", "prompt", message), step=self._context.step())


def _sentence(error: Exception) -> str:
    if is_out_of_memory(error):
        return f"memory ran out while answering, and was given back: {str(error).splitlines()[0]}"
    return str(error) if isinstance(error, CollieError) else f"{type(error).__name__}: {error}"


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
