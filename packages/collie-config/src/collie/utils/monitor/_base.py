"""What all monitors share: a step's dict in, named numbers out, to events on every rank and to the sinks on rank 0."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar

from collie.config import CollieConfig
from collie.events import Metric
from collie.interfaces import RunContext
from collie.utils.monitor._outlet import Outlet, get_monitor

_log = logging.getLogger("collie.monitor")

Item = dict[str, Any]


class BaseMonitor:
    """Measures one step or evaluation.

        with monitor as item:
            item.update(loss=2.5, global_step=3)

    What the Trainer puts in: global_step, epoch, loss, lr, tokens (of this rank), world_size, batch_size. What an
    evaluator puts in: eval_result (values by metric name), eval_name, global_step. A subclass implements `measure`, and
    `start` where it needs the state before the step. Nothing here raises into the training: what fails is counted in
    `failures`, and logged the first time. A step that raises is not measured.
    """

    units: ClassVar[dict[str, str]] = {}
    """Unit by name, where a number has one."""

    def __init__(self, config: CollieConfig) -> None:
        self.config = config
        self.item: Item = {}
        self.seconds = 0.0
        self.failures = 0
        self.monitor = get_monitor(config)
        self._context: RunContext | None = None
        self._entered = 0.0

    def bind(self, context: RunContext) -> None:
        """Take the run's event file and this process's rank. Before that, a monitor feeds the sinks alone."""
        self._context = context
        if self.monitor is not None and context.folder is not None and context.rank == 0:
            self.monitor.bind(context.folder)

    def start(self) -> None:
        """Look at the state before the step."""

    def measure(self, item: Item) -> dict[str, float]:
        """Return this step's numbers by name; none where `item` lacks what they need."""
        raise NotImplementedError(f"{type(self).__name__} does not implement measure()")

    def __enter__(self) -> Item:
        self.item = {}
        try:
            self.start()
        except Exception as error:
            self._fail(error)
        self._entered = time.perf_counter()
        return self.item

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._entered
        if kind is not None:
            return
        try:
            self._report({name: float(value) for name, value in self.measure(self.item).items()})
        except Exception as failure:
            self._fail(failure)

    def _report(self, values: dict[str, float]) -> None:
        context = self._context
        step = self.item.get("global_step", context.step() if context else None)
        for name, value in values.items():
            if context:
                context.events.write(Metric(name, value, self.units.get(name, "")), step=step)
            if self.monitor and self._rank() == 0:
                self.monitor.write(name, value, step)

    def _rank(self) -> int:
        return self._context.rank if self._context else int(os.environ.get("RANK", "0"))

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _log.warning("%s measured nothing: %s: %s", type(self).__name__, type(error).__name__, error)


class MultiMonitors:
    """Several monitors around one step, which share one item.

        with MultiMonitors(monitors) as item:
            item.update(loss=2.5, global_step=3)

    Anything that is a context manager and keeps its dict in `item` may be among them.
    """

    def __init__(self, monitors: Iterable[Any] = ()) -> None:
        self.monitors = list(monitors)
        self.item: Item = {}
        self.failures = 0

    def bind(self, context: RunContext) -> None:
        """Bind each monitor that can be."""
        for monitor in self.monitors:
            if callable(bind := getattr(monitor, "bind", None)):
                bind(context)

    def state_dict(self) -> dict[str, str]:
        """What a resumed run needs to go on with what the monitors' sinks have begun (the same run of wandb)."""
        return {key: value for outlet in self._outlets() for key, value in outlet.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on with it; before the first number, or it changes nothing."""
        for outlet in self._outlets():
            outlet.load_state_dict(state)

    def _outlets(self) -> list[Outlet]:
        kept = (getattr(monitor, "monitor", None) for monitor in self.monitors)
        return [outlet for outlet in kept if isinstance(outlet, Outlet)]

    def __enter__(self) -> Item:
        item: Item = {}
        self.item = item
        for monitor in self.monitors:
            try:
                item.update(monitor.__enter__() or {})
                monitor.item = item
            except Exception as error:
                self._fail(monitor, error)
        return item

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for monitor in self.monitors:
            try:
                monitor.__exit__(kind, error, trace)
            except Exception as failure:
                self._fail(monitor, failure)

    def _fail(self, monitor: Any, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _log.warning("%s failed: %s: %s", type(monitor).__name__, type(error).__name__, error)
