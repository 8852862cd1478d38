"""An optimizer's state as logical tensors: taken from whatever tensors the layout has, and put back into others.

The state of a parameter is elementwise (one value for each of its elements), a number, or of another form. The first
fits any layout. The last is read as one thing, and is kept for parameters that a rank holds whole; where flat tensors
stand for several parameters, it belongs to that layout alone.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from collie.interfaces import CheckpointError
from collie.parallel._cut import cut_of
from collie.parallel._logical import Held, Part, held_whole, whole_name, whole_shape
from collie.parallel._materialise import Fill, copy_elements
from collie.parallel._shard import part_shape, shard_of
from collie.parallel._state_places import Place, places, relink, stepped
from collie.parallel._tied import original_of
from collie.parallel._topology import Topology

MASTER = "master"  # the key of an optimizer's own, more precise copy of the weights
FIXED = "fixed:"  # begins the key of a state that has not one element for each of the parameter's
Scalar = int | float | bool | str | None


@dataclass(frozen=True)
class Number:
    """A state that is one value. dtype: of the tensor that holds it; None where the optimizer keeps a Python value."""

    value: Scalar
    dtype: torch.dtype | None


@dataclass
class OptimizerState:
    """What one rank has of an optimizer's state.

    tensors: parts of logical tensors: elementwise states, and those of another form (FIXED) where this rank has all.
    numbers: by parameter and key.
    bound: by name, tensors that mean something in this layout alone.
    groups: the options of each param group, and the whole parameters in it.
    """

    tensors: list[Held] = field(default_factory=list)
    numbers: dict[str, dict[str, Number]] = field(default_factory=dict)
    bound: dict[str, Tensor] = field(default_factory=dict)
    groups: list[tuple[dict[str, Any], list[str]]] = field(default_factory=list)


class Saved(Protocol):
    """A checkpoint's optimizer state; parameters have the names of the whole model, before it was split."""

    def keys(self, name: str) -> Iterable[str]:
        """The keys of a parameter's elementwise states."""
        ...

    def fill(self, key: str) -> Fill:
        """What gives elements of these states."""
        ...

    def dtype(self, name: str, key: str) -> torch.dtype:
        """Of an elementwise state."""
        ...

    def fixed(self, name: str) -> Mapping[str, Tensor]:
        """A parameter's states of another form."""
        ...

    def numbers(self, name: str) -> Mapping[str, Number]:
        """A parameter's states that are one value."""
        ...

    def bound(self) -> Mapping[str, Tensor]:
        """This rank's tensors of the same layout; none where the checkpoint has another.

        Raises:
            CheckpointError: the checkpoint has such tensors, of another layout.
        """
        ...

    def options(self, name: str) -> dict[str, Any]:
        """The options of a parameter's group.

        Raises:
            CheckpointError: no group has it.
        """
        ...


def take_state(model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology) -> OptimizerState:
    """Return what this rank has of an optimizer's state. Tensors share memory with it.

    Args:
        model: what it trains.
        optimizer: as the Trainer has it; DeepSpeed may step others in its place.
        topology: of this rank.

    Raises:
        NotImplementedError: the state is out of reach, or one of its values cannot be stored.
    """
    inner = stepped(model, optimizer)
    names = _names(model)
    state = OptimizerState()
    state.groups = [
        ({key: value for key, value in group.items() if key != "params"}, []) for group in inner.param_groups
    ]
    shared = frozenset(getattr(optimizer, "whole_states", ()))
    tensors: dict[tuple[str, str], list[Part]] = {}
    shapes: dict[str, torch.Size] = {}
    for number, (owner, owned) in enumerate(_by_owner(model, inner, topology)):
        values: dict[str, Any] = dict(inner.state.get(owner, {}))
        for place in owned:
            state.groups[place.group][1].append(names[place.parameter])
            shapes[names[place.parameter]] = whole_shape(place.parameter)
        _check_storable(values)
        if owned[0].master is not None:
            values[MASTER] = owned[0].master
        _sort(number, owned, values, shared, names, state, tensors)
    state.tensors += [Held(name, key, shapes[name], tuple(parts)) for (name, key), parts in tensors.items()]
    return state


