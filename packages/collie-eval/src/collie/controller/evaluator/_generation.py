"""Generated text of prompts."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig

from collie.config import CollieConfig
from collie.controller.evaluator._agree import agreed
from collie.controller.evaluator._evaluator import EvalFn, Evaluator
from collie.controller.evaluator._prompts import pad_left, prompts_and_targets, until_stop
from collie.interfaces import ConfigError, SupportsServer
from collie.metrics import BaseMetric, DecodeMetric
from collie.metrics._text import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_NEW_TOKENS = 128


class EvaluatorForGeneration(Evaluator):
    """Generates from each row's prompt.

    A row with labels is cut before its first label that is not -100: the answer never enters the model. A row without
    is a prompt as a whole. Prompts are padded on the left here, whatever the collate_fn did.

    Args:
        generation_config: how to generate. What it leaves open: greedy, 128 new tokens or as many as the
            model has positions for (if it sets neither max_new_tokens nor max_length), and the end and padding tokens
            of the tokenizer, else of the model.
        skip_special_tokens: leave special tokens out of the texts.
        metrics: None means {"decode": DecodeMetric()}.

    The other arguments are those of `Evaluator`. Without a tokenizer `pred` and `target` are lists of ids.

    Raises:
        ConfigError: generation_config asks for several sequences a row.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Sequence[Any] | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        metrics: Mapping[str, BaseMetric] | None = None,
        eval_fn: EvalFn | None = None,
        config: CollieConfig | None = None,
        collate_fn: Callable[[list[Any]], dict[str, Any]] | None = None,
        server: SupportsServer | None = None,
        monitors: Sequence[Any] | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        skip_special_tokens: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            model=model,
            dataset=dataset,
            tokenizer=tokenizer,
            metrics={"decode": DecodeMetric()} if metrics is None else metrics,
            eval_fn=eval_fn,
            config=config,
            collate_fn=collate_fn,
            server=server,
            monitors=monitors,
            name=name,
        )
        self.generation_config = generation_config if generation_config is not None else GenerationConfig()
        self.skip_special_tokens = skip_special_tokens
        sequences = self.generation_config.num_return_sequences
        if sequences not in (None, 1):
            raise ConfigError(f"generation_config.num_return_sequences={sequences}: an evaluation takes 1 a row.")

    def eval_fn(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Generate for one batch.

        Returns:
            pred: what was generated, new tokens only, up to and with the end token; target: the batch's own `target`
            (texts, or lists of references), else the label tokens of the row, or None; both texts where there is a
            tokenizer. input_ids: the prompts, a list of ids a row.

        Raises:
            DataError: a row has no prompt: its first token is a label, or it is empty.
        """
        prompts, targets = agreed(self.topology, lambda: prompts_and_targets(batch))
        settings = self._settings(longest=max(len(prompt) for prompt in prompts))
        input_ids, attention_mask = pad_left(prompts, settings.pad_token_id, self.device)
        extra = self._extra(settings)
        output = self.model.generate(  # type: ignore[operator]  # transformers' GenerationMixin
            input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **extra
        )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        stops = _as_list(settings.eos_token_id)
        generated = [until_stop(row, stops) for row in sequences[:, input_ids.shape[1] :].tolist()]
        return {
            "pred": [self._text(row) for row in generated],
            "target": batch.get("target", [None if row is None else self._text(row) for row in targets]),
            "input_ids": prompts,
        }

    def _text(self, ids: list[int]) -> str | list[int]:
        if self.tokenizer is None:
            return ids
        return decode(ids, self.tokenizer, skip_special_tokens=self.skip_special_tokens)

    def _extra(self, settings: GenerationConfig) -> dict[str, Any]:
        """What `generate` needs besides the config: to find stop strings, and to keep sharded ranks in step."""
        extra: dict[str, Any] = {}
        if settings.stop_strings:
            extra["tokenizer"] = self.tokenizer
        if self.config is not None and self.config.zero_stage == 3 and self.topology.dp_size > 1:
            extra["synced_gpus"] = True  # CoLLiE's models know it, those of transformers must be told
        return extra

    def _settings(self, longest: int) -> GenerationConfig:
        """The generation config with everything set that it left open; `longest` is the longest prompt's length."""
        settings = copy.deepcopy(self.generation_config)
        if settings.max_new_tokens is None and settings.max_length is None:
            positions = self.positions()
            room = positions - longest if positions is not None else _MAX_NEW_TOKENS
            settings.max_new_tokens = min(_MAX_NEW_TOKENS, room) if room > 0 else _MAX_NEW_TOKENS
        if settings.do_sample is None:
            settings.do_sample = False
        if settings.eos_token_id is None:
            settings.eos_token_id = self._token("eos_token_id")
        if settings.pad_token_id is None:
            settings.pad_token_id = self._token("pad_token_id")
        if settings.pad_token_id is None:
            settings.pad_token_id = next(iter(_as_list(settings.eos_token_id)), 0)
        return settings

    def positions(self) -> int | None:
        """How many positions the model says that it was made for; None without a word."""
        config = getattr(self.model, "config", None)
        said = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        return said if isinstance(said, int) else None

    def _token(self, name: str) -> Any:
        """A special token of the tokenizer, else of the model."""
        sources = (self.tokenizer, getattr(self.model, "generation_config", None), getattr(self.model, "config", None))
        found = (getattr(source, name, None) for source in sources)
        return next((token for token in found if token is not None), None)


def _as_list(token: Any) -> list[int]:
    if token is None:
        return []
    if isinstance(token, torch.Tensor):
        token = token.tolist()
    return [token] if isinstance(token, int) else list(token)
