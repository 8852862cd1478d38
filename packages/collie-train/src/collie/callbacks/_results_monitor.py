"""Following one number of the evaluations' results, and knowing when it is better."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from collie.interfaces import ConfigError

Monitor = str | Callable[[Mapping[str, Any]], float | None]


class ResultsMonitor:
    """Finds a number in the results of an evaluation, and compares it with others of its kind.

    Args:
        monitor: its name among the results. A shorter name will do where one result alone has it as a part: "acc" for
            "accuracy#acc". Or a function of the results, which returns the number, or None where it is not there.
        larger_better: whether more is better.

    Raises:
        ConfigError: monitor is something else, or a function that does not take one argument.
    """

    def __init__(self, monitor: Monitor, larger_better: bool = True) -> None:
        if callable(monitor):
            _check_takes_one(monitor)
        elif not isinstance(monitor, str) or not monitor:
            raise ConfigError(f"monitor={monitor!r} is neither the name of a result nor a function of the results.")
        self.monitor = monitor
        self.larger_better = larger_better
        self._resolved: str | None = None

    @property
    def monitor_name(self) -> str:
        """What the number is called: as in the results, once they were seen; of a function, its own name."""
        if isinstance(self.monitor, str):
            return self._resolved or self.monitor
        return str(getattr(self.monitor, "__name__", type(self.monitor).__name__))

    def value(self, results: Mapping[str, Any]) -> float | None:
        """Return the number in `results`, or None where it is missing this time, or NaN.

        Raises:
            ConfigError: the first results have no such name, or more than one, or it is no number.
        """
        if isinstance(self.monitor, str):
            self._resolved = self._resolved or _resolve(self.monitor, results)
            found = results.get(self._resolved)
        else:
            found = self.monitor(results)
        if found is None:
            return None
        try:
            number = float(found)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor of several elements
            raise ConfigError(f"monitor {self.monitor_name!r} is {type(found).__name__}, not a number.") from error
        return None if math.isnan(number) else number

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is better; not where they are equal."""
        return value > than if self.larger_better else value < than


def _resolve(monitor: str, results: Mapping[str, Any]) -> str:
    """Return the one result that `monitor` can mean: the whole name, or a part of it between # or /."""
    if monitor in results:
        return monitor
    meant = [name for name in results if monitor in re.split(r"[#/]", name)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"monitor={monitor!r} is a part of {' and '.join(map(repr, meant))}. Give a whole name.")
    there = ", ".join(map(repr, results)) or "there are none"
    raise ConfigError(f"monitor={monitor!r} is not among the evaluation's results. Use one of them: {there}.")


def _check_takes_one(function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind({})
    except TypeError as error:
        raise ConfigError(f"monitor is a function that is called with the results alone, and: {error}.") from error
    except ValueError:  # of a builtin that has no signature
        return
