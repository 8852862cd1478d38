"""The metrics that collie-eval knows by name: what each reads of a model, and how it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from collie.interfaces import ConfigError, nearest

if TYPE_CHECKING:
    from collie.metrics import BaseMetric

Reading = Literal["loss", "text", "choice"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric.

    Attributes:
        reads: the loss of rows, the text generated from their prompts, or the choice among their candidates.
        by_language: whether the language of texts changes how it is made.
        make: collie.metrics, which a command that only shows its help need not import, and "en" or "zh" → the metric.
    """

    reads: Reading
    make: "Callable[[Any, str], BaseMetric]"
    by_language: bool = False


MEASURES: dict[str, Measure] = {
    "ppl": Measure("loss", lambda metrics, language: metrics.PPLMetric()),
    "bleu": Measure(
        "text", lambda metrics, language: metrics.BleuMetric(tokenize="zh" if language == "zh" else "13a"), True
    ),
    "chrf": Measure("text", lambda metrics, language: metrics.ChrfMetric()),
    "rouge": Measure(
        "text", lambda metrics, language: metrics.RougeMetric(tokenizer="jieba" if language == "zh" else None), True
    ),
    "exact_match": Measure(
        "text", lambda metrics, language: metrics.ExactMatchMetric("zh" if language == "zh" else "squad"), True
    ),
    "f1": Measure("text", lambda metrics, language: metrics.TokenF1Metric("zh" if language == "zh" else "squad"), True),
    "acc": Measure("choice", lambda metrics, language: metrics.AccuracyMetric()),
    "classify": Measure("choice", lambda metrics, language: metrics.ClassifyFPreRecMetric(f_type="macro")),
}


def named(names: str) -> list[str]:
    """The metrics of a list with commas, each once.

    Raises:
        ConfigError: there is none of a name, or no name.
    """
    found = list(dict.fromkeys(word.strip() for word in names.split(",") if word.strip()))
    for name in found:
        if name not in MEASURES:
            near = nearest(name, MEASURES)
            hint = f" Did you mean {near}?" if near is not None else ""
            raise ConfigError(f"--metric {name}: there are {', '.join(MEASURES)}.{hint}")
    if not found:
        raise ConfigError(f"--metric names no metric: give some of {', '.join(MEASURES)}.")
    return found


def chosen(names: str, language: str) -> dict[Reading, dict[str, "BaseMetric"]]:
    """The metrics of a list with commas, by what they read.

    Raises:
        ConfigError: there is none of a name, or no name.
        MissingExtraError: a metric of Chinese text lacks its package.
    """
    from collie import metrics

    found: dict[Reading, dict[str, BaseMetric]] = {}
    for name in named(names):
        found.setdefault(MEASURES[name].reads, {})[name] = MEASURES[name].make(metrics, language)
    return found
