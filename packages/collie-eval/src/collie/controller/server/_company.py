"""The ranks that answer a prompt together, and the one word that they exchange before each token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import StoppingCriteria

from collie.parallel import Topology


class Word(IntEnum):
    """What a rank says; the highest that any rank says is what all of them hear."""

    GO = 0
    STOP = 1  # whoever asked wants no more
    FAILED = 2


class OtherRankFailed(Exception):
    """Another rank said that it has failed, so this one goes on with nothing either."""


class Company:
    """The ranks that generate one answer: rank 0's replica, or all of them where each has a part of every weight.

    A model's forward is called equally often on each of them, or it could not be spread over them. So all of them
    exchange a word before each forward, and one at the end, on the CPU, so that no GPU is waited for.

    They have a group of their own for that: in one that the model uses, a word could be taken for a tensor.

    Making one is collective: over all ranks of the run, also those that take no part.

    Args:
        topology: the layout.
        everyone: whether the ranks of all replicas take part (ZeRO-3).
        patience: seconds that a rank which has failed waits for the others to come and hear of it.
    """

    def __init__(self, topology: Topology, everyone: bool, patience: float) -> None:
        self.topology, self.everyone = topology, everyone
        self.takes_part = everyone or topology.dp_rank == 0
        self.rank = topology.rank
        self._patience = patience
        self._size = topology.world_size if everyone else topology.pp_size * topology.tp_size
        self._group: dist.ProcessGroup | None = None
        if self._size > 1:
            ranks = [replace(topology, rank=rank) for rank in range(topology.world_size)]
            companies = [[one.rank for one in ranks if everyone or one.dp_rank == dp] for dp in range(topology.dp_size)]
            self._group = dist.new_subgroups_by_enumeration(companies[: 1 if everyone else None], backend="gloo")[0]

    def exchange(self, word: Word) -> Word:
        """Say a word, and return the highest one that was said. Collective.

        Raises:
            RuntimeError: this rank has failed, and another does not come to hear of it: it is inside an exchange of
                the model's own, in which this one is missing for ever.
        """
        if self._size == 1:
            return word
        said = torch.tensor(int(word), dtype=torch.int64)
        work = dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group, async_op=True)
        if word is Word.FAILED:
            work.wait(timedelta(seconds=self._patience))
        else:
            work.wait()
        return Word(int(said))

    def first_reason(self, reason: str | None) -> str | None:
        """Return what the first rank says that says anything. Collective."""
        if self._size == 1:
            return reason
        reasons: list[str | None] = [None] * self._size
        dist.all_gather_object(reasons, reason, group=self._group)
        return next((one for one in reasons if one is not None), None)

    def everyones(self, *numbers: int) -> Tensor:
        """Return the numbers of each rank, [ranks, numbers]. Collective."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        if self._size == 1:
            return mine[None]
        all_of_them = [torch.empty_like(mine) for _ in range(self._size)]
        dist.all_gather(all_of_them, mine, group=self._group)
        return torch.stack(all_of_them)

    @contextmanager
    def answering(self, model: nn.Module, cancelled: Callable[[], bool]) -> Iterator["StopTogether"]:
        """Exchange a word before each forward of `model`; yields what stops its `generate` when one said stop."""
        stop = StopTogether()

        def ask(*_: object) -> None:
            heard = self.exchange(Word.STOP if self.rank == 0 and cancelled() else Word.GO)
            if heard is Word.FAILED:
                raise OtherRankFailed
            stop.asked = heard is Word.STOP

        hook = model.register_forward_pre_hook(ask)
        try:
            yield stop
        finally:
            hook.remove()


class StopTogether(StoppingCriteria):
    """Ends an answer, on all ranks after the same token, when whoever asked no longer wants it."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: object) -> Tensor:
        return torch.full((input_ids.shape[0],), self.asked, dtype=torch.bool, device=input_ids.device)
