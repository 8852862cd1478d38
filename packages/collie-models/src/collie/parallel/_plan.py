"""How a family is split over tensor-parallel ranks: a table from its modules' names to what becomes of them.

Applied to a model on `meta`, before any weight exists: a listed module is replaced by one that holds this rank's part
and exchanges activations with the others. All that is not listed (norms) every rank holds whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from torch import Tensor, nn

from collie.interfaces import ParallelSizeError
from collie.module import LMHead
from collie.parallel._cut import cut_of
from collie.parallel._layout import ROWS, Heads, Indivisible, Layout
from collie.parallel._linear import ColumnLinear, MixedColumnLinear, RowLinear
from collie.parallel._partial import mark_partial
from collie.parallel._random import apart
from collie.parallel._stream import Stream
from collie.parallel._topology import Topology
from collie.parallel._vocabulary import VocabEmbedding, VocabHead

Randomness = Callable[[], AbstractContextManager[None]]


class DividesHeads(Heads, Protocol):
    """An attention block whose projections can be split by heads."""

    def keep_heads(self, heads: int, kv_heads: int, randomness: Randomness) -> None:
        """Go on with so many heads, dropping attention weights inside `randomness()`."""


@dataclass
class Site:
    """A module in the model that is being split."""

    name: str
    module: nn.Module
    parent: nn.Module
    entered: bool  # whether the parent has entered its input from the stream

    @property
    def heads(self) -> Heads:
        if not hasattr(self.parent, "kv_heads"):
            raise TypeError(f"{self.name} is split by heads, but {type(self.parent).__name__} has no kv_heads.")
        return cast(Heads, self.parent)


class Split(Protocol):
    """An entry of a plan."""

    def check(self, site: Site, ranks: int) -> None:
        """Raise Indivisible where so many ranks cannot divide the module."""

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        """Return what takes the module's place: this rank's part of it."""


@dataclass(frozen=True)
class Column:
    """A linear map whose outputs the ranks divide; `layout` says what its rows are."""

    layout: Layout = ROWS

    def check(self, site: Site, ranks: int) -> None:
        self.layout.held(site.name, _linear(site).out_features, self._heads(site), ranks)

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        whole = _linear(site)
        held = self.layout.held(site.name, whole.out_features, self._heads(site), topology.tp_size)
        make = partial(ColumnLinear, site.name, whole, stream=None if site.entered else stream, topology=topology)
        if not any(held.shared):
            return make(held.own)
        shared = make(held.shared, copies=held.copies)
        return MixedColumnLinear(make(held.own), shared) if any(held.own) else shared

    def _heads(self, site: Site) -> Heads | None:
        return site.heads if self.layout.by_heads else None


@dataclass(frozen=True)
class Row:
    """A linear map whose inputs the ranks divide, as a Column before it has left them."""

    def check(self, site: Site, ranks: int) -> None:
        columns = _linear(site).in_features
        if columns % ranks:
            raise Indivisible(f"does not divide the {columns} inputs of {site.name}")

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        return RowLinear(site.name, _linear(site), stream, topology)


@dataclass(frozen=True)
class VocabRow:
    """An embedding whose tokens the ranks divide, padded where they do not divide."""

    def check(self, site: Site, ranks: int) -> None:
        pass

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        return VocabEmbedding(site.name, cast(nn.Embedding, site.module), stream, topology)


@dataclass(frozen=True)
class VocabColumn:
    """A head whose tokens the ranks divide as a VocabRow does; it may share that one's weight."""

    def check(self, site: Site, ranks: int) -> None:
        pass

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        return VocabHead(site.name, cast(LMHead, site.module), topology)


@dataclass(frozen=True)
class Entry:
    """A block whose first argument goes into several Columns and nothing else: it is entered from the stream once.

    Without it each of them enters it, which is as right and exchanges more.
    """

    def check(self, site: Site, ranks: int) -> None:
        pass

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        site.module.register_forward_pre_hook(_Enter(stream))
        return site.module


class _Enter:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._stream.enter(cast(Tensor, args[0])), *args[1:])


@dataclass(frozen=True)
class Summed:
    """A module that every rank holds whole and applies to its own heads alone: gradients are summed over the ranks."""

    def check(self, site: Site, ranks: int) -> None:
        pass

    def apply(self, site: Site, stream: Stream, topology: Topology) -> nn.Module:
        for parameter in site.module.parameters():
            mark_partial(parameter)
        return site.module


