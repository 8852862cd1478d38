"""A CoLLiE model as lm-evaluation-harness sees a model. Only this module and `_tasks` import lm_eval."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn
from transformers import GenerationConfig

from collie.controller.evaluator._evaluator import evaluating
from collie.controller.evaluator._generation import EvaluatorForGeneration
from collie.controller.evaluator._likelihood import Continuation, Likelihood, likelihoods
from collie.controller.evaluator._prompts import pad_left
from collie.evaluation._spread import over_replicas
from collie.interfaces import ConfigError, DataError
from collie.module import IGNORE_INDEX
from collie.parallel import active_topology

_POSITIONS = 2048  # of a model that does not say
_NEW_TOKENS = 256  # the harness's own default
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing, by priority
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class CollieLM(TemplateLM):
    """Answers the harness's requests with a CoLLiE model in any layout.

    To the harness every rank is a process of its own with all requests; the data-parallel replicas share them here,
    and each rank gets all answers. So every rank must run the same tasks, and ends with the same numbers.

    Args:
        model: the model; its mode is put back after each kind of request.
        tokenizer: of transformers.
        batch_size: rows of one forward pass on each replica.
        max_length: positions that a request may take; None means as many as the model's config says, else 2048.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int = 1, max_length: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: give 1 or more.")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"max_length={max_length}: give 1 or more, or None for the model's own.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self._generator = EvaluatorForGeneration(model, tokenizer=tokenizer, metrics={})
        said = self._generator.positions()
        self.max_length = max_length if max_length is not None else said if said is not None else _POSITIONS

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: bos, or eos where there is none."""
        bos = self.tokenizer.bos_token_id
        return int(bos) if bos is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; the tokenizer adds what it adds, unless the text begins with the prefix token already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        answers = [(said.log, said.greedy) for said in self._likelihoods([request[1:] for request in requests])]
        for (texts, _given, _wanted), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in windows of which each token is predicted in one."""
        windows: list[tuple[list[int], list[int]]] = []
        ends = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            parts = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
            windows += [make_disjoint_window(part) for part in parts]
            ends.append(len(windows))
        said = self._likelihoods(windows)
        totals = [sum(part.log for part in said[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, up to a stop string. Requests of equal options share batches."""
        groups: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(at)
        texts: dict[int, str] = {}
        for members in groups.values():
            options = requests[members[0]].args[1]
            contexts = [requests[at].args[0] for at in members]
            texts |= zip(members, self._generated(contexts, options), strict=True)
        for at, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[at])
        return [texts[at] for at in range(len(requests))]

    def _likelihoods(self, pairs: Sequence[Sequence[list[int]]]) -> list[Likelihood]:
        """The scores of (given, wanted) pairs of ids. What does not fit is cut from the left, as the harness's own."""
        cut = 0
        rows = []
        for given, wanted in pairs:
            if not 0 < len(wanted) <= self.max_length:
                raise DataError(f"A continuation has {len(wanted)} tokens, and the model {self.max_length} positions.")
            ids = [*given, *wanted][-(self.max_length + 1) :]
            cut += len(ids) < len(given) + len(wanted)
            rows.append(Continuation(ids, [IGNORE_INDEX] * (len(ids) - len(wanted)) + wanted))
        _warn_of_cuts(cut, len(rows), "requests", self.max_length)
        with self._evaluating():
            return over_replicas(
                rows,
                lambda row: len(row.ids),
                self.batch_size,
                active_topology(),
                lambda batch: likelihoods(self.model, batch, self._padding(), self._generator.device),
                "log-likelihoods",
            )

    def _generated(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        settings, stops = generation_settings(options)
        assert settings.max_new_tokens is not None
        room = self.max_length - settings.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"The task asks for {settings.max_new_tokens} new tokens, and the model has {self.max_length} "
                "positions: give fewer (max_gen_toks in generation_kwargs)."
            )
        self._generator.generation_config = settings
        prompts = [self.tok_encode(text) or [self.prefix_token_id] for text in contexts]
        _warn_of_cuts(sum(len(prompt) > room for prompt in prompts), len(prompts), "prompts", room)
        prompts = [prompt[-room:] for prompt in prompts]

        def run(batch: list[list[int]]) -> list[str]:
            ids, mask = pad_left(batch, self._padding(), self._generator.device)
            result = self._generator.eval_fn({"input_ids": ids, "attention_mask": mask})
            return [_before(text, stops) for text in result["pred"]]

        with self._evaluating():
            return over_replicas(prompts, len, self.batch_size, active_topology(), run, "texts")

    def _padding(self) -> int:
        padding = self.tokenizer.pad_token_id
        return int(padding) if padding is not None else 0

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with evaluating(self.model, active_topology()), torch.no_grad():
            yield


def generation_settings(options: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """A task's generation_kwargs as transformers has them, and its stop strings.

    Raises:
        ConfigError: an option that transformers does not have.
    """
    values = dict(options)
    until = values.pop("until", None) or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    limits = [values.pop(name) for name in _LIMITS if name in values]
    limit = int(limits[0]) if limits else _NEW_TOKENS
    sampled = bool(values.pop("do_sample", False))
    if not sampled:  # tasks write temperature 0 for greedy
        values = {name: value for name, value in values.items() if name not in _SAMPLING}
    unknown = [name for name in values if not hasattr(GenerationConfig(), name)]
    if unknown:
        raise ConfigError(f"generation_kwargs has {', '.join(unknown)}, which transformers' GenerationConfig has not.")
    settings = GenerationConfig(max_new_tokens=limit, do_sample=sampled, stop_strings=stops or None, **values)
    return settings, stops


def _warn_of_cuts(cut: int, of: int, what: str, longest: int) -> None:
    if cut and active_topology().rank == 0:
        warnings.warn(f"{cut} of {of} {what} are longer than {longest} tokens: cut from the left.", stacklevel=3)


def _before(text: str, stops: list[str]) -> str:
    for stop in stops:
        text = text.split(stop, 1)[0]
    return text
