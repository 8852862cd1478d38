"""How likely a model finds given continuations: the score of candidates in classification and in lm-eval's tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from collie.interfaces import DataError
from collie.module import IGNORE_INDEX, as_dict, model_inputs


@dataclass(frozen=True, slots=True)
class Continuation:
    """One row of tokens, some of which are scored.

    Attributes:
        ids: the tokens, at least two.
        labels: of the same length; -100 where a token is given, else the token that is scored.
    """

    ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model says of one continuation.

    Attributes:
        log: the sum of its tokens' natural log-probabilities.
        tokens: how many were scored.
        greedy: whether each was the most probable one at its place.
    """

    log: float
    tokens: int
    greedy: bool


def likelihoods(model: nn.Module, rows: Sequence[Continuation], padding: int, device: torch.device) -> list[Likelihood]:
    """Score the rows in one forward pass. The last token of the longest row is predicted and never read.

    Each row must have a label that is not -100 behind its first token.
    """
    ids, labels = (_padded(values, value) for values, value in _columns(rows, padding))
    keep = _padded([[1] * len(row.ids) for row in rows], 0)
    batch = {"input_ids": ids[:, :-1].to(device), "attention_mask": keep[:, :-1].to(device)}
    logits: Tensor = as_dict(model(**model_inputs(model, batch)))["logits"]
    wanted = labels[:, 1:].to(logits.device)
    counts = wanted != IGNORE_INDEX
    scored = logits[counts].float()  # [T, V]: of the scored places alone
    tokens = wanted[counts]
    log = scored.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].double()
    best = scored.argmax(dim=-1) == tokens
    return [
        Likelihood(float(log[part].sum()), part.stop - part.start, bool(best[part].all())) for part in _by_row(counts)
    ]


def _columns(rows: Sequence[Continuation], padding: int) -> list[tuple[list[Sequence[int]], int]]:
    return [([row.ids for row in rows], padding), ([row.labels for row in rows], IGNORE_INDEX)]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[B, longest row], the padding behind each row."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _by_row(counts: Tensor) -> list[slice]:
    """Where each row's elements lie among those that a mask [B, S] selects."""
    ends = counts.sum(dim=1).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def as_rows(batch: dict[str, Any]) -> list[list[Continuation]]:
    """The candidates of each row of a batch, as CollieDatasetForClassification makes them in the style "harness".

    Raises:
        DataError: the batch lacks labels, a row has fewer than two candidates, or one has nothing to score.
    """
    if "labels" not in batch:
        raise DataError(
            f"EvaluatorForClassification needs labels of every candidate, and the batch has {', '.join(batch)}: "
            'use CollieDatasetForClassification(…, style="harness").'
        )
    rows = []
    for number, (candidates, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        if len(candidates) < 2:
            raise DataError(
                f"Row {number} of the batch has {len(candidates)} candidate: give at least 2 to choose from."
            )
        rows.append([Continuation(*pair) for pair in zip(candidates, labels, strict=True)])
        if any(all(label == IGNORE_INDEX for label in each.labels[1:]) for each in rows[-1]):
            raise DataError(f"Row {number} of the batch has a candidate without a token to score behind its input.")
    return rows
