"""Where a row's prompt ends, and prompts side by side."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from collie.interfaces import DataError
from collie.module import IGNORE_INDEX


def prompts_and_targets(batch: Mapping[str, Any]) -> tuple[list[list[int]], list[list[int] | None]]:
    """Cut each row of a batch into what the model may see and what it should answer.

    Args:
        batch: input_ids [B, S], and where they are known attention_mask [B, S] (0 is dropped) and labels [B, S].

    Returns:
        The prompt of each row: its tokens before the first label that is not -100, all of them where there is none. And
        its target: the labels that are not -100, or None where there is none.

    Raises:
        DataError: the batch has no input_ids, its rows are packed, or a row has an empty prompt.
    """
    if "cu_seqlens" in batch:
        raise DataError("EvaluatorForGeneration goes on with one row a sequence, and the batch's rows are packed.")
    if not isinstance(batch.get("input_ids"), Tensor):
        raise DataError(f"EvaluatorForGeneration needs input_ids, and the batch has {', '.join(batch)}.")
    ids = batch["input_ids"]
    keep = batch.get("attention_mask")
    labels = batch.get("labels")
    keep = torch.ones_like(ids) if keep is None else keep
    labels = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels
    prompts: list[list[int]] = []
    targets: list[list[int] | None] = []
    for row_ids, row_keep, row_labels in zip(ids.tolist(), keep.tolist(), labels.tolist(), strict=True):
        end = next((at for at, label in enumerate(row_labels) if label != IGNORE_INDEX), len(row_ids))
        prompt = [token for token, kept in zip(row_ids[:end], row_keep[:end], strict=True) if kept]
        if not prompt:
            raise DataError(
                f"Row {len(prompts)} of the batch has no prompt to generate from "
                f"({'its first token is already a label' if end < len(row_ids) else 'it has 0 tokens'}): "
                "give rows with input and output, or rows without labels."
            )
        prompts.append(prompt)
        targets.append([label for label in row_labels if label != IGNORE_INDEX] or None)
    return prompts, targets


def pad_left(rows: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, both [B, longest row], with the padding before each row."""
    longest = max(len(row) for row in rows)
    ids = [[padding] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def until_stop(ids: list[int], stops: Collection[int]) -> list[int]:
    """`ids` up to and with the first end token; what follows is padding."""
    end = next((at for at, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]
