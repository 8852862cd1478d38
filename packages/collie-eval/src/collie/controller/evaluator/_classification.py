"""Classification: which of several candidates a model prefers, or which letter it answers."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from transformers import GenerationConfig

from collie.config import CollieConfig
from collie.controller.evaluator._agree import agreed
from collie.controller.evaluator._evaluator import EvalFn
from collie.controller.evaluator._generation import EvaluatorForGeneration
from collie.controller.evaluator._likelihood import Continuation, Likelihood, as_rows, likelihoods
from collie.data import ColliePadder
from collie.interfaces import ConfigError, DataError, SupportsServer
from collie.metrics import AccuracyMetric, BaseMetric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LATIN = re.compile("[A-Za-z]")


class EvaluatorForClassification(EvaluatorForGeneration):
    """Lets the model choose, in the style in which the rows are made (see CollieDatasetForClassification).

    "harness" (lm-evaluation-harness): a row's input_ids are one list for each candidate. Each is scored by the
    log-likelihood of its label tokens, and the best one is the prediction. Candidates of several rows share a forward
    pass, eval_batch_size at a time, those of like length together.

    "helm" (Liang et al. 2022): a row is a prompt that lists the candidates as A, B, …. The model generates a few
    tokens, and the first latin letter among them is the prediction.

    Rows have `target`, the number of the right candidate (0 is the first, and A).

    Args:
        only_latin: style "helm": with False the whole generated text, without spaces around it, is the prediction, and
            a row's target may be a text.
        max_new_tokens: style "helm": how many tokens to generate.
        score: style "harness": "sum" of the tokens' log-probabilities, or their "mean", which does not favour short
            candidates.
        collate_fn: rows → batch, for the style "helm"; candidates are put side by side here. None means ColliePadder().
        metrics: None means {"acc": AccuracyMetric()}.

    The other arguments are those of `Evaluator`; "helm" needs the tokenizer.

    Raises:
        ConfigError: another `score`, or max_new_tokens below 1.
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
        only_latin: bool = True,
        max_new_tokens: int = 3,
        score: Literal["sum", "mean"] = "sum",
        name: str | None = None,
    ) -> None:
        if score not in ("sum", "mean"):
            raise ConfigError(f'score={score!r}: use "sum" or "mean".')
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}: give 1 or more.")
        super().__init__(
            model=model,
            dataset=dataset,
            tokenizer=tokenizer,
            metrics={"acc": AccuracyMetric()} if metrics is None else metrics,
            eval_fn=eval_fn,
            config=config,
            collate_fn=_Collate(collate_fn if collate_fn is not None else ColliePadder()),
            server=server,
            monitors=monitors,
            generation_config=GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False),
            name=name,
        )
        self.only_latin = only_latin
        self.score = score

    def eval_fn(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Choose for one batch.

        Returns:
            "harness": pred and target, both [B] (numbers of candidates). "helm": pred and target as letters ("" where
            there was none), and input_ids, the prompts.

        Raises:
            DataError: rows without target or labels, with one candidate, or with a target that is none of them.
        """
        if "target" not in batch:
            raise DataError(
                f"EvaluatorForClassification needs target, and the batch has {', '.join(batch)}: use "
                "CollieDatasetForClassification, or rows with the number of the right candidate as target."
            )
        return self._chosen(batch) if isinstance(batch["input_ids"], list) else self._answered(batch)

    def _chosen(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows, target = agreed(self.topology, lambda: _rows_and_targets(batch))
        flat = [candidate for candidates in rows for candidate in candidates]
        said = iter(self._likelihoods(flat))
        chosen = []
        for candidates in rows:
            scores = [self._score(next(said)) for _ in candidates]
            chosen.append(scores.index(max(scores)))
        return {"pred": torch.tensor(chosen, device=self.device), "target": torch.tensor(target, device=self.device)}

    def _likelihoods(self, candidates: list[Continuation]) -> list[Likelihood]:
        """The candidates' scores in their order; every data-parallel rank makes as many forward passes."""
        size = self.config.eval_batch_size if self.config is not None else 1
        order = sorted(range(len(candidates)), key=lambda at: -len(candidates[at].ids))
        found: dict[int, Likelihood] = {}
        settings = self._settings(longest=1)
        padding = settings.pad_token_id if isinstance(settings.pad_token_id, int) else 0
        for number in range(self._passes(-(-len(candidates) // size))):
            part = order[number * size : (number + 1) * size]
            rows = [candidates[at] for at in part or order[:1]]  # a filler: other ranks have more candidates
            scores = likelihoods(self.model, rows, padding, self.device)
            found |= dict(zip(part, scores, strict=False))
        return [found[at] for at in range(len(candidates))]

    def _passes(self, own: int) -> int:
        """The most forward passes that a data-parallel rank needs for this batch."""
        group = self.topology.dp_group
        if group is None:
            return own
        most = torch.tensor(own, device=self.topology.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
        return int(most)

    def _score(self, said: Likelihood) -> float:
        return said.log if self.score == "sum" else said.log / said.tokens

    def _answered(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.tokenizer is None:
            raise ConfigError('EvaluatorForClassification reads the answers of "helm" rows: give it tokenizer=….')
        prompts = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
        result = super().eval_fn(prompts)
        right = [_letter(each) for each in batch["target"]]
        return {
            "pred": [self._answer(text) for text in result["pred"]],
            "target": right,
            "input_ids": result["input_ids"],
        }

    def _answer(self, text: str) -> str:
        if not self.only_latin:
            return text.strip()
        found = _LATIN.search(text)
        return found[0].upper() if found is not None else ""


EvaluatorForClassfication = EvaluatorForClassification  # the name that existing scripts import


class _Collate:
    """Rows of candidates side by side as they are; other rows as the inner function has it."""

    def __init__(self, inner: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        first = rows[0].get("input_ids") if isinstance(rows[0], Mapping) else None
        if not isinstance(first, list | tuple) or not first or not isinstance(first[0], list | tuple):
            return self.inner(rows)
        return {name: [row[name] for row in rows if name in row] for name in rows[0]}


def _rows_and_targets(batch: dict[str, Any]) -> tuple[list[list[Continuation]], list[int]]:
    rows, targets = as_rows(batch), [int(target) for target in batch["target"]]
    for number, (candidates, right) in enumerate(zip(rows, targets, strict=True)):
        if not 0 <= right < len(candidates):
            raise DataError(f"Row {number} of the batch has target {right} and {len(candidates)} candidates.")
    return rows, targets


def _letter(target: Any) -> str:
    """Target 0 is A."""
    return target if isinstance(target, str) else chr(ord("A") + int(target))
