"""How an answer is generated, as people ask for it: names and numbers that are checked, in a GenerationConfig."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from collie.interfaces import DataError, nearest

NEW_TOKENS = 256
"""How long an answer may get where nobody says."""


_MOST = 2**20


def _short(value: Any) -> str:
    """A value as it is told back: somebody else's, and up to a mebibyte of it."""
    return str(value)[:40] if not isinstance(value, str) else repr(value[:40])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN is not
    )


_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (_whole, f"a whole number from 1 to {_MOST:,}"),
    "temperature": (_number(0, 100), "a number from 0, which always takes the likeliest token, to 100"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "top_k": (_whole, f"a whole number from 1 to {_MOST:,}"),
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
}


def asked_config(given: GenerationConfig | None, options: Mapping[str, Any]) -> GenerationConfig:
    """Return `given` with what was asked of one answer; without any length, with NEW_TOKENS.

    options: any of max_new_tokens, temperature, top_p, top_k, do_sample. Naming one of the middle three samples,
    unless do_sample says otherwise; a temperature of 0 does not.

    Raises:
        DataError: an option is unknown, or its value is none.
    """
    for name, value in options.items():
        if name not in _OPTIONS:
            meant = nearest(name, _OPTIONS)
            raise DataError(f"{_short(name)} is none of {', '.join(_OPTIONS)}." + (f" Use {meant!r}." if meant else ""))
        allowed, what = _OPTIONS[name]
        if not allowed(value):
            raise DataError(f"{name}={_short(value)} must be {what}.")
    config = copy.deepcopy(given) if given is not None else GenerationConfig()
    if {"temperature", "top_p", "top_k"} & {*options}:
        config.do_sample = True
    for name, value in options.items():
        setattr(config, name, value)
    if options.get("temperature") == 0:
        config.do_sample = False
        config.temperature = config.top_p = config.top_k = None
    if config.max_new_tokens is None and config.max_length is None:
        config.max_new_tokens = NEW_TOKENS
    return config