@dataclass(frozen=True)
class Plan:
    """A family's table. In a pattern, `*` stands for one part of a dotted name, such as a layer's number.

    Every pattern must match, and an attention block whose projections are split by heads has `heads`, `kv_heads` and
    `keep_heads`, as `collie.module.Attention` does.
    """

    table: Mapping[str, Split] = field(default_factory=dict)

    def check(self, model: nn.Module, ranks: int, family: str) -> None:
        """Check that `ranks` tensor-parallel ranks can divide a model on `meta`.

        Raises:
            ParallelSizeError: they cannot; the message has both numbers and the sizes that work.
        """
        sites = list(self._sites(model))
        reason = _misfit(sites, ranks)
        if reason is not None:
            most = max((site.heads.heads for site, entry in sites if _by_heads(entry)), default=ranks)
            works = [size for size in range(1, most + 1) if _misfit(sites, size) is None]
            *others, last = map(str, works)
            choice = f"{', '.join(others)} or {last}" if others else last
            raise ParallelSizeError(f"tp_size={ranks} {reason} ({family}). Use tp_size {choice}.")

    def apply(self, model: nn.Module, topology: Topology, stream: Stream | None = None) -> None:
        """Leave of a model on `meta` the part of this rank, in place. Collective where keys and values are shared.

        What the table names and a pipeline stage does not have is another stage's. Parameters that modules share stay
        shared. `stream` is what the parts take their inputs from and return their
        outputs to; where forwards may split it, all that the ranks hold whole acts on parts of a sequence.
        """
        stream = stream if stream is not None else Stream(topology)
        replaced: dict[int, nn.Parameter] = {}  # by the id of the whole one, which `before` keeps alive
        before: list[nn.Module] = []
        divided: dict[int, DividesHeads] = {}
        for site, entry in list(self._sites(model, complete=topology.pp_size == 1)):
            before.append(site.module)
            if _by_heads(entry):
                divided[id(site.parent)] = cast(DividesHeads, site.heads)
            part = entry.apply(site, stream, topology)
            if part is not site.module:
                setattr(site.parent, site.name.rpartition(".")[2], part)
                _share(site.module, part, replaced)
        for block in divided.values():
            kept = max(1, block.kv_heads // topology.tp_size)
            block.keep_heads(block.heads // topology.tp_size, kept, partial(apart, topology))
        if stream.sequence:
            for parameter in model.parameters():
                if cut_of(parameter) is None:
                    mark_partial(parameter)

    def _sites(self, model: nn.Module, complete: bool = True) -> Iterator[tuple[Site, Split]]:
        modules = dict(model.named_modules())
        unmatched = set(self.table)
        entered = {
            name
            for pattern, entry in self.table.items()
            if isinstance(entry, Entry)
            for name in modules
            if _matches(pattern, name)
        }
        for pattern, entry in self.table.items():
            for name, module in modules.items():
                if _matches(pattern, name):
                    unmatched.discard(pattern)
                    parent = name.rpartition(".")[0]
                    yield Site(name, module, modules[parent], parent in entered), entry
        if unmatched and complete:
            raise KeyError(f"the plan of {type(model).__name__} names {sorted(unmatched)}, which it does not have")


def _by_heads(entry: Split) -> bool:
    return isinstance(entry, Column) and entry.layout.by_heads


def _misfit(sites: list[tuple[Site, Split]], ranks: int) -> str | None:
    for site, entry in sites:
        try:
            entry.check(site, ranks)
        except Indivisible as reason:
            return str(reason)
    return None


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"[^.]+"), name) is not None


def _linear(site: Site) -> nn.Linear:
    return cast(nn.Linear, site.module)


def _share(whole: nn.Module, part: nn.Module, replaced: dict[int, nn.Parameter]) -> None:
    """Let a part's parameters be those of an earlier module's part, where the whole ones were the same."""
    for attribute, parameter in whole.named_parameters(recurse=False):
        own = getattr(part, attribute, None)
        if own is None:
            continue
        own.requires_grad_(parameter.requires_grad)
        earlier = replaced.setdefault(id(parameter), own)
        if earlier is not own:
            if cut_of(earlier) is None or earlier.shape != own.shape:
                raise TypeError(f"{attribute} is shared by modules that the plan splits differently")
            setattr(part, attribute, earlier)
