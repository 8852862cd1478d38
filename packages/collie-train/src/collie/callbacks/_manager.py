"""Calls the callbacks of a Trainer, in their order, at each event."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from collie.callbacks._callback import Callback
from collie.interfaces import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from collie.controller.trainer import Trainer

EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def prepare_callback(callbacks: Callback | Iterable[Callback] | None) -> list[Callback]:
    """The callbacks as a list: none, one, or several in their order.

    Raises ConfigError: something that is no Callback; a method on_… that is no event (a misspelled one would never be
    called), with the nearest one; a method that does not take its event's arguments.
    """
    if callbacks is None:
        return []
    given = (
        [callbacks]
        if isinstance(callbacks, Callback | type) or not isinstance(callbacks, Iterable)
        else list(callbacks)
    )
    for callback in given:
        _check(callback)
    return given


def _check(callback: Any) -> None:
    if isinstance(callback, type):
        raise ConfigError(f"callbacks has the class {callback.__name__}: give an instance, {callback.__name__}(…).")
    if not isinstance(callback, Callback):
        raise ConfigError(
            f"callbacks has a {type(callback).__name__}, which is no Callback: derive it from collie's Callback."
        )
    owner = type(callback).__name__
    for name in dir(type(callback)):
        method = inspect.getattr_static(callback, name)
        if not name.startswith("on_") or not callable(getattr(method, "__func__", method)):
            continue
        if name not in EVENTS:
            guess = nearest(name, EVENTS)
            mend = f"did you mean {guess}?" if guess else f"the events are {', '.join(EVENTS)}."
            raise ConfigError(f"{owner}.{name} is no event of a Trainer and would never be called: {mend}")
        _check_arguments(owner, name, getattr(callback, name))


def _check_arguments(owner: str, name: str, method: Any) -> None:
    arguments = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    signature = inspect.signature(method)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{owner}.{name} takes {signature}, but is called with ({', '.join(arguments)}): {error}."
        ) from error


class CallbackManager:
    """The callbacks of a Trainer, called in their order. Each event's method calls that of every callback.

    callbacks: as `prepare_callback` takes them, and with its errors.
    """

    def __init__(self, callbacks: Callback | Iterable[Callback] | None = None) -> None:
        self.callbacks = prepare_callback(callbacks)

    def on_setup_parallel_model(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_setup_parallel_model(trainer)

    def on_after_trainer_initialized(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_after_trainer_initialized(trainer)

    def on_train_begin(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_train_begin(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_train_end(trainer)

    def on_train_epoch_begin(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_train_epoch_begin(trainer)

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_train_epoch_end(trainer)

    def on_train_batch_begin(self, trainer: Trainer, batch: Any) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_begin(trainer, batch)

    def on_train_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        for callback in self.callbacks:
            callback.on_train_batch_end(trainer, loss)

    def on_save_model(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_save_model(trainer)

    def on_load_model(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_load_model(trainer)

    def on_save_checkpoint(self, trainer: Trainer) -> dict[str, dict[str, Any]]:
        """The states that callbacks return, by their names; a name that several have is numbered from the second on."""
        states = {name: callback.on_save_checkpoint(trainer) for name, callback in self._named()}
        return {name: state for name, state in states.items() if state is not None}

    def on_load_checkpoint(self, trainer: Trainer, states: dict[str, dict[str, Any]]) -> None:
        """Hand each callback its own of the states that `on_save_checkpoint` returned; None where there is none."""
        for name, callback in self._named():
            callback.on_load_checkpoint(trainer, states.get(name))

    def on_evaluate_begin(self, trainer: Trainer) -> None:
        for callback in self.callbacks:
            callback.on_evaluate_begin(trainer)

    def on_evaluate_end(self, trainer: Trainer, results: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_evaluate_end(trainer, results)

    def _named(self) -> list[tuple[str, Callback]]:
        named: dict[str, Callback] = {}
        for callback in self.callbacks:
            name, number = callback.callback_name, 2
            while name in named:
                name, number = f"{callback.callback_name}#{number}", number + 1
            named[name] = callback
        return list(named.items())
