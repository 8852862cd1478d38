"""Embedding and head of which each tensor-parallel rank holds a range of the vocabulary.

A vocabulary that the ranks do not divide is padded to equal parts. Padding is zero, is never looked up, takes no part
in a softmax and appears neither in logits nor in a saved model.
"""

from dataclasses import replace
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from collie.module import LMHead
from collie.parallel._collectives import Group, gather_last, sum_backward
from collie.parallel._cut import Cut, Ranges, cut_of, even, mark
from collie.parallel._shard import as_zero3, is_partitioned
from collie.parallel._stream import Stream
from collie.parallel._tied import mark_copy, original_of
from collie.parallel._topology import Topology

# B batch, S sequence, E hidden, V vocabulary, C rows of a chunk, L entries of the vocabulary on this rank


class VocabularyPart:
    """Entries [start, stop) of the vocabulary, as the head's loss sees it: see `collie.module.WholeVocabulary`.

    Args:
        start, stop: this rank's entries, without padding.
        total: the number of entries on all ranks.
        group: the ranks that hold the others.
    """

    def __init__(self, start: int, stop: int, total: int, group: Group) -> None:
        self.start, self.stop, self.total = start, stop, total
        self._group = group

    def local(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids as indices into this part, 0 for those of other ranks, and which are of other ranks.

        An id that no rank has becomes an index that no rank has: looking it up fails on all of them, as it does in one
        process (on the GPU by an assertion on the device, so that nothing waits for the ids).
        """
        elsewhere = (ids < self.start) | (ids >= self.stop)
        nowhere = (ids < 0) | (ids >= self.total)
        return (ids - self.start).masked_fill(elsewhere, 0).masked_fill(nowhere, self.total), elsewhere

    def score(self, logits_CL: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of the softmax's denominator over all ranks' logits, and the targets' logits.

        Padding is set to -inf in place.
        """
        logits_CL[:, self.stop - self.start :] = float("-inf")
        top_C1 = logits_CL.amax(1, keepdim=True)
        if self._group is not None:
            dist.all_reduce(top_C1, op=dist.ReduceOp.MAX, group=self._group)
        index_C1, elsewhere_C1 = self.local(target_C1)
        score_C1 = logits_CL.gather(1, index_C1).masked_fill(elsewhere_C1, 0)
        sums_2C1 = torch.stack(((logits_CL - top_C1).exp_().sum(1, keepdim=True), score_C1))
        if self._group is not None:
            dist.all_reduce(sums_2C1, group=self._group)
        return sums_2C1[0].log() + top_C1, sums_2C1[1]

    def subtract_one(self, grad_CL: Tensor, target_C1: Tensor) -> None:
        """Subtract 1 at each row's target, in place, where it is this rank's."""
        index_C1, elsewhere_C1 = self.local(target_C1)
        grad_CL.scatter_add_(1, index_C1, elsewhere_C1.to(grad_CL.dtype) - 1)


class VocabEmbedding(nn.Embedding):
    """A token's vector comes from the rank that holds it; the others add zero."""

    def __init__(self, name: str, whole: nn.Embedding, stream: Stream, topology: Topology) -> None:
        entries = -(-whole.num_embeddings // topology.tp_size)
        super().__init__(entries, whole.embedding_dim, device="meta", dtype=whole.weight.dtype)
        self.part = _cut_vocabulary(self, "weight", name, whole.weight, topology)
        self.stream = stream

    def resize(self, total: int, part: VocabularyPart) -> None:
        """Take note of what the weight is now: this rank's part of `total` entries."""
        self.num_embeddings, self.part = self.weight.shape[0], part

    def forward(self, ids_BS: Tensor) -> Tensor:
        index_BS, elsewhere_BS = self.part.local(ids_BS)
        own_BSE = F.embedding(index_BS, self.weight).masked_fill(elsewhere_BS.unsqueeze(-1), 0)
        return self.stream.leave(own_BSE)


class VocabHead(LMHead):
    """The logits of this rank's part of the vocabulary, gathered; or the loss, for which they are not gathered."""

    def __init__(self, name: str, whole: LMHead, topology: Topology) -> None:
        entries = -(-whole.out_features // topology.tp_size)
        super().__init__(
            whole.in_features, entries, bias=whole.bias is not None, device="meta", dtype=whole.weight.dtype
        )
        self.vocabulary = _cut_vocabulary(self, "weight", name, whole.weight, topology)
        if self.bias is not None:
            _cut_vocabulary(self, "bias", name, whole.bias, topology)
        self.size = whole.out_features
        self.group = topology.tp_group

    def resize(self, total: int, part: VocabularyPart) -> None:
        """Take note of what the weight is now: this rank's part of `total` entries."""
        self.out_features, self.size, self.vocabulary = self.weight.shape[0], total, part

    def forward(self, hidden_BSE: Tensor, labels_BS: Tensor | None = None) -> Tensor:
        result = super().forward(sum_backward(hidden_BSE, self.group), labels_BS)
        return result if labels_BS is not None else gather_last(result, self.group)[..., : self.size]


def _cut_vocabulary(part: nn.Module, attribute: str, name: str, whole: Tensor, topology: Topology) -> VocabularyPart:
    """Mark a parameter of `part` as this rank's rows of `whole`, and return which entries those are."""
    held = even(whole.shape[0], topology.tp_size)
    parameter = part.get_parameter(attribute)
    mark(parameter, Cut(f"{name}.{attribute}", whole.shape, 0, held, parameter.shape[0]))
    return _part_of(held, whole.shape[0], topology)


def _part_of(held: tuple[Ranges, ...], total: int, topology: Topology) -> VocabularyPart:
    start, stop = held[topology.tp_rank][0] if held[topology.tp_rank] else (0, 0)
    return VocabularyPart(start, stop, total, topology.tp_group)


def resize_vocabulary(module: nn.Module, total: int, topology: Topology) -> None:
    """Let an embedding or a head have `total` entries over all ranks; its new parameters are on `meta`.

    They keep the marks of the old ones: whether they are trained, which part of a parameter they are, of which other
    stage's they are a copy.
    """
    for attribute, old in list(module.named_parameters(recurse=False)):
        setattr(module, attribute, _resized(old, total, topology))
    if isinstance(module, VocabEmbedding | VocabHead):
        module.resize(total, _part_of(even(total, topology.tp_size), total, topology))
    elif isinstance(module, nn.Embedding):
        module.num_embeddings = total
    else:
        cast(LMHead, module).out_features = total


def _resized(old: nn.Parameter, total: int, topology: Topology) -> nn.Parameter:
    cut, shape = cut_of(old), as_zero3(old).ds_shape if is_partitioned(old) else old.shape
    rows = total if cut is None else -(-total // topology.tp_size)
    new = nn.Parameter(torch.empty((rows, *shape[1:]), dtype=old.dtype, device="meta"), old.requires_grad)
    if cut is not None:
        whole = torch.Size((total, *cut.whole[1:]))
        mark(new, replace(cut, whole=whole, held=even(total, topology.tp_size), length=rows))
    if (original := original_of(old)) is not None:
        mark_copy(new, original)
    return new
