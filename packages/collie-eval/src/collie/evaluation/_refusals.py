"""What is wrong with a command, found before a rank is started or a model loaded."""

import argparse
from pathlib import Path

from collie.evaluation._measures import MEASURES, named
from collie.interfaces import ConfigError

_LEAST = {"batch_size": 1, "max_new_tokens": 1, "max_rows": 1, "max_length": 1, "num_fewshot": 0}


def refuse(options: argparse.Namespace) -> None:
    """Makes the folders of files that are to be written, and empty files where there are none yet.

    Raises:
        ConfigError: a number is too small, a metric unknown, an option of no use to any metric that was named, or a
            file cannot be written.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name, least in _LEAST.items():
        if name in given and given[name] < least:
            raise ConfigError(f"{_spelled(name)} {given[name]}: give {least} or more.")
    if options.command == "lm-eval":
        if options.limit is not None and not options.limit > 0:
            raise ConfigError(f"--limit {options.limit}: give more than 0, of which numbers below 1 are a share.")
        if options.include_path is not None and not options.include_path.is_dir():
            raise ConfigError(f"--include-path {options.include_path} is no folder.")
    else:
        _without_use(options)
    for name in ("samples", "output"):
        if name in given:
            _writable(_spelled(name), given[name])


def _without_use(options: argparse.Namespace) -> None:
    """Refuse what no metric of the list would read: it would change nothing, and whoever gave it would not know."""
    measures = [MEASURES[name] for name in named(options.metric)]
    reads = {measure.reads for measure in measures}
    generates = "text" in reads or ("choice" in reads and options.style == "helm")
    uses = {
        "style": ("choice" in reads, "judges candidates (acc and classify do)"),
        "language": (any(measure.by_language for measure in measures), "parts texts into words by language"),
        "max_new_tokens": (generates, "generates text (of acc and classify, only with --style helm)"),
        "samples": (reads != {"loss"}, "has an output to write"),
    }
    for name, (used, what) in uses.items():
        value = getattr(options, name)
        if value is not None and not used:
            raise ConfigError(f"{_spelled(name)} {value}: no metric of {options.metric} {what}; leave it out.")


def _writable(option: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror}.") from error


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"
