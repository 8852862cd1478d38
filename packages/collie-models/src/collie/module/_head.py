"""The output projection, and its loss without the logits of a whole batch.

A 32k-token batch over a vocabulary of 128k has 16 GiB of float32 logits, and its gradient as much again. The loss
needs only a few rows at a time: `LMHead.forward(hidden, labels)` walks over them in chunks and computes the gradients
at once, while a chunk's probabilities are there (the idea of Liger's fused linear cross-entropy, Hsu et al. 2024).
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from collie.module._loss import IGNORE_INDEX, shifted

# B batch, S sequence, E hidden, V vocabulary, M targets of a batch, C those of a chunk

_CHUNK_ELEMENTS = 2**26  # of a chunk's logits: 256 MiB in float32
_CHUNK_ROWS = 256  # at least, or the products are too thin


class Vocabulary(Protocol):
    """What the loss needs to know about the logits that it is given: all of a row's, or a rank's part of them."""

    def score(self, logits_CV: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
        """Return log Σ exp of each row's logits, and its target's logit, both [C, 1]."""
        ...

    def subtract_one(self, grad_CV: Tensor, target_C1: Tensor) -> None:
        """Subtract 1 at each row's target, in place."""
        ...


class WholeVocabulary:
    """All of a row's logits are here."""

    def score(self, logits_CV: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
        return logits_CV.logsumexp(1, keepdim=True), logits_CV.gather(1, target_C1)

    def subtract_one(self, grad_CV: Tensor, target_C1: Tensor) -> None:
        grad_CV.scatter_add_(1, target_C1, grad_CV.new_full(target_C1.shape, -1.0))


class LMHead(nn.Linear):
    """Linear E → V that also computes the loss. Everything that touches the weight happens inside `forward`.

    Under ZeRO-3 the weight exists only there; a tied head shares the embedding's Parameter.
    """

    vocabulary: Vocabulary = WholeVocabulary()

    def forward(self, hidden_BSE: Tensor, labels_BS: Tensor | None = None) -> Tensor:
        """Return logits [B, S, V]; or with labels the sum of the shifted targets' negative log-likelihoods.

        Args:
            hidden_BSE: the model's last hidden states, normed.
            labels_BS: [B, S] with -100 where there is no target; shifted here.

        Returns:
            [B, S, V] in the weight's dtype; or 0-d float32. The latter's gradients are computed in this call, so a
            backward pass costs no more than a multiplication and can be repeated over a retained graph.
        """
        if labels_BS is None:
            return F.linear(hidden_BSE, self.weight, self.bias)
        targets = shifted(labels_BS.to(hidden_BSE.device)).flatten()
        total: Tensor = _LinearNLL.apply(
            hidden_BSE.flatten(0, -2), self.weight, self.bias, targets, self.vocabulary, torch.is_grad_enabled()
        )
        return total


class _LinearNLL(torch.autograd.Function):
    """Sum of -log softmax(h·Wᵀ + b)[target] over rows that have a target."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        targets: Tensor,
        vocabulary: Vocabulary,
        with_grad: bool,
    ) -> Tensor:
        rows_M = (targets != IGNORE_INDEX).nonzero().squeeze(1)
        wants = [with_grad and wanted for wanted in ctx.needs_input_grad[:3]]
        # float32 sums: a chunk's share of a half-precision gradient would be rounded once a chunk
        grad_hidden = torch.zeros_like(hidden) if wants[0] else None
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if wants[1] else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if wants[2] and bias_V is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for rows_C in rows_M.split(max(_CHUNK_ROWS, _CHUNK_ELEMENTS // weight_VE.shape[0])):
            hidden_CE, target_C1 = hidden[rows_C], targets[rows_C].unsqueeze(1)
            logits_CV = F.linear(hidden_CE, weight_VE, bias_V).float()
            norm_C1, score_C1 = vocabulary.score(logits_CV, target_C1)
            total += (norm_C1 - score_C1).sum()
            if not any(wants):
                continue
            grad_CV = logits_CV.sub_(norm_C1).exp_()  # softmax, in place
            vocabulary.subtract_one(grad_CV, target_C1)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VE.dtype)
            if grad_hidden is not None:
                grad_hidden[rows_C] = (grad_CV @ weight_VE).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_CV.t() @ hidden_CE
        if weight_VE.dtype is torch.bfloat16 and grad_weight is not None:
            grad_weight = grad_weight.bfloat16()  # float16 would overflow here: its sums wait for the loss's scale
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden.dtype, weight_VE.dtype, bias_V.dtype if bias_V is not None else None)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            (saved * grad).to(dtype) if saved is not None else None
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *grads, None, None, None