def put_state(model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology, saved: Saved) -> None:
    """Give an optimizer the state of a checkpoint, in any layout, and its groups their options.

    The weights must be the checkpoint's already. Each rank reads its own elements.

    Raises:
        CheckpointError: a parameter is in no group of the checkpoint, or its state fits that layout alone.
    """
    inner = stepped(model, optimizer)
    names = _names(model)
    shared = frozenset(getattr(optimizer, "whole_states", ()))
    bound = saved.bound()
    for number, (owner, owned) in enumerate(_by_owner(model, inner, topology)):
        for place in owned:
            _restore_options(inner.param_groups[place.group], saved.options(names[place.parameter]))
        before: dict[str, Any] = dict(inner.state.get(owner, {}))
        after: dict[str, Any] = {}
        device = shard_of(owner, topology).data.device if isinstance(owner, nn.Parameter) else owner.device
        for key in dict.fromkeys(key for place in owned for key in saved.keys(names[place.parameter])):
            if key == MASTER:
                continue
            dtype = next(saved.dtype(names[p.parameter], key) for p in owned if key in saved.keys(names[p.parameter]))
            after[key] = _room(before.get(key), owned[0].shape, dtype, device)
            for place in owned:
                if key in saved.keys(names[place.parameter]):
                    _read(place, after[key], key, names, topology, saved)
        after |= _numbers(owned, names, saved, inner.param_groups[owned[0].group], device)
        after |= _fixed(owned, names, shared, saved, device)
        prefix = f"{number}/"
        after |= {key.removeprefix(prefix): t.to(device) for key, t in bound.items() if key.startswith(prefix)}
        for place in owned:
            if place.master is not None and MASTER in saved.keys(names[place.parameter]):
                _read(place, place.master, MASTER, names, topology, saved)
        if after:
            inner.state[owner] = after
        else:
            inner.state.pop(owner, None)
    relink(model)


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Map each parameter to its whole parameter's name; a tied weight's copy to that of its original."""
    return {
        parameter: original_of(parameter) or whole_name(parameter, name) for name, parameter in model.named_parameters()
    }


def _by_owner(
    model: nn.Module, optimizer: torch.optim.Optimizer, topology: Topology
) -> Iterator[tuple[Tensor, list[Place]]]:
    """Yield each tensor that the optimizer keeps a state for, with the places in it."""
    for _, owned in groupby(places(model, optimizer, topology), key=lambda place: id(place.owner)):
        listed = list(owned)
        yield listed[0].owner, listed


def _sort(
    number: int,
    owned: list[Place],
    values: dict[str, Any],
    shared: frozenset[str],
    names: dict[nn.Parameter, str],
    state: OptimizerState,
    tensors: dict[tuple[str, str], list[Part]],
) -> None:
    """Sort one owner's values into what they are."""
    other = {
        key: value
        for key, value in values.items()
        if isinstance(value, Tensor) and key not in shared and value.shape != owned[0].shape and value.dim() > 0
    }
    together = bool(other) and not (owned[0].alone and cut_of(owned[0].parameter) is None)
    for key, value in values.items():
        if isinstance(value, Tensor) and together and key != MASTER and value.dim() > 0:
            state.bound[f"{number}/{key}"] = value  # blocks of elements share values, which do not fit other blocks
            continue
        for place in owned:
            name = names[place.parameter]
            copied = original_of(place.parameter) is not None
            if key in shared or key in other:
                state.tensors += [held_whole(name, FIXED + key, value)] if not copied else []
            elif not isinstance(value, Tensor) or value.shape != place.shape:
                state.numbers.setdefault(name, {})[key] = _number(value)
            elif not copied:
                part = Part(part_shape(place.parameter), cut_of(place.parameter), place.start, place.of(value))
                tensors.setdefault((name, key), []).append(part)


def _check_storable(values: dict[str, Any]) -> None:
    for key, value in values.items():
        if not isinstance(value, Tensor | int | float | str | None):
            raise NotImplementedError(
                f"the optimizer's state {key!r} is a {type(value).__name__}: checkpoints hold tensors and numbers."
            )


def _number(value: Any) -> Number:
    return Number(value.item(), value.dtype) if isinstance(value, Tensor) else Number(value, None)


def _room(tensor: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the tensor that the optimizer has, if it fits, so that what refers to it goes on to; else a new one."""
    if isinstance(tensor, Tensor) and tensor.shape == shape and tensor.dtype == dtype:
        return tensor.zero_()
    return torch.zeros(shape, dtype=dtype, device=device)


def _read(
    place: Place, tensor: Tensor, key: str, names: dict[nn.Parameter, str], topology: Topology, saved: Saved
) -> None:
    if place.length:
        name = names[place.parameter]
        copy_elements(place.of(tensor.data), place.parameter, name, place.start, topology, saved.fill(key))


def _numbers(
    owned: list[Place], names: dict[nn.Parameter, str], saved: Saved, group: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return an owner's numbers: of several parameters those of the one that was updated most often."""
    found: dict[str, Number] = {}
    for place in owned:
        for key, number in saved.numbers(names[place.parameter]).items():
            if key not in found or _later(number, found[key]):
                found[key] = number
    on_device = bool(group.get("capturable") or group.get("fused"))  # as torch places them
    return {key: _value(number, device if on_device else torch.device("cpu")) for key, number in found.items()}


def _later(number: Number, than: Number) -> bool:
    both = (number.value, than.value)
    return all(isinstance(value, int | float) for value in both) and both[0] > both[1]  # type: ignore[operator]


def _value(number: Number, device: torch.device) -> Any:
    if number.dtype is None:
        return number.value
    return torch.tensor(number.value, dtype=number.dtype, device=device)


def _fixed(
    owned: list[Place], names: dict[nn.Parameter, str], shared: frozenset[str], saved: Saved, device: torch.device
) -> dict[str, Tensor]:
    """Return the states that are read as one thing, where this layout has room for them."""
    found: dict[str, Tensor] = {}
    for place in owned:
        name = names[place.parameter]
        for key, tensor in saved.fixed(name).items():
            if key not in shared and not (place.alone and cut_of(place.parameter) is None):
                raise CheckpointError(
                    f"the optimizer's state {key!r} of {name} belongs to a parameter that one rank holds whole, and "
                    f"here ranks hold parts of it. Resume with tp_size=1 and the ZeRO stage of the checkpoint."
                )
            found[key] = tensor.to(device)
    return found


def _restore_options(group: dict[str, Any], options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        present = group.get(key)
        if isinstance(present, Tensor):  # a schedule that torch.compile sees
            present.fill_(value)
        else:
            group[key] = tuple(value) if isinstance(present, tuple) else value
