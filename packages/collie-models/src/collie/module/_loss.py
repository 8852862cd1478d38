"""The language model's loss: each token is predicted from those before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, S sequence, V vocabulary

IGNORE_INDEX = -100
"""The label of a position that is no target (torch's cross-entropy and transformers use the same)."""


def shifted(labels_BS: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return for each position the label it predicts, that of the next one; the last predicts nothing. [B, S]."""
    return F.pad(labels_BS[:, 1:], (0, 1), value=ignore_index)


class GPTLMLoss(nn.Module):
    """Cross-entropy of logits and the labels one position later.

    Args:
        ignore_index: label of positions that are no targets.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over all targets, 0-d float32; 0 where there is none.

        Args:
            logits: [B, S, V]
            labels: [B, S]; the loss shifts them, the data does not.
        """
        total, count = self.sum(logits, labels)
        return total / count.clamp(min=1)

    def sum(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of negative log-likelihoods (0-d float32) and the number of targets (0-d int64)."""
        targets = shifted(labels.to(logits.device), self.ignore_index)
        total = F.cross_entropy(
            logits.flatten(0, -2).float(), targets.flatten(), ignore_index=self.ignore_index, reduction="sum"
        )
        return total, (targets != self.ignore_index).sum()

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}"


def count_targets(labels_BS: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Return how many positions of a batch have a target, 0-d int64."""
    return torch.count_nonzero(labels_BS[:, 1:] != ignore_index)
